"""Estimates the memory and disk that a run needs, from configs and file sizes, and checks its inputs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from checkpoints.errors import UserError
from pipeline.cli.doctor import Report, format_bytes, free_disk
from pipeline.config.errors import explain
from pipeline.config.options import Options
from pipeline.config.two_stage import Entry, StageSpec
from pipeline.plan import ACTION_LABELS, plan
from stages.training.machine_limits import memory

PROCESS_BYTES = 500e6
"""Memory of a rank before it holds a model: Python, torch, transformers, deepspeed (measured)."""

TRAINED_MODEL = {"teacher": "teacher", "masked_lm": "teacher", "general": "student", "intermediate": "student",
                 "prediction": "student", "finetune": "student"}  # fmt: skip
HOLDS_TEACHER = ("general", "intermediate", "prediction")


def check_needs(report: Report, run: Path, declare: Callable[[Path], list[StageSpec]], o: Options) -> None:
    """Report a run's plan, and whether there is memory and disk enough for it."""
    report.section(f"what run {run.name} needs")
    try:
        planned = plan(declare(run), run, o)
        sizes = _parameters(planned[0].stage)
    except ValueError as error:  # UserError, or transformers' own for sizes that do not go together
        report.fix("plan", str(explain(error) if isinstance(error, UserError) else error))
        return
    check_inputs(report, planned[0].stage, o.allow_bin)
    most_memory, most_disk, kept = PROCESS_BYTES * o.job.nproc, 0.0, 0.0
    for step in planned:
        text = ACTION_LABELS[step.action]
        if step.action in ("run", "resume"):
            parameters = sizes.get(TRAINED_MODEL.get(step.stage.stage_type, ""), 0)
            needed = _training_bytes(parameters, o) + PROCESS_BYTES * o.job.nproc
            if step.stage.stage_type in HOLDS_TEACHER:
                needed += 4 * sizes["teacher"] * o.job.nproc
            # As the job counts: three numbers a parameter in each checkpoint, one in each of the best weights.
            saved = 4 * parameters * (3 * (o.job.keep + 1) + o.job.keep + 2)
            artefact = 4 * (sizes["student"] if step.stage.stage_type == "select" else parameters)
            most_memory, most_disk = max(most_memory, needed), max(most_disk, kept + saved + artefact)
            kept += artefact
            if parameters:
                text += (
                    f"; {parameters / 1e6:.1f} M parameters, {format_bytes(needed)} of memory, "
                    f"{format_bytes(saved)} of checkpoints"
                )
        report.ok(step.stage.name, text)
    cache, not_counted = _cache_bytes(planned[0].stage)
    report.ok(
        "cache",
        f"up to {format_bytes(cache)} of tokenized rows{not_counted}; while a stage runs on a CPU, up to "
        + ("half of the free disk" if o.job.cache_gb == "auto" else format_bytes(1e9 * o.job.cache_gb))
        + " of the teacher's layers (job.cache_gb)",
    )
    about = "weights, gradients, moments and teacher; activations come on top"
    _compare(report, "memory", most_memory, memory()[1], about)
    _compare(
        report, "disk", most_disk + cache, free_disk(run), f"at the most; {format_bytes(kept + cache)} stay"
    )


def check_inputs(report: Report, check: StageSpec, allow_bin: bool) -> None:
    """Read every row of task and corpora, as the stages will, and check that the models fit them."""
    from stages.distillation.models import ModelSource
    from stages.tasks.corpus import documents
    from stages.tasks.task import TaskSource, load_task
    from stages.tasks.types import Source
    from stages.teaching.given_models import check_models

    given, task = _given(check), None
    for name, entry in given.items():
        if "identity" not in entry:
            continue  # a model
        if "hub" in entry["identity"]:
            report.note(name, f"{entry['name']} is read from the hub when the run begins")
            continue
        try:
            if name == "task":
                task = load_task(TaskSource.of(entry), entry.get("revision"))
                rows = ", ".join(f"{len(split):,} of {role}" for role, split in task.splits.items())
                report.ok(name, f"all rows can be read: {rows}")
                for note in task.notes:
                    report.note(name, note)
            else:
                texts = tqdm(documents(Source.of(entry)), name, unit=" documents", leave=False, disable=None)
                report.ok(name, f"all {sum(1 for _ in texts):,} documents can be read")
        except UserError as error:
            report.fix(name, str(explain(error)))
            return
    try:
        student = ModelSource.of(given["student"], allow_bin) if "student" in given else None
        teacher = ModelSource.of(given["teacher"], allow_bin)
        check_models(teacher, student, check.options, task, partial(report.note, "models"))
    except ValueError as error:  # UserError, or transformers' own for sizes that do not go together
        report.fix("models", str(explain(error) if isinstance(error, UserError) else error))
    else:
        report.ok("models", "vocabularies, classes, layers and lengths fit")


def _compare(report: Report, subject: str, needed: float, free: float, about: str) -> None:
    text = f"{format_bytes(needed)} needed ({about}), {format_bytes(free)} free"
    if needed > free:
        report.fix(subject, f"{text}: free {format_bytes(needed - free)} more")
    else:
        report.ok(subject, text)


def _training_bytes(parameters: int, o: Options) -> int:
    """Weights and gradients (4 bytes each) and AdamW's moments (8) on this host; ZeRO divides some among the ranks."""
    divided = {0: 0, 1: 8, 2: 12, 3: 16}[o.job.zero]
    return parameters * (divided + (16 - divided) * o.job.nproc)


def _parameters(check: StageSpec) -> dict[str, int]:
    """The number of parameters of teacher and student, counted on torch's meta device, which allocates nothing."""
    import torch
    from transformers import AutoModel

    from stages.distillation.models import ModelSource, load_config
    from stages.distillation.students.architecture import student_config

    given = _given(check)
    teacher = load_config(ModelSource.of(given["teacher"]))
    if "student" in given:
        student = load_config(ModelSource.of(given["student"]))
    else:
        student = student_config(teacher, **check.options["architecture"])
    with torch.device("meta"):
        models = {"teacher": AutoModel.from_config(teacher), "student": AutoModel.from_config(student)}
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def _given(check: StageSpec) -> dict[str, Entry]:
    """The inputs that no stage makes; a check has no others."""
    return {name: entry for name, entry in check.inputs.items() if not isinstance(entry, str)}


def _cache_bytes(check: StageSpec) -> tuple[float, str]:
    """Tokenized rows take less than their text; once for each length at which stages read it."""
    size, unknown = 0.0, ""
    given = _given(check)
    for name, data in (("corpus", "corpus"), ("task", "task")):
        identity = given.get(name, {}).get("identity", {})
        lengths = {stage["max_length"] for stage in check.options["stages"].values() if stage["data"] == data}
        for path in map(Path, identity.get("files", {}).values()):
            size += (
                path.stat().st_size * (3 if path.suffix in (".gz", ".bz2", ".parquet") else 1) * len(lengths)
            )
        if "hub" in identity:
            unknown += f"; not counted: the {name} on the hub"
    return size, unknown
