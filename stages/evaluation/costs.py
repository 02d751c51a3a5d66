"""What inference costs on the CPU in fp32: latency, throughput and memory."""

import ctypes
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.distillation.outputs import inputs_of
from stages.evaluation.results import Costs, Lengths, Percentiles
from stages.tasks.batches import Batch
from stages.tasks.task_rows import TaskRows

SINGLE_ROWS, BATCHES, BATCH = 100, 12, 32
ATTEMPTS = 3
ENOUGH_SECONDS = 60.0
"""If the machine is busy, `speed` measures again only while fewer seconds than this have passed."""
Advance = Callable[[int], object]
WARM = 3
"""Warm-up passes, which are not timed."""


def measure(
    models: dict[str, tuple[PreTrainedModel, TaskRows]], seed: int = 0, advance: Advance | None = None
) -> dict[str, Costs]:
    """Measure latency, throughput and peak memory of each model; the arguments are those of `speed`."""
    costs = speed(models, seed, advance=advance)
    with torch.inference_mode():
        for name, (model, rows) in models.items():
            costs[name].peak_bytes = _peak_bytes(model, _batch(rows, _drawn(len(rows), seed)[1][0]))
    return costs


def speed(
    models: Mapping[str, tuple[Callable, TaskRows]],
    seed: int = 0,
    batch: int = BATCH,
    advance: Advance | None = None,
) -> dict[str, Costs]:
    """Measure latency and throughput of each model on the same rows of a split.

    The models take turns, so that other load on the machine affects all of them alike. Batches are drawn at random, as
    requests would arrive, and padded to their longest row. On a busy machine it measures up to three times, but begins
    no measurement after a minute, and keeps the calmest.

    Args:
        models: name -> (model in eval mode on the CPU, the split in the model's own tokens).
        advance: called with the number of rows after each pass.

    Returns:
        name -> costs, `peak_bytes` left None.
    """
    calmest: dict[str, Costs] = {}
    began = time.monotonic()
    for _ in range(ATTEMPTS):
        ran, waited = _scheduled()
        costs = _speed(models, seed, batch, advance)
        ran, waited = (after - before for after, before in zip(_scheduled(), (ran, waited), strict=True))
        waiting = round(waited / (ran + waited), 3) if ran + waited > 0 else None
        for cost in costs.values():
            cost.waiting = waiting
        if not calmest or (waiting or 0) < (next(iter(calmest.values())).waiting or 0):
            calmest = costs
        if not next(iter(calmest.values())).busy or time.monotonic() - began > ENOUGH_SECONDS:
            break
    return calmest


def _scheduled() -> tuple[int, int]:
    """Nanoseconds that the threads of this process ran, and waited for a processor; zeros where Linux does not tell."""
    ran = waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError):  # a thread that has just ended
            now = path.read_text().split()
            ran, waited = ran + int(now[0]), waited + int(now[1])
    return ran, waited


def _speed(
    models: Mapping[str, tuple[Callable, TaskRows]], seed: int, size: int, advance: Advance | None
) -> dict[str, Costs]:
    count = min(len(rows) for _, rows in models.values())
    size = 1 if count == 1 else size  # a graph is the only row, which is not read several times over
    single, batches = _drawn(count, seed, size)
    with torch.inference_mode():
        alone = _times(models, [np.array([row]) for row in single], advance)
        together = _times(models, list(batches), advance)
    costs = {}
    for name, (_, rows) in models.items():
        latency, batch = _percentiles(alone[name]), _percentiles(together[name])
        lengths = rows.lengths[single]
        costs[name] = Costs(
            latency,
            batch,
            round(size * 1000 / float(np.median(together[name])), 1),
            Lengths(round(float(lengths.mean()), 1), int(lengths.min()), int(lengths.max())),
            torch.get_num_threads(),
        )
    return costs


def _drawn(count: int, seed: int, size: int = BATCH) -> tuple[np.ndarray, np.ndarray]:
    """(rows to time one at a time, rows of each batch) of a split of `count` rows."""
    single = np.linspace(0, count - 1, min(SINGLE_ROWS, count), dtype=int)
    drawn = np.random.default_rng(seed).permutation(count)
    return single, np.resize(drawn, (BATCHES, size))  # repeats the rows of a small split


def _times(
    models: Mapping[str, tuple[Callable, TaskRows]], sets: list[np.ndarray], advance: Advance | None
) -> dict[str, list[float]]:
    """Milliseconds of a forward pass over each set of rows, by model."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for warm in (True, False):
        for indices in sets[:WARM] if warm else sets:
            for name, (model, rows) in models.items():
                inputs = inputs_of(model, _batch(rows, indices).inputs)
                began = time.perf_counter()
                model(**inputs)
                if not warm:
                    times[name].append((time.perf_counter() - began) * 1000)
                if advance:
                    advance(len(indices))
    return times


def _batch(rows: TaskRows, indices: np.ndarray) -> Batch:
    return rows.collate(indices, np.ones(len(indices), np.float32))


def _percentiles(times: list[float]) -> Percentiles:
    return Percentiles(*(round(float(value), 3) for value in np.percentile(times, [50, 90, 99])))


def _peak_bytes(model: PreTrainedModel, batch: Batch) -> int | None:
    """Bytes of the weights, and of the peak memory of one pass over a batch; None where Linux does not tell.

    The peak is that of the resident set (VmHWM), which is reset before the pass (man 5 proc).
    """
    inputs = inputs_of(model, batch.inputs)
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    with suppress(OSError, AttributeError):
        # Memory that the allocator keeps from earlier passes would be used again without being counted.
        ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5")
        before = _kilobytes(status, "VmHWM")
        model(**inputs)
        working = _kilobytes(status, "VmHWM") - before
        return sum(p.numel() * p.element_size() for p in model.parameters()) + 1024 * working
    return None


def _kilobytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
