"""About how long a stage will take: from how fast this machine multiplies matrices of its models' sizes."""

import time
from collections.abc import Mapping
from functools import cache

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig

from stages.training.machine_limits import cores
from stages.training.stage import Stage

TOKENS = 2048
"""Of the batch that is multiplied: 64 rows of 32 tokens."""

FIRST, SECONDS, LONG = 0.04, 0.8, 60.0
"""Of the measurement of one size, after a quarter of that to warm up: of the first one, and of a second one where the
first says that the work takes longer than `LONG`."""

OTHER_WORK = 1.6
"""What a step takes in times of its matrix products: attention, activations, losses, optimiser, reading of rows. Measured
on a CPU: 1.4 for a MiniLM-L6 that is tuned, 1.5 for its forward pass, 2.1 for a student of 3 layers 192 wide."""

STEP_SECONDS = 0.03
"""What a step takes beside its models' operations: the engine, small kernels. Measured with models of almost no size."""


def step_seconds(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> float:
    """About how long a training step takes of a model that matrix products say little about, such as a convnet.

    Its forward pass is timed, after one to warm up; the backward pass takes twice as long.
    """
    with torch.no_grad():
        model(**inputs)
        _wait(inputs)
        began = time.perf_counter()
        model(**inputs)
        _wait(inputs)
    return 3 * (time.perf_counter() - began)


def _wait(inputs: Mapping[str, torch.Tensor]) -> None:
    """Wait for the kernels of a GPU, which run on while Python goes on."""
    if any(value.is_cuda for value in inputs.values()):
        torch.cuda.synchronize()


def estimated_seconds(stage: Stage, config: PretrainedConfig, flops: float) -> float:
    """Estimate the seconds a run's ranks need for a model's operations. No other process may use the cores.

    Args:
        stage: whose device, precision and number of ranks are meant.
        config: the config of the model, whose widths are measured.
        flops: floating-point operations of its matrix products.
    """
    width = getattr(config, "hidden_size", 256)
    inner = getattr(config, "intermediate_size", getattr(config, "hidden_dim", 4 * width))
    ranks = stage.job.nproc
    # Ranks share the cores; this process has all of them, or those of one rank.
    if stage.device.type == "cpu":
        ranks = max(1, min(ranks, cores() // torch.get_num_threads()))

    def estimated(measured: float) -> float:
        speed = products_per_second(width, inner, stage.precision, stage.device, measured)
        return OTHER_WORK * flops / speed / ranks

    seconds = estimated(FIRST)
    return seconds if seconds < LONG else estimated(SECONDS)


@cache
def products_per_second(
    width: int, inner: int, precision: torch.dtype, device: torch.device, seconds: float
) -> float:
    """Floating-point operations a second of a feed-forward layer's two products, `width` to `inner` and back."""
    x_TW = torch.ones(TOKENS, width, dtype=precision, device=device)
    up, down = x_TW.new_ones(inner, width), x_TW.new_ones(width, inner)

    def repeat(seconds: float) -> float:
        done, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds or not done:
            functional.linear(functional.linear(x_TW, up), down)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            done += 1
        return done * 4 * TOKENS * width * inner / elapsed

    repeat(seconds / 4)
    return repeat(seconds)
