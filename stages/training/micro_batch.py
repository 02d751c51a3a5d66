"""How many rows a rank takes at once: the most that fit into its memory, and the error where a batch does not."""

import contextlib
import resource
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from checkpoints import store
from checkpoints.errors import UserError
from stages.training import machine_limits as limits
from stages.training.log import name_rows
from stages.training.optimizer_state import persistent_buffers
from stages.training.stage import Stage, is_first_rank

TRIAL_FRACTION = 0.5
"""Of the free memory, what a trial may take; the rest covers fragmentation (0.75 was measured to be too much)."""


def find_micro_batch(
    stage: Stage, lengths: np.ndarray, most: int, attempt: Callable[[np.ndarray], None]
) -> int:
    """The rows that fit. The number is kept with the stage, so that a resumed one takes as many. Called on every rank.

    Args:
        stage: in whose directory the number is kept.
        lengths: cost of each row; the costliest are tried.
        most: rows of a rank's part of the global batch.
        attempt: does what a micro-batch of the rows that it is given needs memory for.

    Raises:
        UserError: one row is too many.
    """
    world = dist.get_world_size()
    path = stage.directory / f"micro_batch-{world}-ranks.json"
    found = [store.read_json(path).get("rows") if is_first_rank() else None]
    dist.broadcast_object_list(found)
    if found[0]:
        return found[0]
    heaviest = np.argsort(lengths, kind="stable")[-most:]
    with errors_when_full(stage.device, world):
        rows = torch.tensor(rows_that_fit(most, lambda rows: attempt(heaviest[-rows:])))
    rows = rows.to(stage.device)
    dist.all_reduce(rows, dist.ReduceOp.MIN)
    fitting = int(rows)
    if is_first_rank():
        store.write_json(path, {"rows": fitting})
    stage.log(f"micro_batch=auto: {fitting} rows at once, of {most}")
    return fitting


GPU_TRIAL_FRACTION = 0.9
"""The same on a GPU, whose allocator keeps what was freed."""


@contextlib.contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """While the block tries a pass, hold as much memory as AdamW's moments and, with several ranks, the flat gradients take.

    Gradients and buffers are restored afterwards.
    """
    size = sum(parameter.numel() for parameter in model.parameters())
    others = torch.ones(3 if dist.get_world_size() > 1 else 2, size, device=next(model.parameters()).device)
    buffers = persistent_buffers(model)
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    model.train()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in buffers.items():
            buffer.copy_(before[name])
        del others


@contextlib.contextmanager
def explain_out_of_memory(step: int, lengths: np.ndarray, indices: np.ndarray) -> Iterator[None]:
    """Turn running out of memory in the block into a `UserError` that names the rows.

    Args:
        step: that the job was about to finish.
        lengths: cost of all rows.
        indices: rows of the micro-batch.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise UserError(
            f"out of memory at step {step}, in {len(indices)} rows of up to {lengths[indices].max()} tokens "
            f"({name_rows(indices)}); give a number below {len(indices)}, or auto, which finds one that fits and keeps "
            "the global batch; or lower max_length. The last checkpoint is intact",
            argument="micro_batch",
        ) from error


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in text
        for words in ("can't allocate memory", "out of memory", "bad_alloc", "could not create a memory")
    )


def rows_that_fit(most: int, attempt: Callable[[int], None]) -> int:
    """The number of rows, halved from `most` until `attempt` of so many does not run out of memory.

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
            raise UserError(
                "a pass over a single row does not fit into memory; lower it", argument="max_length"
            )
        rows = (rows + 1) // 2


@contextlib.contextmanager
def errors_when_full(device: torch.device, ranks: int) -> Iterator[None]:
    """Within the block, allocating more than a part of the device's free memory is an error.

    On a CPU `TRIAL_FRACTION` of this process's part: Linux grants what is asked for, and kills a process that uses it.

    Args:
        ranks: processes that do the same; on a CPU they share its memory.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(GPU_TRIAL_FRACTION * free / total, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
            torch.cuda.empty_cache()
        return
    import psutil

    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    used = psutil.Process().memory_info().data
    bounds = [limit - used for limit in (before, most) if limit != resource.RLIM_INFINITY]
    free = max(0, min([limits.memory()[1] // ranks, *bounds]))
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(TRIAL_FRACTION * free), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))
