"""Pictures that stand by themselves, as PNG: the students of a recipe, and what models cost for what they reach."""

import statistics
from pathlib import Path

import matplotlib

from pipeline.config.recipe import Recipe
from pipeline.report.run_record import RunRecord
from pipeline.report.templates import metric_name

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

DOT, MEAN, BASE = "#4c78a8", "#1b1b1b", "#b0b0b0"


def write_students(recipe: Recipe, runs: list[RunRecord], target: Path) -> None:
    """A point for every student and seed, and their means: of a grid a panel for each factor, else one panel."""
    groups = recipe.grid_values or {"": {name: [name] for name in recipe.shown}}
    wide = [max(2.2, 1.15 * len(levels)) for levels in groups.values()]
    figure, panels = pyplot.subplots(
        1, len(groups), figsize=(sum(wide) + 1, 4), width_ratios=wide, sharey=True, squeeze=False
    )
    for axes, (factor, levels) in zip(panels[0], groups.items(), strict=True):
        for place, names in enumerate(levels.values()):
            values = [run.results[name].metric for run in runs for name in names]
            shift = [0.24 * ((i + 0.5) / max(len(values), 1) - 0.5) for i in range(len(values))]
            axes.scatter([place + x for x in shift], values, s=22, color=DOT, alpha=0.55, linewidth=0)
            if values:
                axes.hlines(statistics.mean(values), place - 0.28, place + 0.28, color=MEAN, linewidth=2)
        axes.set_xticks(range(len(levels)), levels, rotation=30, ha="right")
        axes.set_title(factor, fontsize=11)
        _plain(axes, "y")
        if recipe.baseline:
            mean = statistics.mean(run.results[recipe.baseline].metric for run in runs)
            axes.axhline(mean, color=BASE, linestyle="--", linewidth=1, zorder=0)
    panels[0][0].set_ylabel(metric_name(runs[0].metrics[0]))
    dashed = f"; dashed: {recipe.baseline}" if recipe.baseline else ""
    figure.suptitle(f"{recipe.name}: points are students and seeds, bars their means{dashed}", fontsize=11)
    _save(figure, target)


def write_front(points: list[tuple[str, float, float, bool]], x: str, y: str, target: Path) -> None:
    """Points (name, x, y, whether it is on the front), x on a logarithmic scale; the front is named and drawn as steps."""
    figure, axes = pyplot.subplots(figsize=(8, 5))
    front = [point for point in points if point[3]]
    for group, colour, size in ((points, BASE, 28), (front, DOT, 44)):
        axes.scatter(
            [p[1] for p in group], [p[2] for p in group], s=size, color=colour, linewidth=0, zorder=3
        )
    axes.step([p[1] for p in front], [p[2] for p in front], where="post", color=DOT, linewidth=1)
    for name, *place, _ in front:
        axes.annotate(name, place, xytext=(5, -11), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(x=0.15)
    _plain(axes)
    _save(figure, target)


def _plain(axes: Axes, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e4e4e4")
    axes.set_axisbelow(True)


def _save(figure: Figure, target: Path) -> None:
    figure.tight_layout()
    figure.savefig(target, dpi=130)
    pyplot.close(figure)
