"""All models of all finished runs on the same rows in one table: quality against cost, and the Pareto front."""

import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.report.plots import write_front
from pipeline.report.run_record import RunRecord
from pipeline.report.tables import TableFormat, markdown_table, percent, terminal_table
from pipeline.report.templates import metric_name
from stages.evaluation.results import ModelResult

SEED = re.compile(r"-seed\d+$")


@dataclass
class Point:
    """A model, over its seeds.

    Attributes:
        name: run (without its seed) and model.
        results: what `evaluate` measured, one entry a seed.
        on_front: no model with as few operations is as good.
    """

    name: str
    results: list[ModelResult]
    on_front: bool = False

    def mean(self, of: Callable[[ModelResult], float | None]) -> float | None:
        """The mean of a number over the seeds; None where it was not measured."""
        values = [of(result) for result in self.results]
        return None if None in values else statistics.mean(values)

    @property
    def metric(self) -> float:
        return statistics.mean(result.metric for result in self.results)

    @property
    def flops(self) -> float:
        return statistics.mean(result.flops for result in self.results)


def write_pareto(runs: list[RunRecord], target: Path) -> str:
    """Make the table of runs on the same rows, for the terminal; write it to `<target>.md`, and draw it in `<target>.png`."""
    points = points_of(runs)
    markdown = _table(points, runs[0], markdown_table)
    target.with_suffix(".md").write_text(markdown + "\n", encoding="utf-8")
    places = [(p.name, p.flops / 1e6, p.metric, p.on_front) for p in points]
    x, y = "MFLOP for a row of mean length", metric_name(runs[0].metrics[0])
    write_front(places, x, y, target.with_suffix(".png"))
    return _table(points, runs[0], terminal_table)


def points_of(runs: list[RunRecord]) -> list[Point]:
    """The models, fewest operations first. The teachers of all runs are one point; so are the seeds of one run."""
    found: dict[str, Point] = {}
    for run in runs:
        for model in run.models:
            name = "teacher" if model == "teacher" else f"{SEED.sub('', run.name)}: {model}"
            found.setdefault(name, Point(name, [])).results.append(run.results[model])
    points = sorted(found.values(), key=lambda p: (p.flops, -p.metric))
    best = float("-inf")
    for point in points:
        point.on_front = point.metric > best
        best = max(best, point.metric)
    return points


def _table(points: list[Point], run: RunRecord, form: TableFormat) -> str:
    agreement = {
        "same label": lambda r: r.label_loyalty,
        "probability loyalty": lambda r: r.probability_loyalty,
    }
    if not run.about.labels:
        agreement = {"Pearson with teacher": lambda r: r.pearson_to_teacher}
    head = ["model", run.metrics[0], "seeds", "retained of teacher", *agreement]
    head += ["parameters", "size", "MFLOP", "latency", "memory"]
    rows = []
    for p in points:
        cells = [f"{p.name} *" if p.on_front else p.name, f"{p.metric:.4f}", str(len(p.results))]
        cells += [percent(p.mean(of)) for of in (lambda r: r.retained, *agreement.values())]
        memory = p.mean(lambda r: r.costs.peak_bytes)
        cells += [f"{p.results[0].parameters / 1e6:.1f} M", f"{p.results[0].bytes / 1e6:,.0f} MB"]
        cells += [f"{p.flops / 1e6:,.0f}", f"{p.mean(lambda r: r.costs.latency.p50):.2f} ms"]
        rows.append([*cells, f"{memory / 1e6:,.0f} MB" if memory else "-"])
    return (
        f"{run.task.name}, {run.about.split}, {run.about.rows:,} rows; fewest operations first. * marks the Pareto "
        f"front: no model with as few operations is as good.\n\n{form(head, rows)}"
    )
