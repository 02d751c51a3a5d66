"""Optimisers and learning rates: AdamW in two groups, or what a stage declares, as one optimiser."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from checkpoints.errors import UserError
from stages.training.options import Training


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimisers as one: their groups and states are its own.

    Args:
        optimizers: each over parameters of its own.

    Raises:
        ValueError: a parameter is in two groups.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = optimizers
        for optimizer in optimizers:
            optimizer.state = self.state

    def step(self, closure: Any = None) -> Any:
        """Take a step of each optimiser."""
        for optimizer in self.optimizers:
            optimizer.step()


def combined(
    optimizers: Sequence[torch.optim.Optimizer], parameters: dict[str, nn.Parameter]
) -> CombinedOptimizer:
    """The optimisers that a stage declares, as one.

    Args:
        optimizers: they must cover all parameters.
        parameters: the trained ones, by name.

    Raises:
        UserError: they leave a parameter out.
    """
    optimizer = CombinedOptimizer(optimizers)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [name for name, p in parameters.items() if id(p) not in trained]
    if left:
        raise UserError(
            f"{left[0]} and {len(left) - 1} more parameters are in no optimiser of the stage's step: add them to one, "
            "or set requires_grad to False"
        )
    return optimizer


def default_optimizer(parameters: dict[str, nn.Parameter], options: Training) -> torch.optim.AdamW:
    """AdamW; biases and LayerNorm do not decay."""
    decayed = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)


def scheduled(peak: float, options: Training, step: int, steps: int) -> float:
    """The learning rate of a step: linear warm-up, then linear decay or constant. If there is only one step, it has the peak.

    Args:
        options: warm-up and schedule.
        step: counted from 1.
        steps: number of steps of the whole training.
    """
    warm = max(1, math.ceil(round(options.warmup * steps, 6)))  # whole steps, as transformers counts them
    if step < warm:
        return peak * step / warm
    if options.schedule == "constant":
        return peak
    return peak * (steps - step + 1) / (steps - warm + 1)
