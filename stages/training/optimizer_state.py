"""The state of an engine on disk: weights and AdamW's moments, whole, by parameter name.

DeepSpeed keeps them in pieces that depend on the number of ranks and the ZeRO stage, and its checkpoints load
nowhere else. In this form a run resumes with other ranks and another ZeRO stage. Beside them lie the model's
persistent buffers, if it has any, and in the place of AdamW's moments whatever a stage's own optimisers hold. The files
are safetensors and JSON: no checkpoint of a run is ever unpickled.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from checkpoints.errors import UserError
from stages.training.optimizers import CombinedOptimizer

WEIGHTS, BUFFERS, OPTIMIZERS = "weights", "buffers", "optimizers"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Snapshot:
    """The state of an engine in the CPU's memory, on rank 0; on other ranks it is empty.

    Attributes:
        files: file -> name -> tensor.
        numbers: what `load` needs beside the files; JSON.
    """

    files: dict[str, dict[str, Tensor]]
    numbers: dict[str, Any]

    def write(self, directory: Path) -> None:
        """Write the files."""
        for kind, tensors in self.files.items():
            save_file(tensors, directory / f"{kind}.safetensors")


def snapshot(engine: DeepSpeedEngine) -> Snapshot:
    """Copy the state. Called on every rank, after a step.

    Raises:
        UserError: a number in it is not finite, so that nothing could resume from it.
    """
    _link_moments(engine)
    own = isinstance(engine.optimizer, CombinedOptimizer)
    files = {
        kind: _copy(
            ((name, _whole(engine, parameter, kind)) for name, parameter in _parameters(engine)), kind
        )
        for kind in (WEIGHTS, *(() if own else MOMENTS))
    }
    if buffers := persistent_buffers(engine.module):
        files[BUFFERS] = _copy(buffers.items(), BUFFERS)
    if not own:
        return Snapshot(files, {"optimizer_steps": _steps(engine)})
    state = {
        f"{name}/{key}": value
        for name, parameter in _parameters(engine)
        for key, value in engine.optimizer.state.get(parameter, {}).items()
    }
    numbers = {place: value for place, value in state.items() if not isinstance(value, Tensor)}
    tensors = ((place, value) for place, value in state.items() if place not in numbers)
    files[OPTIMIZERS] = _copy(tensors, OPTIMIZERS)
    return Snapshot(files, {"optimizer_numbers": numbers})


def _copy(tensors: Iterable[tuple[str, Tensor]], kind: str) -> dict[str, Tensor]:
    """Copies on rank 0. They are made one by one: a single one is whole on the device, where it is checked."""
    copies, finite = {}, []
    for name, tensor in tensors:
        if dist.get_rank() == 0:
            copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
            finite.append(tensor.detach().isfinite().all())
    if finite and not torch.stack([found.to(finite[0].device) for found in finite]).all():
        name = next(name for name, copy in copies.items() if not copy.isfinite().all())
        raise UserError(
            f"{kind} of {name} is no longer finite, though the losses are: a gradient was not; lower the rate. The "
            "previous checkpoint is intact",
            argument="learning_rate",
        )
    return copies


def _steps(engine: DeepSpeedEngine) -> float:
    """The steps that AdamW itself has counted, by which it corrects its moments' bias."""
    zero = engine.zero_optimization_stage()
    state = engine.optimizer.optimizer.state if zero else engine.optimizer.state
    return float(next(iter(state.values()))["step"])


@torch.no_grad()
def load(engine: DeepSpeedEngine, directory: Path, saved: dict[str, Any]) -> None:
    """Set an engine that has taken no step to a saved state. Called on every rank.

    Args:
        engine: at any ZeRO stage.
        saved: holds the snapshot's numbers.

    Raises:
        UserError: the state is of another model.
        KeyError, FileNotFoundError: it is of another version, or of another kind of optimiser.
    """
    weights = _read(directory, WEIGHTS)
    own = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in _parameters(engine)}
    buffers = persistent_buffers(engine.module)
    kept = _read(directory, BUFFERS) if buffers else {}
    if shapes(weights) != own or shapes(kept) != shapes(buffers):
        raise UserError(
            f"{directory} is a checkpoint of another model; remove {directory.parent} to start the stage again"
        )
    for name, buffer in buffers.items():
        buffer.copy_(kept[name])
    for name, parameter in _parameters(engine):
        with GatheredParameters([parameter], modifier_rank=0):
            if engine.zero_optimization_stage() < 3 or dist.get_rank() == 0:
                parameter.copy_(weights[name])
    if isinstance(engine.optimizer, CombinedOptimizer):
        _load_own(engine, _read(directory, OPTIMIZERS), saved["optimizer_numbers"])
    else:
        _load_adamw(
            engine, weights, {kind: _read(directory, kind) for kind in MOMENTS}, saved["optimizer_steps"]
        )


def _load_adamw(
    engine: DeepSpeedEngine, weights: dict[str, Tensor], moments: dict[str, dict[str, Tensor]], step: float
) -> None:
    zero = engine.zero_optimization_stage()
    if zero:
        _create_moments(engine, step)
    for name, parameter in _parameters(engine):
        own = {kind: moments[kind][name].to(engine.device) for kind in MOMENTS}
        if zero == 0:
            engine.optimizer.state[parameter] = {"step": torch.tensor(step, device=parameter.device), **own}
        elif zero < 3:
            safe_set_full_fp32_param(parameter, weights[name].to(engine.device))
            for kind, moment in own.items():
                safe_set_full_optimizer_state(parameter, moment, kind)
        else:
            safe_set_local_fp32_param(parameter, _part(parameter, weights[name].to(engine.device)))
            for kind, moment in own.items():
                safe_set_local_optimizer_state(parameter, _part(parameter, moment), kind)


def _load_own(engine: DeepSpeedEngine, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Set the state of a stage's own optimisers."""
    parameters = dict(_parameters(engine))
    on_device = {  # elsewhere torch's optimisers keep their count of steps on the CPU
        id(p)
        for group in engine.optimizer.param_groups
        for p in group["params"]
        if group.get("fused") or group.get("capturable")
    }
    for place, value in (tensors | numbers).items():
        name, _, key = place.rpartition("/")
        parameter = parameters[name]
        if isinstance(value, Tensor) and (value.ndim or id(parameter) in on_device):
            value = value.to(parameter.device)
        engine.optimizer.state[parameter][key] = value


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that `state_dict` holds, by name: BatchNorm's statistics, a loss's queue."""
    tensors = model.state_dict(keep_vars=True).items()
    return {name: t for name, t in tensors if isinstance(t, Tensor) and not isinstance(t, nn.Parameter)}


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights and persistent buffers on the CPU, whole, tied ones once. Called on every rank."""
    weights, seen = {}, set()
    with GatheredParameters(list(module.parameters())):
        for name, tensor in module.state_dict().items():
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                weights[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return weights


def set_whole_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set a module to what `whole_weights` returned. Called on every rank."""
    with GatheredParameters(list(module.parameters()), modifier_rank=0):
        module.load_state_dict(weights, strict=False)  # tied weights are stored once


def _read(directory: Path, kind: str) -> dict[str, Tensor]:
    return load_file(directory / f"{kind}.safetensors")


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _parameters(engine: DeepSpeedEngine) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]


def _whole(engine: DeepSpeedEngine, parameter: nn.Parameter, kind: str) -> Tensor:
    if engine.zero_optimization_stage() == 0:
        return parameter if kind == WEIGHTS else engine.optimizer.state[parameter][kind]
    if kind == WEIGHTS:
        return safe_get_full_fp32_param(parameter)
    return safe_get_full_optimizer_state(parameter, kind)


def _create_moments(engine: DeepSpeedEngine, step: float) -> None:
    """Make the optimiser's state at ZeRO 1 to 3, which otherwise the first step makes."""
    sharded = engine.optimizer
    three = engine.zero_optimization_stage() == 3
    flat_parts = sharded.fp32_partitioned_groups_flat if three else sharded.single_partition_of_fp32_groups
    for flat in flat_parts:
        moments = {kind: torch.zeros_like(flat) for kind in MOMENTS}
        sharded.optimizer.state[flat] = {"step": torch.tensor(step, device=flat.device), **moments}
    _link_moments(engine)


def _link_moments(engine: DeepSpeedEngine) -> None:
    """Let parameters find their moments at ZeRO 1 and 2.

    DeepSpeed does this once, after the first step of the first parameter group, when the other groups have none.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _part(parameter: Any, whole: Tensor) -> Tensor:
    """This rank's part at ZeRO 3: equal parts of the flat tensor, the last one padded."""
    size, rank = parameter.ds_tensor.numel(), dist.get_rank()
    flat = whole.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(flat, (0, size - flat.numel()))
