"""The tables that commands print and summaries contain. docs/report.md explains each number."""

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

from pipeline.report.run_record import RunRecord, title
from stages.evaluation.results import Interval, ModelResult, read_results

WIDTH = 120
"""Columns of a table that is not printed to a terminal."""

MAX_CONFUSION_CLASSES = 12
"""Confusion matrices of more classes are shown in the report alone."""


TableFormat = Callable[[list[str], list[list[str]]], str]
"""`terminal_table` or `markdown_table`."""


def terminal_table(head: list[str], rows: list[list[str]]) -> str:
    """Format a plain-text table: the first column aligned left, the others right.

    Columns that do not fit the terminal follow in further blocks, each of which repeats the first column.
    """

    def text(columns: list[int]) -> str:
        # The head is a row like any other: tabulate would make each column two wider than its heading.
        cells = [[row[i] for i in columns] for row in (head, *rows)]
        align = ("left", *["right"] * (len(columns) - 1))
        lines = tabulate(cells, tablefmt="plain", disable_numparse=True, colalign=align).splitlines()
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    width, blocks, shown = shutil.get_terminal_size((WIDTH, 24)).columns, [], [0]
    for column in range(1, len(head)):
        if len(shown) > 1 and len(text([*shown, column]).splitlines()[1]) > width:
            blocks.append(text(shown))
            shown = [0]
        shown.append(column)
    return "\n\n".join([*blocks, text(shown)])


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Format a table as Markdown."""
    return tabulate(rows, head, "github", disable_numparse=True)


def results_table(run: RunRecord) -> str:
    """All that `evaluate` measured of a run."""
    blocks = [_quality(run), _agreement(run), _costs(run)]
    blocks += _classes(run) if run.about.labels else []
    return "\n\n".join([*blocks, _examples(run)])


def runs_table(runs: list[RunRecord]) -> str:
    """The students that several runs are about, a row each."""
    head = ["student of run", "metric", "value (95% CI)", "retained of teacher", "params", "size", "latency"]
    rows = []
    for run in runs:
        r, metric = run.student, run.metrics[0]
        rows.append(
            [run.name, metric, with_interval(r.metric, r.intervals[metric]), percent(r.retained), *_size(r)]
        )
        rows[-1].append(f"{r.costs.latency.p50:.2f} ms")
    return terminal_table(head, rows)


def seeds_table(runs: list[Path]) -> str:
    """Mean and standard deviation of each model over the runs of several seeds; empty if a run was not evaluated."""
    files = [run / "results.json" for run in runs]
    if not all(file.is_file() for file in files):
        return ""
    found, rows = [read_results(file) for file in files], []
    for name in found[0]:
        values = [results[name].metric for results in found]
        retained = [r[name].retained for r in found if name != "teacher" and r[name].retained is not None]
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        mean = percent(statistics.mean(retained)) if retained else "-"
        lowest = percent(min(retained)) if retained else "-"
        rows.append([title(name), f"{statistics.mean(values):.4f}", spread, mean, lowest])
    head = ["model", "mean", "std", "retained of teacher", "lowest"]
    return f"over {len(runs)} seeds: {', '.join(run.name for run in runs)}\n\n{terminal_table(head, rows)}"


def percent(value: float | None) -> str:
    """A ratio in percent, "-" for None."""
    return "-" if value is None else f"{value:.1%}"


def with_interval(value: float, interval: Interval) -> str:
    """A metric and its confidence interval."""
    return f"{value:.4f} ({interval[0]:.4f}–{interval[1]:.4f})"


def _size(result: ModelResult) -> list[str]:
    return [f"{result.parameters / 1e6:.1f} M", f"{result.bytes / 1e6:,.0f} MB"]


def _quality(run: RunRecord) -> str:
    about, shown = run.about, run.metrics[:2]
    words = f"{about.words:,} words of " if about.words else ""
    rows = []
    for name in run.models:
        r = run.results[name]
        cells = [with_interval(r.scores[metric], r.intervals[metric]) for metric in shown]
        retained = "-"
        if r.retained is not None and r.retained_interval and name != "teacher":
            low, high = r.retained_interval
            retained = f"{r.retained:.1%} ({low:.1%}–{high:.1%})"
        rows.append([title(name), *cells, retained])
    head = ["model", *(f"{metric} (95% CI)" for metric in shown), "retained of teacher (95% CI)"]
    return (
        f"{about.selection} on {about.split}: {words}{about.rows:,} rows; the best constant prediction reaches "
        f"{about.constant:.4f}\n\n{terminal_table(head, rows)}"
    )


def _agreement(run: RunRecord) -> str:
    """How close each model is to the teacher, and its calibration."""
    models = [(title(name), run.results[name]) for name in run.models]
    if run.about.labels is None:
        rows = [[name, f"{r.pearson_to_teacher:.4f}"] for name, r in models[1:]]
        return f"agreement with teacher\n\n{terminal_table(['model', 'Pearson correlation'], rows)}"
    head = ["model", "same label", "probability loyalty", "ECE", "ECE, scaled", "temperature"]
    rows = []
    for name, r in models:
        c = r.calibration
        scaled = ["-", "-"]
        if c.temperature is not None:
            scaled = [f"{c.error_scaled:.4f}", f"{c.temperature:.2f}"]
        rows.append(
            [name, percent(r.label_loyalty), percent(r.probability_loyalty), f"{c.error:.4f}", *scaled]
        )
    return f"agreement with teacher, and calibration\n\n{terminal_table(head, rows)}"


def _costs(run: RunRecord) -> str:
    head = ["model", "params", "size", "MFLOP", "memory", "p50 ms", "p90 ms", "p99 ms", "speed-up", "rows/s"]
    teacher, rows = run.teacher.costs, []
    for name in run.models:
        r, c = run.results[name], run.results[name].costs
        memory = f"{c.peak_bytes / 1e6:,.0f} MB" if c.peak_bytes else "-"
        times = [f"{value:.2f}" for value in (c.latency.p50, c.latency.p90, c.latency.p99)]
        faster = f"{teacher.latency.p50 / c.latency.p50:.1f}x"
        cells = [f"{r.flops / 1e6:,.0f}", memory, *times, faster, f"{c.rows_per_second:,.0f}"]
        rows.append([title(name), *_size(r), *cells])
    lengths = teacher.lengths
    return (
        f"cost of inference: fp32 on the CPU, {teacher.threads} threads\n"
        f"latency (p50, p90, p99) and speed-up: one row of {lengths.least} to {lengths.most} tokens, mean "
        f"{lengths.mean:.0f}\nrows/s and memory: 32 rows at once\n\n{terminal_table(head, rows)}"
    )


def _classes(run: RunRecord) -> list[str]:
    labels, student, teacher = run.about.labels, run.student, run.teacher
    rows = [
        [
            _short(label, 35),
            f"{s.rows:,}",
            f"{s.precision:.3f}",
            f"{s.recall:.3f}",
            f"{s.f1:.3f}",
            f"{t.f1:.3f}",
        ]
        for label, s, t in zip(labels, student.classes, teacher.classes, strict=True)
    ]
    head = ["class", "rows", "precision", "recall", "F1", "teacher's F1"]
    blocks = [f"classes: scores of the student\n\n{terminal_table(head, rows)}"]
    if len(labels) <= MAX_CONFUSION_CLASSES:
        rows = [
            [_short(label, 35), *(f"{count:,}" for count in counts)]
            for label, counts in zip(labels, student.confusion, strict=True)
        ]
        matrix = terminal_table(["gold", *(_short(label, 12) for label in labels)], rows)
        blocks.append(f"confusion of the student: gold labels down, predicted labels across\n\n{matrix}")
    return blocks


def _examples(run: RunRecord) -> str:
    labels, lines = run.about.labels, ["rows on which student and teacher differ most", ""]
    for row in run.student.differ_most[:3]:
        gold = _short(labels[int(row.label)], 16) if labels else f"{row.label:.2f}"
        lines.append(f"  {_short(' / '.join(row.texts), 78)}")
        lines.append(
            f"    student {_prediction(row.student, labels)}; teacher {_prediction(row.teacher, labels)}; gold {gold}"
        )
    return "\n".join(lines)


def _prediction(values: list[float], labels: list[str] | None) -> str:
    """The predicted label and its probability, or the score."""
    if labels is None:
        return f"{values[0]:.2f}"
    best = max(range(len(values)), key=values.__getitem__)
    return f"{_short(labels[best], 16)} {values[best]:.0%}"


def _short(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
