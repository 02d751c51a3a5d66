"""The order of rows in training: the batches of an epoch, and their division over ranks and micro-batches."""

import numpy as np

POOL = 50  # batches whose rows are sorted by cost together


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The global batches of an epoch: row numbers, of similar cost together, each row exactly once.

    Rows are permuted, sorted by cost within pools of 50 batches, cut into batches, and these shuffled. The last batch of
    the last pool may be short.

    Args:
        lengths: (N,) cost of each row.
        batch_size: rows of a batch.
        seed, epoch: all that the order depends on; not the number of ranks.
    """
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
    order = random.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), POOL * batch_size):
        pool = order[start : start + POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[place] for place in random.permutation(len(batches))]


def shard_batch(
    rows: np.ndarray, world: int, rank: int, micro_batches: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return this rank's micro-batches of a global batch, as (row numbers, weights).

    The batch is dealt out like cards over world x micro_batches parts, which differ by one row at most.
    A part that gets none is one row with weight zero, so that every rank makes the same number of passes.
    """
    parts = world * micro_batches
    mine = [rows[part::parts] for part in range(rank * micro_batches, (rank + 1) * micro_batches)]
    return [
        (part, np.ones(len(part), np.float32)) if len(part) else (rows[:1], np.zeros(1, np.float32))
        for part in mine
    ]
