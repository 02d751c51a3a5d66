"""The pictures of the report: SVG to stand in the page itself, in the page's own colours, light or dark.

Matplotlib draws with a stand-in for each colour of the page's style sheet; `_svg` puts the style sheet's name in
its place. A unit of a picture is about a pixel.
"""

import io
import re
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from stages.evaluation.results import Calibration, Interval

Points = list[tuple[float, float]]

NAMES = (
    "ink",
    "muted",
    "line",
    "card",
    "student",
    "teacher",
    "baseline",
    "third",
    "fourth",
    "fifth",
    "sixth",
)
COLOURS = {name: f"#0{i:x}0{i:x}0{i:x}" for i, name in enumerate(NAMES, 1)}
SERIES = ("student", "teacher", "third", "fourth", "fifth", "sixth")
"""Colours of lines, in their order."""
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 11, "font.family": "sans-serif",
    "text.color": COLOURS["muted"], "axes.labelcolor": COLOURS["muted"], "axes.labelsize": 11,
    "xtick.color": COLOURS["muted"], "ytick.color": COLOURS["muted"], "xtick.labelsize": 10, "ytick.labelsize": 10,
    "axes.edgecolor": COLOURS["line"], "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": COLOURS["line"], "grid.linewidth": 0.7, "axes.axisbelow": True,
    "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 1.6, "legend.frameon": False,
    "legend.fontsize": 10, "legend.borderaxespad": 0.2, "legend.handlelength": 1.2, "legend.columnspacing": 1.2,
}  # fmt: skip
MOST_POINTS = 150


def curves(losses: dict[str, Points], dev: dict[str, Points], colours: dict[str, str], title: str) -> Markup:
    """Losses over steps, and below them the scores on dev with the best one ringed; a colour for each name."""
    with rc_context(STYLE):
        figure = _figure(300, 225)
        if dev:
            upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
            figure.get_layout_engine().set(hspace=0.09)
        else:
            upper = lower = figure.subplots()
        values = [value for points in losses.values() for _, value in points]
        for name, points in losses.items():
            upper.plot(*zip(*_thinned(points), strict=True), color=COLOURS[colours[name]], label=_plain(name))
        if values and min(values) > 0 and max(values) > 5 * min(values):
            _logarithmic(upper)
        else:
            upper.yaxis.set_major_locator(MaxNLocator(4))
        upper.set_ylabel("loss")
        if len(losses) > 1:
            legend = upper.legend(
                loc="lower left", bbox_to_anchor=(0, 1.02), ncols=2, labelcolor="linecolor",
                handlelength=0, handletextpad=0,
            )  # fmt: skip
            for handle in legend.legend_handles:
                handle.set_visible(False)  # the names have the colours
        for name, points in dev.items():
            colour = COLOURS[colours[name]]
            lower.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3.5)
            lower.plot(
                *max(points, key=lambda p: p[1]), color=colour, marker="o", markersize=8, fillstyle="none"
            )
        if dev:
            lower.set_ylabel("dev")
            lower.margins(y=0.25)
            lower.yaxis.set_major_locator(MaxNLocator(3))
            figure.align_ylabels()
        lower.set_xlabel("step")
        lower.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        return _svg(figure, f"Loss curves of {title}")


@dataclass(frozen=True)
class Point:
    """A model in a plot of quality against cost; `colour` is one of NAMES, `interval` that of y."""

    label: str
    colour: str
    x: float
    y: float
    interval: Interval


def scatter(points: list[Point], others: Points, x_label: str, y_label: str) -> Markup:
    """Quality against cost; `others` are points of other runs, in grey."""
    with rc_context(STYLE):
        figure = _figure(380, 270)
        axes = figure.subplots()
        if others:
            axes.scatter(*zip(*others, strict=True), s=30, color=COLOURS["muted"], alpha=0.45, linewidth=0)
        for point in points:
            colour = COLOURS[point.colour]
            axes.plot([point.x] * 2, point.interval, color=colour, linewidth=1.4, alpha=0.6)
            axes.scatter(point.x, point.y, s=60, color=colour, linewidth=0, zorder=3)
        seen = [p.x for p in points] + [x for x, _ in others]
        axes.set_xlim(0, 1.15 * max(seen))
        axes.margins(y=0.12)
        _label(axes, points)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        return _svg(figure, f"{y_label} against {x_label}")


def reliability(calibration: Calibration, colour: str, title: str) -> Markup:
    """Accuracy of the rows of each bin of confidence; on the diagonal a model is as right as it says."""
    with rc_context(STYLE):
        figure = _figure(380, 270)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)))
        bins, scaled = calibration.bins, calibration.bins_scaled
        rows = max(b.rows for b in bins)
        shown = [(bins, "as it is", "full")] + ([(scaled, "scaled", "none")] if scaled else [])
        for some, name, fill in shown:
            x, y = [b.confidence for b in some], [b.accuracy for b in some]
            style = {"facecolor": COLOURS[colour] if fill == "full" else COLOURS["card"]}
            axes.plot(x, y, color=COLOURS[colour], linewidth=1, alpha=0.5)
            axes.scatter(
                x, y, s=[20 + 120 * b.rows / rows for b in some], edgecolor=COLOURS[colour], zorder=3,
                label=name, linewidth=1.3, **style,
            )  # fmt: skip
        least = min(b.confidence for b in bins)
        axes.set_xlim(max(0, least - 0.05), 1.03)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        if scaled:
            legend = axes.legend(loc="lower right", labelcolor=COLOURS["muted"])
            for handle in legend.legend_handles:
                handle.set_sizes([40])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure, f"Calibration of {title}")


def _figure(width: int, height: int) -> Figure:
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def _thinned(points: Points) -> Points:
    """Neighbours averaged, where there are more points than a small picture shows."""
    size = -(-len(points) // MOST_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(sum(values) / len(part) for values in zip(*part, strict=True)) for part in parts]


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label(axes: Axes, points: list[Point]) -> None:
    """Names beside the points, those of points at one height and place moved apart."""
    taken: list[float] = []
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    apart = (high - low) / 15
    for point in sorted(points, key=lambda p: -p.y):
        y = point.y
        while any(abs(y - other) < apart for other in taken):
            y -= apart / 4
        taken.append(y)
        inner = point.x > 0.6 * right
        near = [p.x for p in points if abs(p.y - y) < apart and abs(p.x - point.x) < 0.08 * right]
        x = min(near, default=point.x) if inner else max(near, default=point.x)
        axes.annotate(
            _plain(point.label), (x, y), (-9 if inner else 9, 0), textcoords="offset points",
            ha="right" if inner else "left", va="center", color=COLOURS[point.colour],
        )  # fmt: skip


def _plain(name: str) -> str:
    """Text as it is, for matplotlib: no formulas between dollars, no leading underscore that hides it."""
    return name.replace("_", " ").replace("$", r"\$").strip()


def _svg(figure: Figure, title: str) -> Markup:
    """The picture as an element of the page, named for who cannot see it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # known to the page's parser
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-z0-9.]+_[\d_]+"', "", text)  # of groups; the same in every picture
    text = re.sub(r" ?font-family: [^;\"]*;?", "", text)  # the page's
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', text)[0]
    label = Markup.escape(title)
    return Markup(re.sub(r"<svg[^>]*>", f'<svg {box} role="img" aria-label="{label}">', text, count=1))
