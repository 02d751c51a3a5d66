"""What the order of an epoch takes of memory and time, for up to 10**8 rows (simulated: lengths alone, on disk).

.venv/bin/python -m tests.bench.epoch_order        # about five minutes
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from stages.training.data_order import epoch_batches

ROWS = (10**6, 10**7, 10**8)
BATCH = 256


def main() -> int:
    before = own_memory()
    print("rows           memory of the order   whole order   a step in the middle, after a start")
    for rows in ROWS:
        with tempfile.TemporaryDirectory(prefix="order-") as directory:
            lengths = made_lengths(Path(directory) / "lengths.bin", rows)
            most, began = 0.0, time.perf_counter()
            seen, batches = 0, epoch_batches(lengths, BATCH, seed=1, epoch=0)
            for batch in batches:
                if seen % (256 * BATCH) == 0:
                    most = max(most, own_memory() - before)
                seen += len(batch)
            assert seen == rows
            whole, began = time.perf_counter() - began, time.perf_counter()
            epoch_batches(lengths, BATCH, seed=1, epoch=1)[len(batches) // 2]
            print(
                f"{rows:<14,} {most:8.1f} MB {whole:19.1f} s {time.perf_counter() - began:19.2f} s",
                flush=True,
            )
    return 0


def made_lengths(path: Path, rows: int) -> np.ndarray:
    """Lengths of rows, mapped from a file as those of tokenized rows are."""
    random = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, rows, 10**6):
            random.integers(5, 129, min(10**6, rows - start), np.int32).tofile(file)
    return np.memmap(path, np.int32, mode="r")


def own_memory() -> float:
    """MB of this process's own; pages of mapped files do not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


if __name__ == "__main__":
    sys.exit(main())
