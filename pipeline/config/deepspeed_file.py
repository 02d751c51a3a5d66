"""A DeepSpeed config of the user's own (`job.deepspeed`): what of it the engine takes, and what is refused.

The engine takes how a step is done: details of ZeRO, offload, communication. What a step is (batch, clipping,
optimiser, learning rate, precision) is decided by the stage's options.
"""

import json
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from checkpoints.errors import UserError
from pipeline.config.schema import CONFIG, checked
from stages.training.options import Job, NotNegative, Positive

BY_OPTION = {
    "train_batch_size": "STAGE.batch_size",
    "train_micro_batch_size_per_gpu": "job.micro_batch",
    "gradient_accumulation_steps": "job.micro_batch",
    "gradient_clipping": "STAGE.clip",
    "optimizer": "STAGE.learning_rate and STAGE.weight_decay",
    "scheduler": "STAGE.schedule and STAGE.warmup",
    "fp16": "job.precision",
    "bf16": "job.precision",
    "amp": "job.precision",
    "torch_autocast": "job.precision",
    "zero_optimization.stage": "job.zero",
    "tensorboard": "job.monitor",
    "wandb": "job.monitor",
    "csv_monitor": "job.monitor",
}
"""Setting of DeepSpeed -> the options that decide it here."""


ONLY_ZERO_3 = ("offload_param", "sub_group_size")
"""Details that have no effect below ZeRO 3, beside those that begin with `stage3_`; all others need ZeRO 1."""


class Offload(TypedDict, total=False):
    """Where the moments, or at ZeRO 3 the weights, are kept."""

    device: Literal["cpu", "none"]
    pin_memory: bool


class Zero(TypedDict, total=False):
    """Details of ZeRO that leave what is learned as it is, within rounding."""

    allgather_bucket_size: Positive
    allgather_partitions: bool
    contiguous_gradients: bool
    offload_optimizer: Offload
    offload_param: Offload
    overlap_comm: bool
    reduce_bucket_size: Positive
    reduce_scatter: bool
    round_robin_gradients: bool
    stage3_max_live_parameters: NotNegative
    stage3_max_reuse_distance: NotNegative
    stage3_param_persistence_threshold: NotNegative
    stage3_prefetch_bucket_size: NotNegative
    sub_group_size: Positive
    use_multi_rank_bucket_allreduce: bool


class DeepSpeedFile(TypedDict, total=False):
    """What is taken over."""

    __pydantic_config__ = CONFIG  # type: ignore[misc]

    communication_data_type: Literal["fp32", "bf16", "fp16"]
    zero_optimization: Zero


def read_deepspeed(job: Job) -> dict[str, Any]:
    """What `job.deepspeed` adds to the engine's config; {} where it is not given. Values "auto" are left to the engine.

    Raises:
        UserError: the file cannot be read, or sets what the options decide, what is not known here, or what the ZeRO
            stage does not have.
    """
    if not job.deepspeed:
        return {}
    where = f"job.deepspeed={job.deepspeed}: "
    try:
        given = json.loads(Path(job.deepspeed).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not JSON: {error}"
        raise UserError(f"{where}{reason}; give a file of JSON, as DeepSpeed reads it") from error
    if not isinstance(given, dict):
        raise UserError(f"{where}it holds no settings by name; give a JSON object, as DeepSpeed reads it")
    given = _without_auto(given)
    decided = [name for name in BY_OPTION if _has(given, name)]
    if decided:
        names = "; ".join(f"{name} is decided by {BY_OPTION[name]}" for name in decided)
        raise UserError(f"{where}{names}: take it out of the file")
    settings: dict[str, Any] = dict(checked(DeepSpeedFile, given, where))
    for name, value in settings.get("zero_optimization", {}).items():
        least = 3 if name in ONLY_ZERO_3 or name.startswith("stage3_") else 1
        unused = name.startswith("offload_") and value.get("device", "none") == "none"
        if job.zero < least and not unused:
            raise UserError(
                f"{where}{name} needs job.zero={least}{' or more' * (least < 3)}, not {job.zero}: set that, or take it "
                "out of the file"
            )
    if what_changes_weights(settings) and job.zero:  # under autocast it would be ignored there
        raise UserError(f"{where}communication_data_type of 16 bits needs job.zero=0, not {job.zero}")
    return settings


def what_changes_weights(settings: dict[str, Any]) -> dict[str, Any]:
    """The part of the settings by which the stage learns other weights, as an option of it."""
    reduced_in = settings.get("communication_data_type", "fp32")
    return {} if reduced_in == "fp32" else {"deepspeed": {"communication_data_type": reduced_in}}


def _without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those of value "auto", and without groups that hold nothing else."""
    kept = {}
    for name, value in settings.items():
        rest = _without_auto(value) if isinstance(value, dict) else value
        if value != "auto" and (rest or not value):
            kept[name] = rest
    return kept


def _has(settings: Any, name: str) -> bool:
    """Whether nested settings have one of a dotted name."""
    first, _, rest = name.partition(".")
    inside = isinstance(settings, dict) and first in settings
    return inside and (not rest or _has(settings[first], rest))
