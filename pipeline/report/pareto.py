"""All students of all finished runs that answer the same rows, in one table: what each costs for what it reaches."""

import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report.png_plots import write_front
from pipeline.report.run_record import RunRecord
from pipeline.report.tables import markdown_table
from pipeline.report.templates import metric_name

SEED = re.compile(r"-seed\d+$")


@dataclass
class Point:
    """One model, the mean over its seeds.

    Attributes:
        name: run (without its seed) and model.
        measured: what `evaluate` measured, one entry a seed.
        best: no other reaches as much for as few operations.
    """

    name: str
    measured: list[dict[str, Any]]
    best: bool = False

    def mean(self, key: str) -> float | None:
        """The mean of a number over the seeds; None where it was not measured."""
        values = [entry.get(key) for entry in self.measured]
        return None if None in values else statistics.mean(values)


def write_pareto(runs: list[RunRecord], target: Path) -> str:
    """The table of runs on the same rows; it is also written to `<target>.md`, and drawn in `<target>.png`."""
    points = points_of(runs)
    text = _table(points, runs[0])
    target.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    places = [(p.name, p.mean("flops") / 1e6, p.mean("metric"), p.best) for p in points]
    x, y = "operations for a row of mean length, MFLOP", metric_name(runs[0].metrics[0])
    write_front(places, x, y, target.with_suffix(".png"))
    return text


def points_of(runs: list[RunRecord]) -> list[Point]:
    """The models, fewest operations first. A teacher or student that several runs share stands there once."""
    found: dict[str, Point] = {}
    for run in runs:
        for model in run.models:
            name = "teacher" if model == "teacher" else f"{SEED.sub('', run.name)}: {model}"
            found.setdefault(name, Point(name, [])).measured.append(run.results[model])
    points = sorted(found.values(), key=lambda p: (p.mean("flops"), -p.mean("metric")))
    reached = float("-inf")
    for point in points:
        point.best = point.mean("metric") > reached
        reached = max(reached, point.mean("metric"))
    return points


def _table(points: list[Point], run: RunRecord) -> str:
    loyal = {"label_loyalty": "same label", "probability_loyalty": "probability"}
    if not run.about["labels"]:
        loyal = {"pearson_to_teacher": "Pearson to the teacher"}
    head = ["", "model", run.metrics[0], "seeds", "retained", *loyal.values()]
    head += ["parameters", "size", "MFLOP", "latency", "memory"]
    rows = []
    for p in points:
        cells = ["*" if p.best else "", p.name, f"{p.mean('metric'):.4f}", str(len(p.measured))]
        cells += [_share(p.mean(key)) for key in ("retained", *loyal)]
        memory = p.mean("peak_bytes")
        cells += [f"{p.mean('parameters') / 1e6:.1f} M", f"{p.mean('bytes') / 1e6:,.0f} MB"]
        cells += [f"{p.mean('flops') / 1e6:,.0f}", f"{p.mean('latency_ms'):.2f} ms"]
        rows.append([*cells, f"{memory / 1e6:,.0f} MB" if memory else "-"])
    return (
        f"{run.task['name']}, {run.about['split']}, {run.about['rows']:,} rows; fewest operations first, * marks what "
        f"nothing of as few operations surpasses\n\n{markdown_table(head, rows)}"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
