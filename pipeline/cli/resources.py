"""What a run needs of the machine: its plan, memory and disk, from configs and sizes of files alone."""

from collections.abc import Callable
from pathlib import Path

from checkpoints.errors import UserError
from pipeline.cli.doctor import WRONG, Report, free_disk, shown
from pipeline.config.errors import explain
from pipeline.config.options import Options
from pipeline.config.two_stage import StageSpec
from pipeline.plan import plan
from stages.training.machine_limits import memory

PROCESS = 500e6  # bytes of a rank before it holds a model: Python, torch, transformers, deepspeed (measured)
TRAINS = {"teacher": "teacher", "masked_lm": "teacher", "general": "student", "intermediate": "student",
          "prediction": "student", "finetune": "student"}  # fmt: skip
HOLDS_TEACHER = ("general", "intermediate", "prediction")


def look_at_needs(report: Report, run: Path, declared: Callable[[Path], list[StageSpec]], o: Options) -> None:
    """The plan of a run, and whether memory and disk are there for it. Reads configs and sizes, no weights."""
    report.head(f"what run {run.name} needs")
    try:
        planned = plan(declared(run), run, o)
        sizes = _sizes(planned[0].stage)
    except ValueError as error:  # UserError, or transformers' own for sizes that do not go together
        report.say(WRONG, "plan", str(explain(error) if isinstance(error, UserError) else error))
        return
    most, disk, kept = PROCESS * o.job.nproc, 0.0, 0.0
    for step in planned:
        if step.action in ("skip", "reuse"):
            report.say("ok", step.stage.name, "finished" if step.action == "skip" else "made by another run")
            continue
        numbers = sizes.get(TRAINS.get(step.stage.stage_type, ""), 0)
        needed = _training_bytes(numbers, o) + PROCESS * o.job.nproc
        if step.stage.stage_type in HOLDS_TEACHER:
            needed += 4 * sizes["teacher"] * o.job.nproc
        # As the job reckons: three numbers a parameter in each checkpoint, one in each of the best weights.
        saved = 4 * numbers * (3 * (o.job.keep + 1) + o.job.keep + 2)
        artefact = 4 * (sizes["student"] if step.stage.stage_type == "select" else numbers)
        most, disk, kept = max(most, needed), max(disk, kept + saved + artefact), kept + artefact
        text = "half done: goes on" if step.action == "resume" else "to be made"
        if numbers:
            text += f"; {numbers / 1e6:.1f} M parameters, {shown(needed)} of memory, {shown(saved)} of checkpoints"
        report.say("ok", step.stage.name, text)
    cache, unknown = _cache_bytes(planned[0].stage)
    report.say(
        "ok",
        "cache",
        f"at most about {shown(cache)} of tokenized rows{unknown}; while a stage "
        f"runs, up to {shown(1e9 * o.job.cache_gb)} of the teacher's layers (job.cache_gb)",
    )
    about = "weights, gradients, moments and teacher; activations come on top"
    _compare(report, "memory", most, memory()[1], about)
    _compare(report, "disk", disk + cache, free_disk(run), f"at the most; {shown(kept + cache)} stay")


def _compare(report: Report, what: str, needed: float, free: float, about: str) -> None:
    short = needed > free
    text = f"{shown(needed)} needed ({about}), {shown(free)} free"
    text += f": {shown(needed - free)} more must be freed" if short else ""
    report.say(WRONG if short else "ok", what, text)


def _training_bytes(numbers: int, o: Options) -> float:
    """Weights and gradients (4 bytes each) and AdamW's moments (8) on this host; ZeRO shares some over ranks."""
    shared = {0: 0, 1: 8, 2: 12, 3: 16}[o.job.zero]
    return numbers * (shared + (16 - shared) * o.job.nproc)


def _sizes(check: StageSpec) -> dict[str, int]:
    """Parameters of teacher and student, from their configs: models of no memory are made of them."""
    import torch
    from transformers import AutoModel

    from stages.distillation.models import ModelSource, load_config
    from stages.distillation.students.architecture import student_config

    teacher = load_config(ModelSource.of(check.inputs["teacher"]))
    if "student" in check.inputs:
        student = load_config(ModelSource.of(check.inputs["student"]))
    else:
        student = student_config(teacher, **check.options["architecture"])
    with torch.device("meta"):
        models = {"teacher": AutoModel.from_config(teacher), "student": AutoModel.from_config(student)}
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def _cache_bytes(check: StageSpec) -> tuple[float, str]:
    """Tokenized rows take less than their text; once for each length at which stages read it."""
    size, unknown = 0.0, ""
    for name, data in (("corpus", "corpus"), ("task", "task")):
        identity = check.inputs.get(name, {}).get("identity", {})
        lengths = {stage["max_length"] for stage in check.options["stages"].values() if stage["data"] == data}
        for path in map(Path, identity.get("files", {}).values()):
            size += (
                path.stat().st_size * (3 if path.suffix in (".gz", ".bz2", ".parquet") else 1) * len(lengths)
            )
        if "hub" in identity:
            unknown += f"; not counted: the {name} on the hub"
    return size, unknown
