"""Estimates the memory and disk that a run needs, from configs and file sizes, and checks its inputs."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from checkpoints.errors import UserError, to_user_error
from pipeline.cli.doctor import Report, format_bytes, free_disk
from pipeline.config.option_errors import explain
from pipeline.config.run_options import Options
from pipeline.config.two_stage import Entry, StageSpec
from pipeline.launch.remote_hosts import read_hostfile
from pipeline.plan import ACTION_LABELS, RUNS, Planned, plan
from stages.training.machine_limits import memory
from stages.training.options import Job

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

PROCESS_BYTES = 500e6
"""Memory of a rank before it holds a model: Python, torch, transformers, deepspeed (measured)."""

TRAINED_MODEL = {"teacher": "teacher", "masked_lm": "teacher", "general": "student", "intermediate": "student",
                 "prediction": "student", "finetune": "student"}  # fmt: skip
HOLDS_TEACHER = ("general", "intermediate", "prediction")
LONGEST_OF_MAPS = 512
"""Tokens up to which an attention loss holds maps of scores, of one layer at a time."""


def check_needs(
    report: Report, run: Path, declare: Callable[[Path], list[StageSpec]], options: Options
) -> None:
    """Report a run's plan, and whether there is memory and disk enough for it."""
    report.section(f"what run {run.name} needs")
    from stages.distillation.device import accelerator

    try:
        planned = plan(declare(run), run, options)
        models = _models(planned[0].stage)
        ranks, world = _ranks(options.job)
    except ValueError as error:  # UserError, or transformers' own for sizes that do not go together
        report.fix("plan", str(explain(error) if isinstance(error, UserError) else error))
        return
    wrong = report.wrong
    check_inputs(report, planned[0].stage, options.job)
    if report.wrong > wrong:
        return  # models that do not fit have no needs
    on_gpu = accelerator() == "cuda"
    place = " of a GPU's memory" if on_gpu else " of memory"
    most_host, most_device, most_disk, kept = PROCESS_BYTES * ranks, 0.0, 0.0, 0.0
    for step in planned:
        text = ACTION_LABELS[step.action]
        if step.action in ("run", "resume"):
            trained = models.get(TRAINED_MODEL.get(step.stage.stage_type, ""))
            parameters = _count(trained)
            of_rank = 0.0
            if trained is not None:
                try:
                    of_rank = _rank_bytes(
                        step.stage, trained, models["teacher"], options.job, world, maps=not on_gpu
                    )
                except RuntimeError:  # it reads a number from a tensor, and torch's meta device has none
                    kind = trained.config.model_type
                    report.note(step.stage.name, f"the memory of a {kind} in training cannot be estimated")
            offloaded = _offloaded_bytes(step, parameters, world) if on_gpu else 0.0
            # The host's own part: processes, rank 0's copy of what a checkpoint holds, and what GPUs do not hold.
            host = PROCESS_BYTES * ranks + 12 * parameters + ranks * offloaded
            device = of_rank - offloaded if on_gpu else of_rank * ranks + host
            # As the job counts: three numbers a parameter in each checkpoint, one in each of the best weights.
            saved = 4 * parameters * (3 * (options.job.keep + 1) + options.job.keep + 2)
            artefact = 4 * (_count(models["student"]) if step.stage.stage_type == "select" else parameters)
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
    report.ok(
        "cache",
        f"up to {format_bytes(cache)} of tokenized rows{not_counted}; while a stage runs on a CPU, up to "
        + (
            "half of the free disk"
            if options.job.cache_gb == "auto"
            else format_bytes(1e9 * options.job.cache_gb)
        )
        + " of the teacher's layers (job.cache_gb)",
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
    import torch

    from stages import check as stage_check
    from stages.training.stage import Stage

    class Told(Stage):
        def log(self, text: str) -> None:
            report.note("check", text)

    job, cpu = replace(job, precision="fp32"), torch.device("cpu")  # they only decide how long it would take
    RUNS.mkdir(exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".doctor-", dir=RUNS) as run:  # beside the cache
            directory = Path(run) / "check"
            directory.mkdir()
            stage_check.run(Told("check", "check", directory, check.options, _given(check), "", job, cpu))
        report.ok("check", "all rows can be read; vocabularies, classes, layers and lengths fit")
    except UserError as error:
        report.fix("check", str(explain(error, "check")))
    except OSError as error:
        report.fix("check", str(to_user_error(error)))


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


def _models(check: StageSpec) -> dict[str, "PreTrainedModel"]:
    """Teacher and student on torch's meta device, which allocates nothing."""
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
        return {"teacher": AutoModel.from_config(teacher), "student": AutoModel.from_config(student)}


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
