"""What a model costs where it answers: milliseconds a row, rows a second, memory. On the CPU, in fp32."""

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.distillation.outputs import inputs_of
from stages.tasks.batches import Batch
from stages.tasks.token_rows import TokenRows

SINGLE_ROWS, BATCHES, BATCH = 100, 12, 32
WARM = 3
"""Passes before any is timed."""


def measure(models: dict[str, tuple[PreTrainedModel, TokenRows]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Time every model on the same rows of a split, the models in turn, and see how much memory a batch takes.

    Returns:
        name -> what `speed` gives, and "peak_bytes" (None where it cannot be told).
    """
    found = speed(models, seed)
    with torch.inference_mode():
        for name, (model, rows) in models.items():
            found[name]["peak_bytes"] = _peak_bytes(model, _batch(rows, _drawn(len(rows), seed)[1][0]))
    return found


def speed(models: dict[str, tuple[Callable, TokenRows]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Time every model on the same rows of a split, the models in turn.

    Batches are drawn from the split at random, as requests would come, and padded to their longest row.

    Args:
        models: name -> (model in eval mode on the CPU, the rows in its own tokens).
        seed: of the rows drawn.

    Returns:
        name -> {"latency_ms" (of one row, the median), "latency" and "batch" ({"p50", "p90", "p99"} in
        milliseconds, of one row and of 32), "rows_per_second" (of 32 at once, the median), "lengths" (mean,
        least and most tokens of the single rows), "threads"}.
    """
    single, batches = _drawn(len(next(iter(models.values()))[1]), seed)
    with torch.inference_mode():
        alone = _times(models, [np.array([row]) for row in single])
        together = _times(models, list(batches))
    return {
        name: {
            "latency_ms": round(float(np.median(alone[name])), 3),
            "latency": _percentiles(alone[name]),
            "batch": _percentiles(together[name]),
            "rows_per_second": round(BATCH * 1000 / float(np.median(together[name])), 1),
            "lengths": {
                "mean": round(float(rows.lengths[single].mean()), 1),
                "least": int(rows.lengths[single].min()),
                "most": int(rows.lengths[single].max()),
            },
            "threads": torch.get_num_threads(),
        }
        for name, (_, rows) in models.items()
    }


def _drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to be timed one at a time, rows of each batch) of a split of `count` rows."""
    single = np.linspace(0, count - 1, min(SINGLE_ROWS, count), dtype=int)
    drawn = np.random.default_rng(seed).permutation(count)
    return single, np.resize(drawn, (BATCHES, BATCH))  # a small split is gone over again


def _times(models: dict[str, tuple[Callable, TokenRows]], sets: list[np.ndarray]) -> dict[str, list[float]]:
    """Milliseconds of a forward pass over each set of rows, by model."""
    times = {name: [] for name in models}
    for warm in (True, False):
        for indices in sets[:WARM] if warm else sets:
            for name, (model, rows) in models.items():
                inputs = inputs_of(model, _batch(rows, indices).inputs)
                began = time.perf_counter()
                model(**inputs)
                if not warm:
                    times[name].append((time.perf_counter() - began) * 1000)
    return times


def _batch(rows: TokenRows, indices: np.ndarray) -> Batch:
    return rows.collate(indices, np.ones(len(indices), np.float32))


def _percentiles(times: list[float]) -> dict[str, float]:
    values = np.percentile(times, [50, 90, 99])
    return {name: round(float(value), 3) for name, value in zip(("p50", "p90", "p99"), values, strict=True)}


def _peak_bytes(model: PreTrainedModel, batch: Batch) -> int | None:
    """The weights, and what one pass over a batch takes beside them at its highest, as Linux counts pages."""
    inputs = inputs_of(model, batch.inputs)
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    with suppress(OSError, AttributeError):
        # What the allocator keeps of earlier passes would be taken again, and not be seen.
        ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5")  # the highest so far is forgotten (man 5 proc)
        before = _kilobytes(status, "VmHWM")
        model(**inputs)
        working = _kilobytes(status, "VmHWM") - before
        return sum(p.numel() * p.element_size() for p in model.parameters()) + 1024 * working
    return None


def _kilobytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
