"""The plots of the report pages (SVG) and of the recipe and Pareto summaries (PNG): matplotlib, in one style."""

import base64
import io
import statistics
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.report.templates import COLOURS
from stages.evaluation.results import Calibration, Interval

Points = list[tuple[float, float]]

SERIES = ("student", "teacher", "third", "fourth", "fifth", "sixth")
"""Colours of lines, in the order of use."""

FAINT = f"{COLOURS['baseline']}40"
"""Of axes and grid: translucent, so that it shows in dark mode too."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 11, "font.family": "sans-serif",
    "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["muted"], "axes.titlesize": 11, "figure.titlesize": 11,
    "xtick.color": COLOURS["muted"], "ytick.color": COLOURS["muted"], "xtick.labelsize": 10, "ytick.labelsize": 10,
    "axes.edgecolor": FAINT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.7, "axes.axisbelow": True,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "axes.formatter.useoffset": False, "lines.linewidth": 1.6, "scatter.edgecolors": "none",
    "legend.frameon": False, "legend.fontsize": 10, "legend.labelcolor": COLOURS["muted"],
    "legend.handlelength": 1.0, "legend.columnspacing": 1.2, "legend.borderaxespad": 0.2,
    "figure.facecolor": COLOURS["card"], "axes.facecolor": "none",
}  # fmt: skip

MAX_POINTS = 150
"""Longer curves are averaged down to this many points."""


@dataclass(frozen=True)
class Point:
    """A model in a plot of quality against cost; `colour` is a name, `interval` that of y."""

    label: str
    colour: str
    x: float
    y: float
    interval: Interval


def loss_curves(
    losses: dict[str, Points], dev: dict[str, Points], colours: dict[str, str], stage: str
) -> Markup:
    """Plot losses over steps, and below them the scores on dev with the best one ringed; a colour for each name."""
    with rc_context(STYLE):
        figure = _figure(4.2, 3.2)
        if dev:
            upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        else:
            upper = lower = figure.subplots()
        values = [value for points in losses.values() for _, value in points]
        for name, points in losses.items():
            averaged = _averaged(points)
            marker = "o" if len(averaged) == 1 else None  # a line through one point would not be seen
            upper.plot(
                *zip(*averaged, strict=True), color=COLOURS[colours[name]], label=_plain(name), marker=marker
            )
        if min(values) > 0 and max(values) > 5 * min(values):
            _logarithmic(upper, "y")
        upper.set_ylabel("loss")
        if len(losses) > 1:
            upper.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2)
        for name, points in dev.items():
            style = {"color": COLOURS[colours[name]], "marker": "o"}
            lower.plot(*zip(*points, strict=True), markersize=3.5, **style)
            lower.plot(*max(points, key=lambda point: point[1]), markersize=8, fillstyle="none", **style)
        if dev:
            lower.set_ylabel("dev score")
            lower.margins(y=0.25)
            lower.yaxis.set_major_locator(MaxNLocator(3))
            figure.align_ylabels()
        lower.set_xlabel("step")
        lower.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        return _svg(figure, f"Loss curves of {stage}")


def quality_against_cost(points: list[Point], others: Points, x_label: str, y_label: str) -> Markup:
    """Plot models with their confidence intervals; `others` are points of other runs, in grey."""
    with rc_context(STYLE):
        figure = _figure(5.2, 3.6)
        axes = figure.subplots()
        axes.scatter([x for x, _ in others], [y for _, y in others], s=30, color=COLOURS["muted"], alpha=0.45)
        for p in points:
            axes.plot([p.x, p.x], p.interval, color=COLOURS[p.colour], alpha=0.6)
            axes.scatter(p.x, p.y, s=60, color=COLOURS[p.colour], zorder=3)
        axes.set_xlim(0, 1.15 * max([p.x for p in points] + [x for x, _ in others]))
        axes.margins(y=0.12)
        _name(axes, [(p.label, p.x, p.y, COLOURS[p.colour]) for p in points])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure, f"{y_label} against {x_label}")


def reliability(calibration: Calibration, colour: str, model: str, accuracy: str) -> Markup:
    """Plot the accuracy of each bin of confidence, labelled `accuracy`; the diagonal is perfect calibration."""
    with rc_context(STYLE):
        figure = _figure(5.2, 3.6)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle="--")
        largest = max(b.rows for b in calibration.bins)
        for bins, label, fill in (
            (calibration.bins, "as predicted", COLOURS[colour]),
            (calibration.bins_scaled or [], "temperature-scaled", COLOURS["card"]),
        ):
            x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
            sizes = [20 + 120 * b.rows / largest for b in bins]
            axes.plot(x, y, color=COLOURS[colour], linewidth=1, alpha=0.5)
            axes.scatter(
                x, y, s=sizes, label=label, facecolor=fill, edgecolor=COLOURS[colour], linewidth=1.3, zorder=3
            )
        if calibration.bins_scaled:
            for handle in axes.legend(loc="lower right").findobj(PathCollection):
                handle.set(sizes=[40])
        axes.set_xlim(max(0, min(b.confidence for b in calibration.bins) - 0.05), 1.03)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("confidence")
        axes.set_ylabel(accuracy)
        return _svg(figure, f"Calibration of {model}")


def write_students(
    groups: dict[str, dict[str, list[float]]],
    baseline: tuple[str, float] | None,
    metric: str,
    title: str,
    target: Path,
) -> None:
    """Plot a point for every student and seed, and bars at their means, as PNG.

    Args:
        groups: panel -> label -> metrics of the students with that label; a grid has a panel for each option.
        baseline: name and mean of the baseline, drawn as a dashed line.
        metric: label of the axis.
        title: above the panels.
    """
    with rc_context(STYLE):
        widths = [max(2.2, 1.15 * len(labels)) for labels in groups.values()]
        figure = _figure(sum(widths) + 1, 4)
        panels = figure.subplots(1, len(groups), width_ratios=widths, sharey=True, squeeze=False)[0]
        for axes, (panel, labels) in zip(panels, groups.items(), strict=True):
            for place, values in enumerate(labels.values()):
                x = [place + 0.24 * ((i + 0.5) / len(values) - 0.5) for i in range(len(values))]
                axes.scatter(x, values, s=24, color=COLOURS["student"], alpha=0.6)
                if values:
                    mean = statistics.mean(values)
                    axes.hlines(mean, place - 0.28, place + 0.28, color=COLOURS["ink"], linewidth=2)
            axes.set_xticks(range(len(labels)), map(_plain, labels), rotation=30, ha="right")
            axes.set_title(_plain(panel))
            axes.grid(visible=False, axis="x")
            if baseline:
                axes.axhline(baseline[1], color=COLOURS["baseline"], linestyle="--", linewidth=1, zorder=0)
        panels[0].set_ylabel(metric)
        note = f"; dashed: mean of {baseline[0]}" if baseline else ""
        figure.suptitle(f"{_plain(title)}: points are students and seeds, bars their means{_plain(note)}")
        figure.savefig(target, dpi=130)


def write_front(
    points: list[tuple[str, float, float, bool]], x_label: str, y_label: str, target: Path
) -> None:
    """Plot points (name, x, y, whether on the Pareto front) as PNG, x on a logarithmic scale; the front is named."""
    with rc_context(STYLE):
        figure = _figure(8, 5)
        axes = figure.subplots()
        front = [point for point in points if point[3]]
        for group, colour, size in ((points, "baseline", 30), (front, "student", 60)):
            axes.scatter(
                [p[1] for p in group], [p[2] for p in group], s=size, color=COLOURS[colour], zorder=3
            )
        axes.step([p[1] for p in front], [p[2] for p in front], where="post", color=COLOURS["student"])
        _logarithmic(axes, "x")
        axes.margins(x=0.15)
        _name(axes, [(name, x, y, COLOURS["ink"]) for name, x, y, _ in front], raised=10)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        figure.savefig(target, dpi=130)


def series_colours(names: list[str]) -> dict[str, str]:
    """A colour for each line."""
    return dict(zip(names, cycle(SERIES), strict=False))


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _averaged(points: Points) -> Points:
    size = -(-len(points) // MAX_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(sum(values) / len(part) for values in zip(*part, strict=True)) for part in parts]


def _logarithmic(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _name(axes: Axes, points: list[tuple[str, float, float, str]], raised: int = 0) -> None:
    """Write each name beside its point (name, x, y, colour), or `raised` pt above; names at one height are moved apart."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # places the axes
    to_points = 72 / figure.dpi
    left, right = axes.get_window_extent().intervalx
    taken: list[float] = []
    for name, x, y, colour in sorted(points, key=lambda point: -point[2]):
        across, height = axes.transData.transform((x, y))
        lowered = -raised
        while any(abs(height * to_points - lowered - other) < 13 for other in taken):
            lowered += 3
        taken.append(height * to_points - lowered)
        inner = across > left + 0.6 * (right - left)
        axes.annotate(
            _plain(name), (x, y), (-9 if inner else 9, -lowered),
            textcoords="offset points", ha="right" if inner else "left", va="center", color=colour,
        )  # fmt: skip


def _plain(name: str) -> str:
    """Text that matplotlib shows as it is: no formula between dollars, no leading underscore that hides a label."""
    return name.replace("_", " ").replace("$", r"\$").strip()


def _svg(figure: Figure, title: str) -> Markup:
    """The plot as an element of the page. In dark mode the page's style sheet inverts it."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    image = base64.b64encode(file.getvalue()).decode()
    return Markup('<img src="data:image/svg+xml;base64,{}" alt="{}">').format(image, title)
