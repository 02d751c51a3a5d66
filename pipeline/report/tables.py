"""The tables that commands print, within 110 columns. docs/report.md says what each number means."""

import statistics
from pathlib import Path

from checkpoints.store import read_json
from pipeline.report.run_record import RunRecord, title

CLASSES = 12
"""A confusion of more classes is left to the report."""


def results_table(run: RunRecord) -> str:
    """Everything that `evaluate` measured of a run."""
    blocks = [_quality(run), _nearness(run), _costs(run)]
    blocks += [_classes(run)] if run.about["labels"] else []
    return "\n\n".join([*blocks, _examples(run)])


def runs_table(runs: list[RunRecord]) -> str:
    """The distilled students of several runs, a line each."""
    width = max(len(name) for name in ("student distilled of", *(run.name for run in runs))) + 2
    lines = [
        f"{'student distilled of':<{width}}{'metric':<10}{'':>8}{'95% interval':>18}{'kept':>8}"
        f"{'params':>9}{'size':>9}{'latency':>11}"
    ]
    for run in runs:
        e = run.student
        low, high = e["intervals"][run.metrics[0]]
        lines.append(
            f"{run.name:<{width}}{run.metrics[0]:<10}{e['metric']:>8.4f}{f'[{low:.4f}, {high:.4f}]':>18}"
            f"{share(e):>8}{e['parameters'] / 1e6:>8.1f}M{e['bytes'] / 1e6:>7.0f}MB{e['latency_ms']:>9.2f}ms"
        )
    return "\n".join(lines)


def spread_table(runs: list[Path]) -> str:
    """Mean and standard deviation over the runs of several seeds; nothing where one is not evaluated."""
    found = [read_json(run / "results.json") for run in runs]
    if not all(found):
        return ""
    lines = [f"over {len(runs)} seeds: {', '.join(run.name for run in runs)}"]
    for name in found[0]:
        values = [results[name]["metric"] for results in found]
        kept = [r[name]["retained"] for r in found if "retained" in r[name]]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        share = f"retained {statistics.mean(kept):.1%} (lowest {min(kept):.1%})" if kept else ""
        lines.append(f"  {name:<20} {statistics.mean(values):.4f} +- {spread:.4f}   {share}")
    return "\n".join(lines)


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A table as Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def share(entry: dict) -> str:
    """The share of the teacher's metric, where there is one."""
    return f"{entry['retained']:.1%}" if "retained" in entry else "-"


def _quality(run: RunRecord) -> str:
    about, shown = run.about, run.metrics[:2]
    words = f"{about['words']:,} words of " if "words" in about else ""
    lines = [
        f"{about['selection']} on {about['split']}: {words}{about['rows']:,} rows, a constant answer reaches "
        f"{about['constant']:.4f}",
        f"{'in brackets 95% of 1,000 resamples':<36}" + "".join(f"{m:<24}" for m in shown) + "retained",
    ]
    for name in run.models:
        e = run.results[name]
        cells = [f"{e['scores'][m]:.4f} {_interval(e['intervals'][m], '.4f')}" for m in shown]
        kept = f"{share(e)} {_interval(e['retained_interval'], '.1%')}" if "retained" in e else "-"
        lines.append(f"{title(name):<36}" + "".join(f"{cell:<24}" for cell in cells) + kept)
    return "\n".join(lines)


def _nearness(run: RunRecord) -> str:
    """Loyalty to the teacher, and calibration."""
    if run.about["labels"] is None:
        lines = [f"{'answers beside the teacher':<36}{'Pearson to the teacher':>24}"]
        for name in run.models[1:]:
            lines.append(f"{title(name):<36}{run.results[name]['pearson_to_teacher']:>24.4f}")
        return "\n".join(lines)
    lines = [
        f"{'loyalty to the teacher; calibration':<36}{'same label':>12}{'probability':>13}{'ECE':>9}"
        f"{'scaled':>9}{'temperature':>13}"
    ]
    for name in run.models:
        e = run.results[name]
        c = e["calibration"]
        loyal = (
            f"{e['label_loyalty']:>12.1%}{e['probability_loyalty']:>13.1%}"
            if "label_loyalty" in e
            else f"{'-':>12}{'-':>13}"
        )
        scaled = (
            f"{c['error_scaled']:>9.4f}{c['temperature']:>13.2f}"
            if "temperature" in c
            else f"{'-':>9}{'-':>13}"
        )
        lines.append(f"{title(name):<36}{loyal}{c['error']:>9.4f}{scaled}")
    return "\n".join(lines)


def _costs(run: RunRecord) -> str:
    lines = [
        f"{'cost':<36}{'params':>8}{'size':>7}{'MFLOP':>8}{'memory':>8}{'p50':>9}{'p90':>8}{'p99':>8}"
        f"{'speed':>7}{'rows/s':>8}"
    ]
    teacher = run.results["teacher"]
    for name in run.models:
        e = run.results[name]
        memory = f"{e['peak_bytes'] / 1e6:.0f}MB" if e["peak_bytes"] else "-"
        times = "".join(f"{e['latency'][p]:>8.2f}" for p in ("p90", "p99"))
        lines.append(
            f"{title(name):<36}{e['parameters'] / 1e6:>7.1f}M{e['bytes'] / 1e6:>5.0f}MB{e['flops'] / 1e6:>8,.0f}{memory:>8}"
            f"{e['latency']['p50']:>9.2f}{times}{teacher['latency_ms'] / e['latency_ms']:>6.1f}x{e['rows_per_second']:>8,.0f}"
        )
    lengths = teacher["lengths"]
    lines.append(
        f"(fp32 on this machine's CPU, {teacher['threads']} threads; p50, p90, p99: milliseconds for one row of "
        f"{lengths['least']} to {lengths['most']}\nword pieces, mean {lengths['mean']:.0f}; rows/s and memory: 32 rows at once)"
    )
    return "\n".join(lines)


def _classes(run: RunRecord) -> str:
    labels, student, teacher = run.about["labels"], run.student, run.results["teacher"]
    lines = [f"{'class':<36.36}{'rows':>8}{'precision':>11}{'recall':>8}{'F1':>8}{'F1 of the teacher':>19}"]
    for label, s, t in zip(labels, student["classes"], teacher["classes"], strict=True):
        lines.append(
            f"{_short(label, 35):<36}{s['rows']:>8,}{s['precision']:>11.3f}{s['recall']:>8.3f}{s['f1']:>8.3f}{t['f1']:>19.3f}"
        )
    if len(labels) <= CLASSES:
        wide = max(8, min(14, 72 // len(labels)))
        head = "".join(f"{_short(label, wide - 2):>{wide}}" for label in labels)
        lines += ["", f"{'student: label down, answer across':<36}{head}"]
        for label, counts in zip(labels, student["confusion"], strict=True):
            lines.append(f"{_short(label, 35):<36}" + "".join(f"{count:>{wide},}" for count in counts))
    return "\n".join(lines)


def _examples(run: RunRecord) -> str:
    labels, lines = run.about["labels"], ["where student and teacher differ most"]
    for row in run.student["differ_most"][:3]:
        answers = {
            name: _answer(row[name], labels) for name in ("student", "teacher")
        }  # what each says, and how sure it is
        truth = _short(labels[row["label"]], 20) if labels else f"{row['label']:.2f}"
        lines.append(f"  {_short(' / '.join(row['texts']), 106)}")
        lines.append(f"    student {answers['student']}; teacher {answers['teacher']}; label {truth}")
    return "\n".join(lines)


def _answer(values: list[float], labels: list[str] | None) -> str:
    if labels is None:
        return f"{values[0]:.2f}"
    best = max(range(len(values)), key=values.__getitem__)
    return f"{_short(labels[best], 20)} {values[best]:.0%}"


def _interval(values: list[float], form: str) -> str:
    return f"[{values[0]:{form}}, {values[1]:{form}}]"


def _short(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
