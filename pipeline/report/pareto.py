"""All models of all finished runs on the same rows in one table: quality against cost, and the Pareto front."""

import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.report.plots import write_front
from pipeline.report.run_record import RunRecord
from pipeline.report.tables import (
    Rows,
    agreement_cells,
    cost_cells,
    markdown_table,
    notes_of,
    percent,
    terminal_table,
)
from pipeline.report.templates import metric_name
from stages.evaluation.results import ModelResult

SEED = re.compile(r"-seed\d+$")


@dataclass
class Point:
    """A model, over its seeds.

    Attributes:
        name: run (without its seed) and model.
        results: what `evaluate` measured, one entry a seed.
        on_front: no other model with as few operations or fewer is as good.
    """

    name: str
    results: list[ModelResult]
    on_front: bool = False

    @property
    def metric(self) -> float:
        return statistics.mean(result.metric for result in self.results)

    @property
    def flops(self) -> float:
        return statistics.mean(result.flops for result in self.results)


def write_pareto(runs: list[RunRecord], target: Path) -> str:
    """Make the table of runs on the same rows, for the terminal; write it to `<target>.md`, and draw it in `<target>.png`."""
    points = points_of(runs)
    references = " or ".join(sorted({run.reference for run in runs}))
    notes = "".join(f"\n\n{note}" for note in notes_of(runs))
    markdown = _table(points, runs[0], references, markdown_table) + notes
    target.with_suffix(".md").write_text(markdown + "\n", encoding="utf-8")
    places = [(p.name, p.flops / 1e6, p.metric, p.on_front) for p in points]
    x, y = "MFLOP for a row of mean length", metric_name(runs[0].metrics[0])
    write_front(places, x, y, target.with_suffix(".png"))
    return _table(points, runs[0], references, terminal_table) + notes


def points_of(runs: list[RunRecord]) -> list[Point]:
    """The models, fewest operations first.

    The teachers of all runs that were given the same one are one point; so are the encoders that were tuned on answers,
    and the seeds of one run.
    """
    found: dict[str, Point] = {}
    several = len({run.options["teacher"] for run in runs}) > 1
    for run in runs:
        teacher = f"{run.reference} {run.options['teacher']}" if several else run.reference
        for model in run.models:
            name = teacher if model == "teacher" else f"{SEED.sub('', run.name)}: {model}"
            found.setdefault(name, Point(name, [])).results.append(run.results[model])
    points = sorted(found.values(), key=lambda p: (p.flops, -p.metric))
    best = float("-inf")
    for point in points:
        point.on_front = point.metric > best
        best = max(best, point.metric)
    return points


def _table(points: list[Point], run: RunRecord, references: str, form: Callable[[Rows], str]) -> str:
    rows = []
    for p in points:
        retained = [result.retained for result in p.results if result.retained is not None]
        rows.append({
            "model": f"{p.name} *" if p.on_front else p.name,
            run.metrics[0]: f"{p.metric:.4f}",
            "seeds": str(len(p.results)),
            f"retained of {references}": percent(statistics.mean(retained) if len(retained) == len(p.results) else None),
        } | agreement_cells(p.results, references) | cost_cells(p.results))  # fmt: skip
    return (
        f"{run.task.name}, {run.about.split}, {run.about.rows:,} rows; fewest operations first. * marks the Pareto "
        f"front: no other model with as few operations or fewer is as good.\n\n{form(rows)}"
    )
