"""The training state in one form for all: weights and AdamW's moments, whole, by parameter name.

DeepSpeed keeps them in pieces that depend on the number of ranks and the ZeRO stage, and its checkpoints load
nowhere else. In this form a run goes on with other ranks and another stage. The files are safetensors: no
checkpoint of a run is ever unpickled.
"""

from pathlib import Path

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

WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save(engine: DeepSpeedEngine, directory: Path) -> None:
    """Write the state's files. Called on every rank, after a step; rank 0 writes.

    Raises:
        UserError: a number in it is not finite, so that nothing could go on from it.
    """
    _link_moments(engine)
    for kind in (WEIGHTS, *MOMENTS):
        tensors = {}
        for name, parameter in _parameters(engine):
            whole = _whole(engine, parameter, kind)
            if dist.get_rank() == 0:
                tensors[name] = whole.detach().to("cpu", copy=True).contiguous()
                if not tensors[name].isfinite().all():
                    raise UserError(
                        f"{kind} of {name} is no longer finite, though the losses were: a gradient broke it. The "
                        "checkpoint before is kept; lower the stage's learning_rate with restart=true"
                    )
        if dist.get_rank() == 0:
            save_file(tensors, directory / f"{kind}.safetensors")


def steps(engine: DeepSpeedEngine) -> float:
    """The steps that AdamW itself has counted, by which it corrects its moments' bias."""
    zero = engine.zero_optimization_stage()
    state = engine.optimizer.optimizer.state if zero else engine.optimizer.state
    return float(next(iter(state.values()))["step"])


@torch.no_grad()
def load(engine: DeepSpeedEngine, directory: Path, step: float) -> None:
    """Set an engine that has taken no step to a saved state. Called on every rank.

    Args:
        engine: at any ZeRO stage.
        directory: where `save` wrote.
        step: what `steps` said when it was saved.

    Raises:
        UserError: the state is of another model.
    """
    saved = {kind: load_file(directory / f"{kind}.safetensors") for kind in (WEIGHTS, *MOMENTS)}
    shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in _parameters(engine)}
    if {name: tuple(tensor.shape) for name, tensor in saved[WEIGHTS].items()} != shapes:
        raise UserError(f"{directory} is of another model; restart=true begins the stage anew")
    zero = engine.zero_optimization_stage()
    if zero:
        _create_moments(engine, step)
    for name, parameter in _parameters(engine):
        weights = saved[WEIGHTS][name].to(engine.device)
        with GatheredParameters([parameter], modifier_rank=0):
            if zero < 3 or dist.get_rank() == 0:
                parameter.copy_(weights)
        moments = {kind: saved[kind][name].to(engine.device) for kind in MOMENTS}
        if zero == 0:
            taken = torch.tensor(step, device=parameter.device)
            engine.optimizer.state[parameter] = {"step": taken, **moments}
        elif zero < 3:
            safe_set_full_fp32_param(parameter, weights)
            for kind, moment in moments.items():
                safe_set_full_optimizer_state(parameter, moment, kind)
        else:
            safe_set_local_fp32_param(parameter, _part(parameter, weights))
            for kind, moment in moments.items():
                safe_set_local_optimizer_state(parameter, _part(parameter, moment), kind)


def _parameters(engine: DeepSpeedEngine) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]


def _whole(engine: DeepSpeedEngine, parameter: nn.Parameter, kind: str) -> Tensor:
    if engine.zero_optimization_stage() == 0:
        return parameter if kind == WEIGHTS else engine.optimizer.state[parameter][kind]
    if kind == WEIGHTS:
        return safe_get_full_fp32_param(parameter)
    return safe_get_full_optimizer_state(parameter, kind)


def _create_moments(engine: DeepSpeedEngine, step: float) -> None:
    """The optimiser's state at ZeRO 1 to 3, which is else made by the first step."""
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


def _part(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """This rank's share at ZeRO 3: equal parts of the flat tensor, the last one padded."""
    size, rank = parameter.ds_tensor.numel(), dist.get_rank()
    flat = whole.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(flat, (0, size - flat.numel()))
