"""The general stage's projections of hidden states, kept beside the general student, and a stage that begins with them.

The published code of TinyBERT carries its projection from the general into the task stage. A student is loaded without
them as any other.
"""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from checkpoints.errors import UserError
from stages.distillation.distillation import Distillation
from stages.distillation.losses import HiddenStates
from stages.training.optimizer_state import shapes, whole_weights
from stages.training.options import PROJECTIONS_FILE


def projections_writer(model: Distillation) -> Callable[[Path], None]:
    """A writer of the projections that a student learned with. Call this on every rank: at ZeRO 3 each holds a part."""
    weights = {
        f"{name}.{key}": tensor
        for name, projection in _projections(model).items()
        for key, tensor in whole_weights(projection).items()
    }

    def write(directory: Path) -> None:
        if weights:
            save_file(weights, directory / PROJECTIONS_FILE)

    return write


def begin_with_projections(model: Distillation, directory: Path) -> str:
    """Let the projections of a model begin as those beside a general student, where layers and shapes are the same.

    It returns one line on how many there were.

    Raises:
        UserError: the file is damaged.
    """
    path, own = directory / PROJECTIONS_FILE, _projections(model)
    try:
        kept = load_file(path) if path.is_file() else {}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); remove it for new projections") from error
    found = 0
    for name, projection in own.items():
        given = {key.removeprefix(f"{name}."): t for key, t in kept.items() if key.startswith(f"{name}.")}
        if shapes(given) == shapes(projection.state_dict()):
            projection.load_state_dict(given)
            found += 1
    return f"{found} of {len(own)} projections begin as the general stage left them"


def _projections(model: Distillation) -> dict[str, nn.Module]:
    """Of the losses on hidden states, by the layers that they join."""
    losses = [loss for loss in model.losses if isinstance(loss, HiddenStates)]
    return {name: module for loss in losses for name, module in loss.projections_by_name.items()}
