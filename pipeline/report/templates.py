"""Render the templates of `pages/`. All text from data is escaped."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.run_record import millions, title, written

COLOURS = {
    "paper": "#faf9f7", "card": "#ffffff", "ink": "#1c1f24", "muted": "#666c75", "line": "#e4e1db",
    "student": "#0f766e", "teacher": "#b4540a", "baseline": "#7a7f88", "third": "#5b54c9", "fourth": "#b8336a",
    "fifth": "#2f6fc4", "sixth": "#6f7d1c", "good": "#2f7d32", "bad": "#b3261e",
}  # fmt: skip
"""The colours of plots, and of pages in light mode."""

METRICS = {
    "agreement": "agreement with the teacher",
    "subset_agreement": "agreement with all of the teacher's labels",
    "map": "mean average precision over questions",
    "mrr": "mean reciprocal rank",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
}
"""The display names of metrics that their own names do not spell out."""


def page(template: str, **values: Any) -> str:
    """Render an HTML page."""
    return _render(template, values, autoescape=True)


def markdown(template: str, **values: Any) -> str:
    """Render Markdown text. Only values of type Markup are not escaped."""
    return _render(template, values, finalize=_plain)


def metric_name(metric: str) -> str:
    """The display name of a metric."""
    return METRICS.get(metric) or metric.replace("_", " ").replace("f1", "F1")


def _render(template: str, values: dict[str, Any], **escaping: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "pages"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, **escaping,
    )  # fmt: skip
    environment.filters |= {
        "percent": lambda value: f"{value:.1%}",
        "number": lambda value: f"{value:.4f}",
        "million": lambda value: f"{millions(value, 1)} M",
        "megabytes": lambda value: f"{millions(value)} MB",
        "times": lambda value: f"{value:.1f}×",
        "minutes": lambda value: f"{value / 60:.1f}",
        "metric": metric_name,
        "option": lambda value: written(value) or "none",
    }
    return environment.get_template(template).render(title=title, colours=COLOURS, **values)


def _plain(value: Any) -> Any:
    """Escape text for Markdown and HTML, on one line."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return re.sub(r"([\\`*_{}\[\]<>&#|~])", r"\\\1", " ".join(value.split()))
