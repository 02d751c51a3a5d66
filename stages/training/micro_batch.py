"""Rows that a rank takes at once: what fits into its memory, and what is said where something does not."""

import contextlib
import resource
from collections.abc import Callable, Iterator

import torch

from checkpoints.errors import UserError
from stages.training import machine_limits as limits

TRIED = 0.5
"""Of the free memory, what a trial may take: in training what is freed lies scattered (tried: 0.75 was too much)."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    told = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in told
        for words in ("can't allocate memory", "out of memory", "bad_alloc", "could not create a memory")
    )


def rows_that_fit(most: int, attempt: Callable[[int], None]) -> int:
    """The most rows, halved from `most` until `attempt` of so many does not run out of memory.

    Raises:
        UserError: one row is too many.
    """
    rows = most
    while True:
        try:
            attempt(rows)
            return rows
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        if rows == 1:
            raise UserError("the memory does not hold a pass over a single row: lower the stage's max_length")
        rows = (rows + 1) // 2


@contextlib.contextmanager
def errors_when_full(ranks: int) -> Iterator[None]:
    """Have this process told when it takes more than `TRIED` of its share of the free memory.

    Without, Linux grants what is asked for, and kills a process when that is used.

    Args:
        ranks: processes on this host that do the same.
    """
    import psutil

    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    used = psutil.Process().memory_info().data
    bounds = [limit - used for limit in (before, most) if limit != resource.RLIM_INFINITY]
    free = max(0, min([limits.memory()[1] // ranks, *bounds]))
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(TRIED * free), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))
