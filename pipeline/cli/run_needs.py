"""Estimates the memory and disk that a run needs, from configs and file sizes, and checks its inputs."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.cli.doctor import Report, format_bytes, free_disk
from pipeline.config.run_options import Options
from pipeline.config.two_stage import Entry, StageSpec
from pipeline.launch.remote_hosts import read_hostfile
from pipeline.plan import RUNS, Planned, plan
from stages.training.machine_limits import memory
from stages.training.options import Job

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.training.stage import Stage

PROCESS_BYTES = 500e6
"""Memory of a rank before it holds a model: Python, torch, transformers, deepspeed (measured)."""

TRAINED_MODEL = {"teacher": "teacher", "masked_lm": "teacher", "general": "student", "intermediate": "student",
                 "prediction": "student", "finetune": "student"}  # fmt: skip
"""Type of stage -> the model that it trains; a recipe's students each have sizes of their own."""

HOLDS_TEACHER = ("general", "intermediate", "prediction", "student", "pretrain")
LONGEST_OF_MAPS = 512
"""Tokens up to which an attention loss holds maps of scores, of one layer at a time."""


def check_needs(
    report: Report, run: Path, declare: Callable[[Path], list[StageSpec]], options: Options
) -> None:
    """Report a run's plan, and whether there is memory and disk enough for it."""
    report.section(f"what run {run.name} needs")
    planned = plan(declare(run), run, options)
    first, wrong = planned[0].stage, report.wrong
    if first.stage_type == "check":
        check_inputs(report, first, options.job)
    else:
        _check_rows(report, planned[-1].stage)
    if report.wrong == wrong:  # models that do not fit have no needs
        _compare_needs(report, run, planned, options)


def _compare_needs(report: Report, run: Path, planned: list[Planned], options: Options) -> None:
    """Report what each stage will need, and compare the most of it with what there is."""
    from stages.distillation.device import accelerator

    models = _models(planned[0].stage)
    ranks, world = _ranks(options.job)
    on_gpu = accelerator() == "cuda"
    place = " of a GPU's memory" if on_gpu else " of memory"
    most_host, most_device, most_disk, kept = PROCESS_BYTES * ranks, 0.0, 0.0, 0.0
    for step in planned:
        text, stage_type = str(step), step.stage.stage_type
        if step.action in ("run", "resume"):
            trained = TRAINED_MODEL.get(stage_type, step.stage.name)
            parameters = _count(models.get(trained))
            of_rank = 0.0
            if "training" in step.stage.options:
                try:
                    of_rank = _rank_bytes(
                        step.stage, models[trained], models["teacher"], options.job, world, maps=not on_gpu
                    )
                except Exception:  # it reads a number, which torch's meta device has not, or reads no texts
                    report.note(step.stage.name, "the memory of its training cannot be estimated")
            offloaded = _offloaded_bytes(step, parameters, world) if on_gpu else 0.0
            # The host's own part: processes, rank 0's copy of what a checkpoint holds, and what GPUs do not hold.
            host = PROCESS_BYTES * ranks + 12 * parameters + ranks * offloaded
            device = of_rank - offloaded if on_gpu else of_rank * ranks + host
            # As the job counts: three numbers a parameter in each checkpoint, one in each of the best weights.
            saved = 4 * parameters * (3 * (options.job.keep + 1) + options.job.keep + 2)
            artefact = 4 * (_count(models.get("student")) if stage_type == "select" else parameters)
            most_host, most_device = max(most_host, host), max(most_device, device)
            most_disk = max(most_disk, kept + saved + artefact)
            kept += artefact
            if parameters:
                text += (
                    f"; {parameters / 1e6:.1f} M parameters, {format_bytes(device)}{place}, "
                    f"{format_bytes(saved)} of checkpoints"
                )
        report.ok(step.stage.name, text)
    cache, not_counted = _cache_bytes(planned[0].stage)
    asked = options.job.cache_gb
    layers = (
        "half of the disk that is free and that no other run has claimed"
        if asked == "auto"
        else format_bytes(1e9 * asked)
    )
    report.ok(
        "cache",
        f"up to {format_bytes(cache)} of tokenized rows{not_counted}; while a stage runs on a CPU, the teacher's layers "
        f"take up to {layers} (job.cache_gb)",
    )
    about = "weights, gradients, moments, teacher, and a micro-batch's activations in fp32"
    if on_gpu:
        _compare_gpus(report, most_device, ranks, about)
        of_host = "processes, a copy of a checkpoint, and what is offloaded"
        _compare(report, "memory", most_host, memory()[1], of_host)
    else:
        most = max(most_host, most_device)
        _compare(report, "memory", most, memory()[1], about, FEWER_ROWS)
    most_disk += cache
    _compare(report, "disk", most_disk, free_disk(run), f"at the most; {format_bytes(kept + cache)} stay")


def check_inputs(report: Report, check: StageSpec, job: Job) -> None:
    """Run the stage `check` and report what it finds. The rows it tokenizes stay in the cache of all runs."""
    from stages.distillation.device import accelerator

    os.environ.setdefault("DS_ACCELERATOR", accelerator())  # or DeepSpeed warns that it finds none
    from stages import check as stage_check

    job = replace(job, precision="fp32")  # this and the device only decide how long it would take
    RUNS.mkdir(exist_ok=True)
    with report.findings("check", "check"), TemporaryDirectory(prefix=".doctor-", dir=RUNS) as run:
        directory = Path(run) / "check"  # beside the cache
        directory.mkdir()
        stage_check.run(_stage(report, check, directory, job))
        report.ok("check", "all rows can be read; vocabularies, classes, layers and lengths fit")


def _check_rows(report: Report, stage: StageSpec) -> None:
    """Read the rows of a run that has no stage `check`: of `augment`, which trains nothing on them."""
    with report.findings("check"):
        for note in _stage(report, stage, Path(), Job()).task().notes:
            report.note("check", note)
        report.ok("check", "all rows can be read")


def _stage(report: Report, spec: StageSpec, directory: Path, job: Job) -> "Stage":
    """A stage on the CPU, whose lines become notes."""
    import torch

    from stages.training.stage import Stage

    class Told(Stage):
        def log(self, text: str) -> None:
            report.note("check", text)

    return Told(
        spec.name, spec.stage_type, directory, spec.options, _given(spec), "", job, torch.device("cpu")
    )


FEWER_ROWS = ", or give job.micro_batch=auto"


def _compare_gpus(report: Report, needed: float, ranks: int, about: str) -> None:
    """Compare what a rank needs with the free memory of each GPU that a rank takes."""
    import torch

    gpus = torch.cuda.device_count()
    if ranks > gpus:
        report.fix(
            "GPUs", f"{ranks} ranks on this host need {ranks} GPUs, it has {gpus}: start at most {gpus} ranks"
        )
    for i in range(min(ranks, gpus)):
        _compare(report, f"memory of GPU {i}", needed, torch.cuda.mem_get_info(i)[0], about, FEWER_ROWS)


def _compare(report: Report, subject: str, needed: float, free: float, about: str, advice: str = "") -> None:
    text = f"{format_bytes(needed)} needed ({about}), {format_bytes(free)} free"
    if needed > free:
        report.fix(subject, f"{text}: free {format_bytes(needed - free)} more{advice}")
    else:
        report.ok(subject, text)


def _ranks(job: Job) -> tuple[int, int]:
    """Number of ranks on this host, at the most, and on all hosts.

    Raises:
        UserError: the hostfile cannot be read.
    """
    slots = read_hostfile(Path(job.hostfile)).values() if job.hostfile else [job.nproc]
    return max(slots), sum(slots)


def _rank_bytes(
    stage: StageSpec,
    trained: "PreTrainedModel",
    teacher: "PreTrainedModel",
    job: Job,
    world: int,
    maps: bool,
) -> float:
    """What a rank holds of a stage: weights and gradients (4 bytes each), AdamW's moments (8), teacher, activations.

    ZeRO divides some of it among the ranks. Without ZeRO several ranks reduce a flat copy of the gradients (4).
    """
    training = stage.options["training"]
    divided = {0: 0, 1: 8, 2: 12, 3: 16}[job.zero]
    flat_copy = 4 if world > 1 and not job.zero else 0
    needed = _count(trained) * (16 - divided + divided / world + flat_copy)
    rows, length = ceil(training["batch_size"] / world), training["max_length"]
    if job.micro_batch:
        rows = 1 if job.micro_batch == "auto" else min(rows, job.micro_batch)
    needed += _activation_bytes(trained, rows, length, maps)
    if stage.stage_type in HOLDS_TEACHER:
        needed += 4 * _count(teacher) + _teacher_bytes(teacher, rows, length)
    return needed


def _offloaded_bytes(step: Planned, parameters: int, world: int) -> float:
    """What a rank keeps in its host's memory, as a DeepSpeed config asks: its part of the moments (8), of the weights (4)."""
    details = step.deepspeed.get("zero_optimization", {})
    sizes = {"offload_optimizer": 8, "offload_param": 4}
    asked = (size for name, size in sizes.items() if details.get(name, {}).get("device") == "cpu")
    return sum(asked) * parameters / world


def _activation_bytes(model: "PreTrainedModel", rows: int, length: int, maps: bool) -> int:
    """What a training pass keeps for its backward pass, in fp32.

    Args:
        model: on torch's meta device, where the pass allocates and computes nothing.
        rows, length: those of a micro-batch.
        maps: whether attention keeps its L x L maps, as on a CPU with dropout; the kernels of a GPU do not.
    """
    import torch

    kept: dict[int, int] = {}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: "Tensor") -> "Tensor":
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and (
            maps or tensor.ndim < 4 or tensor.shape[-2:] != (length, length)
        ):
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)  # or its number would be given to another
        return tensor

    alive: list[object] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(input_ids=torch.zeros(rows, length, dtype=torch.int64, device="meta"))
    return sum(kept.values())


def _teacher_bytes(teacher: "PreTrainedModel", rows: int, length: int) -> float:
    """What a teacher's pass hands over, at the most: hidden states, queries and keys of all layers; and a layer's maps."""
    config = teacher.config
    layers, width = config.num_hidden_layers, config.hidden_size
    handed = 3 * (layers + 1) * width * length
    maps = config.num_attention_heads * length**2 if length <= LONGEST_OF_MAPS else 0
    return 4 * rows * (handed + 2 * maps)


def _count(model: "PreTrainedModel | None") -> int:
    return sum(p.numel() for p in model.parameters()) if model is not None else 0


def _models(first: StageSpec) -> "dict[str, PreTrainedModel]":
    """Teacher, student and a recipe's students by name, on torch's meta device, which allocates nothing.

    Of a recipe's, those are missing of which a config and sizes alone do not make a model, such as readers of graphs.
    """
    import torch
    from transformers import AutoModel

    from stages.distillation.models import ModelSource, load_config
    from stages.distillation.students.architecture import student_config

    given, options = _given(first), first.options
    teacher = load_config(ModelSource.of(given["teacher" if "teacher" in given else "model"]))
    of_recipe = {name: plan["student"] for name, plan in options.get("stages", {}).items() if plan["student"]}
    sizes: dict[str, dict[str, Any] | None] = {"teacher": None}
    sizes |= {"student": options["architecture"]} if "architecture" in options else {}
    failures, models = (Exception,) if of_recipe else (), {}
    with torch.device("meta"):
        for name, of in (sizes | of_recipe).items():
            with contextlib.suppress(*failures):
                config = teacher if of is None else student_config(teacher, **of)
                if name == "student" and "student" in given:
                    config = load_config(ModelSource.of(given["student"]))
                models[name] = AutoModel.from_config(config)
    return models


def _given(check: StageSpec) -> dict[str, Entry]:
    """The inputs that no stage makes; a check has no others."""
    return {name: entry for name, entry in check.inputs.items() if not isinstance(entry, str)}


def _cache_bytes(first: StageSpec) -> tuple[float, str]:
    """Tokenized rows take less than their text; once for each length at which stages read it."""
    size, unknown = 0.0, ""
    for name, entry in _given(first).items():
        identity, stages = entry.get("identity", {}), first.options.get("stages", {})
        lengths = {stage["max_length"] for stage in stages.values() if stage["data"] == name}
        for path in map(Path, identity.get("files", {}).values()):
            grows = 3 if path.suffix in (".gz", ".bz2", ".parquet") else 1
            size += grows * path.stat().st_size * len(lengths)
        if "hub" in identity:
            unknown += f"; not counted: the {name} on the hub"
    return size, unknown
