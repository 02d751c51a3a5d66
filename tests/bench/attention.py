"""Work: the memory of the attention-score loss at length 2,048."""

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from stages.distillation.losses.attention import score_distance_by_traces
from tests.bench.machine import Machine
from tests.bench.place import STUDENT, TEACHER
from tests.bench.work import TOLERANCE, Work

HEADS = 12


def plain_maps(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> Tensor:
    """The loss of a layer as it is written down, all maps in memory."""
    mine, theirs = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 for q, k in ((qs, ks), (qt, kt)))
    return (mine - theirs).square().sum()


def attention_memory(length: int = 2048) -> Work:
    """What the loss of one layer and row takes, forward and backward, beyond the queries and keys it is given.

    On both sides the highest sum of what torch's allocator gave out and took back, as its profiler records it: exact, and
    the same in each run. The reference builds the maps of scores.
    """
    values: dict[str, list[Tensor]] = {}

    def measured(form: Callable[..., Tensor]) -> Callable[[int], float]:
        def run(repeat: int) -> float:
            torch.manual_seed(0)
            mine, theirs = (
                [torch.randn(1, HEADS, length, config.hidden_size // HEADS) for _ in range(2)]
                for config in (STUDENT, TEACHER)
            )
            leaves = [x.requires_grad_() for x in mine]
            with torch.profiler.profile(profile_memory=True) as profile:
                loss = form(*leaves, *theirs)
                loss.backward()
            values[form.__name__] = [loss.detach(), *(x.grad for x in leaves)]
            events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
            events.sort(key=lambda event: event.start_ns())
            return max(accumulate(event.nbytes() for event in events)) / 1e6

        return run

    def agrees() -> bool:
        maps, traces = values.values()
        return all((a - b).norm() <= TOLERANCE * a.norm() for a, b in zip(maps, traces, strict=True))

    def gradients(machine: Machine) -> float:
        return 2 * length * STUDENT.hidden_size * 4 / 1e6

    return Work(
        "attention-memory-2048", "MB", 0.1, measured(plain_maps), measured(score_distance_by_traces),
        gradients, agrees, less_is_better=True,
    )  # fmt: skip
