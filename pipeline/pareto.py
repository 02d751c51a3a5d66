"""All students of all finished runs that answer the same rows, in one table: what each costs for what it reaches."""

import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from pipeline.finished import FinishedRun
from pipeline.render import metric_name

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

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


def write_pareto(runs: list[FinishedRun], target: Path) -> str:
    """The table of runs on the same rows; it is also written to `<target>.md`, and drawn in `<target>.png`."""
    points = points_of(runs)
    text = _table(points, runs[0])
    target.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    _draw(points, metric_name(runs[0].metrics[0]), target.with_suffix(".png"))
    return text


def points_of(runs: list[FinishedRun]) -> list[Point]:
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


def _table(points: list[Point], run: FinishedRun) -> str:
    loyal = {"label_loyalty": "same label", "probability_loyalty": "probability"}
    if not run.about["labels"]:
        loyal = {"pearson_to_teacher": "Pearson to the teacher"}
    head = ["", "model", run.metrics[0], "seeds", "kept", *loyal.values()]
    head += ["parameters", "size", "MFLOP", "latency", "memory"]
    lines = [
        f"{run.task['name']}, {run.about['split']}, {run.about['rows']:,} rows; fewest operations first, * marks what "
        "nothing of as few operations surpasses",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for p in points:
        cells = ["*" if p.best else "", p.name, f"{p.mean('metric'):.4f}", str(len(p.measured))]
        cells += [_share(p.mean(key)) for key in ("kept", *loyal)]
        memory = p.mean("peak_bytes")
        cells += [f"{p.mean('parameters') / 1e6:.1f} M", f"{p.mean('bytes') / 1e6:,.0f} MB"]
        cells += [f"{p.mean('flops') / 1e6:,.0f}", f"{p.mean('latency_ms'):.2f} ms"]
        lines.append(f"| {' | '.join([*cells, f'{memory / 1e6:,.0f} MB' if memory else '-'])} |")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _draw(points: list[Point], metric: str, target: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 5))
    best = [p for p in points if p.best]
    for group, colour, size in ((points, "#b0b0b0", 28), (best, "#4c78a8", 44)):
        places = [(p.mean("flops") / 1e6, p.mean("metric")) for p in group]
        axes.scatter(*zip(*places, strict=True), s=size, color=colour, linewidth=0, zorder=3)
    line = [(p.mean("flops") / 1e6, p.mean("metric")) for p in best]
    axes.step(*zip(*line, strict=True), where="post", color="#4c78a8", linewidth=1)
    for p in best:
        place = (p.mean("flops") / 1e6, p.mean("metric"))
        axes.annotate(p.name, place, xytext=(5, -11), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("operations for a row of mean length, MFLOP")
    axes.set_ylabel(metric)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(target, dpi=130)
    pyplot.close(figure)
