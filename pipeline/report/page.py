"""The page of a run, and of several runs side by side: one HTML file that loads nothing and runs no script.

docs/report.md explains each number. All text from data goes through the templates, which escape it.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from checkpoints import store
from checkpoints.errors import UserError
from pipeline.config.run_options import Options
from pipeline.program import as_started
from pipeline.report import plots
from pipeline.report.run_record import RunRecord, StageRecord
from pipeline.report.tables import agreement_row, class_rows, cost_row, notes_of
from pipeline.report.templates import metric_name, page
from stages.evaluation.results import ModelResult

COSTS = {"size in MB": lambda r: r.bytes / 1e6, "latency in ms": lambda r: r.costs.latency.p50}
"""Axis label -> the cost that quality is drawn against."""


def write_report(run: RunRecord, others: list[RunRecord], target: Path) -> None:
    """Write the page of a run; the students of `others` on the same rows appear in its plots as grey points."""
    others = [o for o in others if o.same_rows(run)]
    colours = dict.fromkeys(run.models, "baseline") | {"teacher": "teacher", run.about.student: "student"}
    models = [(run.title(name), colours[name], run.results[name]) for name in run.models]
    students = [other.student for other in others]
    baselines = [run.results[name] for name in run.models if name.startswith("finetuned")]
    calibration = {}
    for name in ("teacher", run.about.student) if run.kind.exclusive else ():
        if measured := run.results[name].calibration:
            calibration[name] = plots.reliability(measured, colours[name], run.title(name), run.accuracy)
    _write(
        "report.html.j2",
        target,
        run=run,
        student=run.student,
        teacher=run.teacher,
        best_baseline=max((b.metric for b in baselines), default=None),
        agreement={name: agreement_row(run, name) for name in run.models},
        costs=[cost_row(run, name) for name in run.models],
        classes=class_rows(run) if run.kind.class_names else [],
        curves=_curves(run),
        against=[_against(models, students, run.metrics[0], x) for x in COSTS],
        others=len(others),
        calibration=calibration,
        samples=_samples(run),
        seconds=sum(stage.seconds for stage in run.stages if not stage.reused),
        operations=next((stage.scores["flops"] for stage in run.of_type("check")), 0.0),  # an estimate
        given=run.differing(run.preset_options()),
        other_than_default=run.differing(asdict(Options())),
        sources=_sources(run),
        machines=_machines(run),
        command=as_started(run.command()),
    )


def write_comparison(runs: list[RunRecord], target: Path) -> None:
    """Write a page with runs side by side."""
    colours = plots.series_colours([run.name for run in runs])
    options: dict[str, Any] = {}
    for run in runs[1:]:
        options |= runs[0].differing(run.options) | run.differing(runs[0].options)
    same_rows = all(run.same_rows(runs[0]) for run in runs)
    students = [(run.name, colours[run.name], run.student) for run in runs]
    metric = runs[0].metrics[0]
    _write(
        "compare.html.j2",
        target,
        runs=runs,
        metrics=list(dict.fromkeys(metric for run in runs for metric in run.metrics)),
        cells=[agreement_row(run, run.about.student) | cost_row(run, run.about.student) for run in runs],
        same_rows=same_rows,
        notes=notes_of(runs),
        against=[_against(students, [], metric, x) for x in COSTS] if same_rows else [],
        curves=_compared_curves(runs, colours),
        options={key: [_option(run, key) for run in runs] for key in sorted(options)},
    )


def _write(template: str, target: Path, **values: Any) -> None:
    if target.is_dir():
        raise UserError(f"{target} is a directory; give the name of an HTML file", argument="to")
    target.parent.mkdir(parents=True, exist_ok=True)
    with store.replaced(target) as staging:
        staging.write_text(page(template, **values), encoding="utf-8")


def _against(
    models: list[tuple[str, str, ModelResult]], others: list[ModelResult], metric: str, label: str
) -> Markup:
    """Plot quality against a cost: models as (name, colour, results), and the results of others in grey."""
    x = COSTS[label]
    points = [plots.Point(name, colour, x(r), r.metric, r.intervals[metric]) for name, colour, r in models]
    return plots.quality_against_cost(points, [(x(r), r.metric) for r in others], label, metric_name(metric))


def _curves(run: RunRecord) -> list[tuple[str, Markup]]:
    """(stage, plot of its loss terms); the candidates of a grid share the plot of their stage."""
    losses: dict[str, dict[str, plots.Points]] = {}
    dev: dict[str, dict[str, plots.Points]] = {}
    for stage in run.stages:
        base, candidate = _candidate(stage)
        terms = {candidate: _sum(stage.losses)} if candidate and stage.lines else stage.losses
        losses.setdefault(base, {}).update(terms)
        if stage.dev:
            dev.setdefault(base, {})[next(iter(terms)) if len(terms) == 1 else "dev"] = stage.dev
    pictures = []
    for base, terms in losses.items():
        if terms:
            colours = plots.series_colours(list(terms)) | {"dev": "ink"}
            pictures.append((base, plots.loss_curves(terms, dev.get(base, {}), colours, base)))
    return pictures


def _compared_curves(runs: list[RunRecord], colours: dict[str, str]) -> list[tuple[str, Markup]]:
    """(stage, plot): the sum of the loss terms by run; of a grid the chosen candidate alone."""
    losses: dict[str, dict[str, plots.Points]] = {}
    dev: dict[str, dict[str, plots.Points]] = {}
    for run in runs:
        for stage in run.stages_in_use:
            base, _ = _candidate(stage)
            if stage.lines:
                losses.setdefault(base, {})[run.name] = _sum(stage.losses)
            if stage.dev:
                dev.setdefault(base, {})[run.name] = stage.dev
    return [
        (base, plots.loss_curves(lines, dev.get(base, {}), colours, base)) for base, lines in losses.items()
    ]


def _candidate(stage: StageRecord) -> tuple[str, str]:
    """(title of a stage's plot, its values if it is a candidate of a grid of training options)."""
    return (stage.name, "") if stage.stage_type in ("student", "pretrain") else stage.name.partition("-")[::2]


def _sum(losses: dict[str, plots.Points]) -> plots.Points:
    return [
        (points[0][0], sum(value for _, value in points)) for points in zip(*losses.values(), strict=True)
    ]


def _samples(run: RunRecord) -> tuple[str, str]:
    """(sentences and their variants, counts in a line); empty without augmentation."""
    found = [stage.directory / "model" / "samples.txt" for stage in run.of_type("augment")]
    if not found or not found[0].is_file():
        return "", ""
    lines, _, counts = found[0].read_text(encoding="utf-8").rstrip().rpartition("\n")
    return lines.rstrip(), counts


def _sources(run: RunRecord) -> list[tuple[str, str, str]]:
    """(what, its path or name, the start of its sha256 or its revision) of each input of the run."""
    found: dict[str, tuple[str, str]] = {}
    for stage in run.stages:
        for name, entry in stage.inputs.items():
            if "stage" in entry:
                continue
            what = stage.stage_type if name == "model" else name
            files = entry.get("identity", {}).get("files", {}).values()
            where = entry.get("path") or ", ".join(files) or entry.get("hub") or entry.get("name", "")
            content = entry.get("content") or entry.get("revision") or ""
            sums = content.values() if isinstance(content, dict) else [content]
            found.setdefault(what.replace("_", " "), (where, " ".join(s[:12] for s in sums)))
    return [(what, *rest) for what, rest in found.items()]


def _machines(run: RunRecord) -> list[tuple[str, str]]:
    """(machine and versions, the stages that ran on it), the machine with most stages first."""
    made: dict[str, list[str]] = {}
    for stage in run.stages:
        if m := stage.machine:
            where = f"{m['processor']}, {m['cores']} cores, {m['memory'] / 1e9:.0f} GB"
            where += f", {m['accelerator']}" if "accelerator" in m else ""
            rest = [
                f"{k} {v}"
                for k, v in m.items()
                if k not in ("processor", "cores", "memory", "accelerator", "system")
            ]
            made.setdefault(f"{where}; {m['system']}; {', '.join(rest)}", []).append(stage.name)
    return sorted(((where, ", ".join(names)) for where, names in made.items()), key=lambda m: -len(m[1]))


def _option(run: RunRecord, key: str) -> Any:
    group, _, name = key.rpartition(".")
    return (run.options.get(group, {}) if group else run.options).get(name, "not set")
