"""The tables that commands print, and that summaries and pages contain. docs/report.md explains each number."""

import shutil
import statistics
from pathlib import Path

from tabulate import tabulate

from pipeline.report.run_record import RunRecord, millions, read_run_record
from stages.evaluation.results import Interval, ModelResult

WIDTH = 120
"""Columns of a table that is not printed to a terminal."""

MAX_CONFUSION_CLASSES = 12
"""Confusion matrices of more classes are shown in the report alone."""


Rows = list[dict[str, str]]
"""Of a table: heading -> cell."""


def terminal_table(rows: Rows) -> str:
    """Format a plain-text table: the first column aligned left, the others right.

    Columns that do not fit the terminal follow in further blocks, each of which repeats the first column.
    """

    def text(columns: list[str]) -> str:
        # The head is a row like any other: tabulate would make each column two wider than its heading.
        cells = [columns, *([row[column] for column in columns] for row in rows)]
        align = ("left", *["right"] * (len(columns) - 1))
        lines = tabulate(cells, tablefmt="plain", disable_numparse=True, colalign=align).splitlines()
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    first, *others = rows[0]
    width, blocks, shown = shutil.get_terminal_size((WIDTH, 24)).columns, [], [first]
    for column in others:
        if len(shown) > 1 and len(text([*shown, column]).splitlines()[1]) > width:
            blocks.append(text(shown))
            shown = [first]
        shown.append(column)
    return "\n\n".join([*blocks, text(shown)])


def markdown_table(rows: Rows) -> str:
    """Format a table as Markdown."""
    return tabulate(rows, "keys", "github", disable_numparse=True)


def results_table(run: RunRecord) -> str:
    """All that `evaluate` measured of a run."""
    blocks = [_quality(run), _agreement(run), _costs(run)]
    blocks += _classes(run) if run.kind.class_names else []
    blocks += [_answers(run)] if run.about.answers else []
    return "\n\n".join([*blocks, _examples(run)])


def notes_of(runs: list[RunRecord]) -> list[str]:
    """Which class F1 is of, and which runs were timed on a busy machine; each names its runs unless it holds for all."""
    of: dict[str, list[str]] = {}
    for run in runs:
        for note in filter(None, (run.f1_note, run.busy_note)):
            of.setdefault(note, []).append(run.name)
    return [note if len(names) == len(runs) else f"{', '.join(names)}: {note}" for note, names in of.items()]


OTHER_ROWS = "warning: other metrics, or other rows: these numbers cannot be compared"


def runs_table(runs: list[RunRecord]) -> str:
    """The students that several runs are about, a row each."""
    rows = []
    for run in runs:
        r, metric = run.student, run.metrics[0]
        value = with_interval(r.metric, r.intervals[metric])
        row = {"student of run": run.name, "metric": metric, "value (95% CI)": value}
        costs = cost_cells([r])
        row |= {f"retained of {runs[0].reference}": percent(r.retained)}
        rows.append(row | {column: costs[column] for column in ("params", "size", "latency")})
    warning = [] if all(run.same_rows(runs[0]) for run in runs) else [OTHER_ROWS]
    return "\n".join([terminal_table(rows), *warning, *notes_of(runs)])


def seeds_table(runs: list[Path]) -> str:
    """Mean and standard deviation of each model over the runs of several seeds; empty if a run was not evaluated."""
    if not all((run / "results.json").is_file() for run in runs):
        return ""
    records, rows = [read_run_record(run) for run in runs], []
    found = [record.results for record in records]
    for name in found[0]:
        values = [results[name].metric for results in found]
        retained = [kept for r in found if name != "teacher" and (kept := r[name].retained) is not None]
        rows.append({
            "model": records[0].title(name),
            "mean": f"{statistics.mean(values):.4f}",
            "std": f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-",
            f"retained of {records[0].reference}": percent(statistics.mean(retained) if retained else None),
            "lowest": percent(min(retained, default=None)),
        })  # fmt: skip
    title = f"{records[0].metrics[0]} over {len(runs)} seeds: {', '.join(run.name for run in runs)}"
    return "\n".join([title, "", terminal_table(rows), *notes_of(records)])


def tasks_table(runs: dict[str, list[Path]]) -> str:
    """The models of several tasks, a row for each task and their mean; each cell is over the seeds of a task, in percent.

    Args:
        runs: for each task, the directories of its runs, one for each seed.
    """
    records = {task: [read_run_record(run) for run in paths] for task, paths in runs.items()}
    models = list(dict.fromkeys(name for found in records.values() for name in found[0].models))
    rows, means = [], dict.fromkeys(models, 0.0)
    for task, found in records.items():
        row = {
            "task": task,
            "metric": found[0].metrics[0],
            "constant": f"{100 * found[0].about.constant:.1f}",
        }
        for name in models:
            values = [100 * record.results[name].metric for record in found]
            means[name] += statistics.mean(values) / len(records)
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            row[found[0].title(name)] = f"{statistics.mean(values):.1f}{spread}"
        rows.append(row)
    whole = means["teacher"]
    kept = {
        name: f" ({means[name] / whole:.1%})" if name != "teacher" and whole > 0 else "" for name in models
    }
    cells = [f"{means[name]:.1f}{kept[name]}" for name in models]
    rows.append(dict(zip(rows[0], ["mean (of the teacher's)", "", "", *cells], strict=True)))
    return terminal_table(rows)


def agreement_cells(results: list[ModelResult], reference: str = "teacher") -> dict[str, str]:
    """A model's agreement with the teacher, or with the encoder of its answers; the mean over its seeds."""

    def mean(values: list[float | None], form: str) -> str:
        known = [value for value in values if value is not None]
        return format(statistics.mean(known), form) if len(known) == len(values) else "-"

    if results[0].classes is not None:
        return {
            "same label": mean([r.label_loyalty for r in results], ".1%"),
            "probability loyalty": mean([r.probability_loyalty for r in results], ".1%"),
        }
    if {"exact_match", "mrr", "sequence_accuracy"} & results[0].scores.keys():
        return {"same answer": mean([r.label_loyalty for r in results], ".1%")}
    return {f"Pearson with {reference}": mean([r.pearson_to_teacher for r in results], ".4f")}


def calibration_cells(r: ModelResult) -> dict[str, str]:
    """How far a model's confidence is from its accuracy; nothing where its labels do not exclude each other."""
    if not (c := r.calibration):
        return {}
    scaled = c.temperature is not None
    return {
        "ECE": f"{c.error:.4f}",
        "ECE, scaled": f"{c.error_scaled:.4f}" if scaled else "-",
        "temperature": f"{c.temperature:.2f}" if scaled else "-",
    }


def agreement_row(run: RunRecord, name: str) -> dict[str, str]:
    """A model's agreement with the teacher, and its calibration."""
    r = run.results[name]
    return agreement_cells([r], run.reference) | calibration_cells(r)


def cost_row(run: RunRecord, name: str) -> dict[str, str]:
    """What a model of a run costs."""
    latency, costs = run.teacher.costs.latency, run.results[name].costs
    return {"model": run.title(name)} | cost_cells([run.results[name]]) | {
        "p90": f"{costs.latency.p90:.2f} ms",
        "p99": f"{costs.latency.p99:.2f} ms",
        "speedup": f"{latency.p50 / costs.latency.p50:.1f}x",
        "rows/s": f"{costs.rows_per_second:,.0f}",
    }  # fmt: skip


def class_rows(run: RunRecord) -> Rows:
    """How well student and teacher find each class."""
    rows = []
    scored = zip(run.kind.class_names, run.student.classes or (), run.teacher.classes or (), strict=True)
    for label, *found in scored:
        row = {"class": _short(label, 35), "rows": f"{found[0].rows:,}"}
        for s, whose in zip(found, ("", f"{run.reference}'s "), strict=True):
            row |= {f"{whose}precision": f"{s.precision:.3f}", f"{whose}recall": f"{s.recall:.3f}"}
            row |= {f"{whose}F1": f"{s.f1:.3f}"}
        rows.append(row)
    return rows


def cost_cells(results: list[ModelResult]) -> dict[str, str]:
    """What a model costs, the median over its seeds."""
    r, peaks = results[0], [peak for r in results if (peak := r.costs.peak_bytes) is not None]
    return {
        "params": f"{millions(r.parameters, 1)} M",
        "size": f"{millions(r.bytes)} MB",
        "MFLOP": millions(r.flops),
        "memory": f"{millions(statistics.median(peaks))} MB" if len(peaks) == len(results) else "-",
        "latency": f"{statistics.median(r.costs.latency.p50 for r in results):.2f} ms",
    }


def percent(value: float | None) -> str:
    """A ratio in percent, "-" for None."""
    return "-" if value is None else f"{value:.1%}"


def with_interval(value: float, interval: Interval) -> str:
    """A metric and its confidence interval."""
    return f"{value:.4f} ({interval[0]:.4f}–{interval[1]:.4f})"


def _quality(run: RunRecord) -> str:
    about, rows = run.about, []
    words = f"{about.words:,} words of " if about.words else ""
    for name in run.models:
        r = run.results[name]
        row = {"model": run.title(name)}
        row |= {f"{m} (95% CI)": with_interval(r.scores[m], r.intervals[m]) for m in run.metrics[:2]}
        retained = f"retained of {run.reference} (95% CI)"
        row[retained] = "-"
        if r.retained_interval and name != "teacher":
            low, high = r.retained_interval
            row[retained] = f"{r.retained:.1%} ({low:.1%}–{high:.1%})"
        rows.append(row)
    return (
        f"{about.selection} on {about.split}: {words}{about.rows:,} rows; {run.kind.constant_name} reaches "
        f"{about.constant:.4f}{''.join(chr(10) + note for note in (run.f1_note, run.gold_note) if note)}\n\n"
        f"{terminal_table(rows)}"
    )


def _agreement(run: RunRecord) -> str:
    rows = [{"model": run.title(name)} | agreement_row(run, name) for name in run.models]
    calibration = ", and calibration" if run.kind.exclusive else ""
    return f"agreement with {run.reference}{calibration}\n\n{terminal_table(rows)}"


def _costs(run: RunRecord) -> str:
    teacher = run.teacher.costs
    lengths = teacher.lengths
    return (
        f"cost of inference: fp32 on the CPU, threads: {teacher.threads}\n"
        f"latency (median, p90, p99) and speedup: one row of {lengths.least} to {lengths.most} tokens, mean "
        f"{lengths.mean:.0f}\nrows/s and memory: 32 rows at once\n{run.busy_note and run.busy_note + chr(10)}\n"
        f"{terminal_table([cost_row(run, name) for name in run.models])}"
    )


def _classes(run: RunRecord) -> list[str]:
    labels = run.about.labels or []
    blocks = [f"classes: scores of the student\n\n{terminal_table(class_rows(run))}"]
    if run.kind.exclusive and len(labels) <= MAX_CONFUSION_CLASSES:
        if len({run.gold, *(_short(label, 12) for label in labels)}) <= len(labels):  # two heads are equal
            labels = [f"{i} {label}" for i, label in enumerate(labels)]
        heads = [_short(label, 12) for label in labels]
        rows = [
            {run.gold: _short(label, 37)} | dict(zip(heads, map(str, counts), strict=True))
            for label, counts in zip(labels, run.student.confusion or (), strict=False)
        ]
        caption = f"confusion of the student: {run.gold} labels down, predicted labels across"
        blocks.append(f"{caption}\n\n{terminal_table(rows)}")
    return blocks


def _examples(run: RunRecord) -> str:
    kind, lines = run.kind, [f"rows on which student and {run.reference} differ most", ""]
    for row in run.student.differ_most[:3]:
        said = {"student": kind.shown(row.student), run.reference: kind.shown(row.teacher)}
        said[run.gold] = kind.shown_gold(row.label)
        lines.append(f"  {_short(' / '.join(row.texts), 78)}")
        lines += [f"    {who:<8} {_short(what, 66)}" for who, what in said.items()]
    return "\n".join(lines)


def _answers(run: RunRecord) -> str:
    kind, lines = run.kind, [run.answers_note, "training rows on which answer and encoder differ most", ""]
    for row in run.teacher.differ_most[:3]:
        lines.append(f"  {_short(' / '.join(row.texts), 78)}")
        for who, what in (("answer", row.teacher), ("encoder", row.student)):
            lines.append(f"    {who:<8} {_short(kind.shown(what), 66)}")
    return "\n".join(lines)


def _short(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
