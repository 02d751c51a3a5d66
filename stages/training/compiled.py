"""Compiling what a job trains: before its first step, so that a resumed job computes with the same kernels."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from checkpoints.errors import UserError
from stages.distillation.device import WIDTH_MULTIPLE
from stages.training.micro_batch import explain_out_of_memory
from stages.training.stage import Stage

LOOKED_AT = 200
"""So many batches, the first of the order, have their shapes counted."""
MOST_SHAPES = 4
"""No more shapes than these, the most frequent ones, are compiled."""
USUAL = 0.9
"""`auto` compiles only if at least this fraction of the batches has one of those shapes."""
STEPS_A_SHAPE = 10_000
"""`auto` compiles only if each of those shapes has at least this many steps: compiling took 20 s and saved 3 ms a step."""


def compile_model(
    stage: Stage,
    model: nn.Module,
    batches: Iterator[np.ndarray],
    lengths: np.ndarray,
    steps: int,
    obstacle: str,
    attempt: Callable[[np.ndarray], None],
) -> None:
    """Compile a job's model for its most frequent shapes of batches, if `job.compile` says so, until the stage is over.

    Nothing is compiled later: batches of other shapes, and evaluations, run as if nothing were compiled. So a batch goes
    through the same kernels in a resumed job, whatever was seen before.

    Args:
        stage: its `job.compile`; what `auto` comes to is kept there.
        model: on the stage's device; its `compile` takes the arguments of `torch.compile`.
        batches: micro-batches in the order of the training, as row numbers.
        lengths: cost of each row.
        obstacle: why the job cannot be compiled; "" if it can.
        attempt: makes a forward and backward pass of a micro-batch that teaches nothing.

    Raises:
        UserError: compiling failed, and `job.compile` is on; or memory is too small for a micro-batch.
    """
    asked, gpu = stage.job.compile, stage.device.type == "cuda"
    if asked == "off" or asked == "auto" and not gpu or not steps:
        return
    multiple = WIDTH_MULTIPLE.get(stage.device.type, 1)
    chosen, part = usual_shapes(list(islice(batches, LOOKED_AT)), lengths, multiple)
    pays = part >= USUAL and steps >= STEPS_A_SHAPE * len(chosen)
    if asked == "auto" and (obstacle or not pays):
        stage.keep(compile="off")
        return
    if obstacle:
        stage.log(f"not compiled: {obstacle}")
        return
    stage.log(f"compiles for {len(chosen)} shape(s) of batches, which may take minutes")
    began, failure = time.monotonic(), ""
    with explain_out_of_memory(1, lengths, chosen[0]):
        attempt(
            chosen[0]
        )  # a first pass sets up what cannot be compiled: transformers' hooks for hidden states
    model.compile(backend=repeatable, dynamic=False)
    stage.resources.callback(torch.compiler.reset)
    try:
        for rows in chosen:
            attempt(rows)
    except Exception as error:  # whatever it is: what fails uncompiled, too, fails in the first step
        failure = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if asked == "on":
            raise UserError(
                f"on (given, or decided when the stage began), but {stage.name} could not be compiled ({failure}); give "
                "off: a half-done stage may resume so, equal within rounding",
                argument="compile",
            ) from error
    stance = "force_eager" if failure else "eager_on_recompile"
    stage.resources.enter_context(torch.compiler.set_stance(stance))
    if asked == "auto":
        stage.keep(compile="off" if failure else "on")
    took, shapes = time.monotonic() - began, f"{len(chosen)} shape(s), those of {part:.0%} of the batches"
    stage.log(
        f"not compiled: that failed ({failure})" if failure else f"compiled in {took:.0f} s for {shapes}"
    )


def repeatable(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
    """torch's compiler, so that a resumed job computes the same bits, in the precision of one that is not compiled.

    Kernels are chosen by rule, not by their measured speed, and add up in a fixed order, without atomic operations (as the
    gradients of embeddings otherwise do). The backward pass runs outside autocast. It is compiled at once, since on its
    first use it would be under other settings.
    """
    from torch._functorch import config  # these two imports take seconds
    from torch._inductor.compile_fx import compile_fx

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with config.patch(force_non_lazy_backward_lowering=True, backward_pass_autocast="off"):
            return compile_fx(graph, inputs)
    finally:
        torch.use_deterministic_algorithms(before)


def usual_shapes(
    batches: Sequence[np.ndarray], lengths: np.ndarray, multiple: int
) -> tuple[list[np.ndarray], float]:
    """A batch of each of the most frequent shapes, the most frequent first, and the fraction of all batches with one of them.

    Args:
        multiple: that batches are padded to.
    """
    of_shape: dict[tuple[int, int, bool], list[np.ndarray]] = defaultdict(list)
    for rows in batches:
        shortest, longest = lengths[rows].min(), lengths[rows].max()
        width = -(-int(longest) // multiple)
        of_shape[len(rows), width, bool(shortest < longest)].append(rows)
    frequent = sorted(of_shape.values(), key=len, reverse=True)[:MOST_SHAPES]
    return [found[0] for found in frequent], sum(map(len, frequent)) / len(batches)
