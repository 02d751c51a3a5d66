"""The order of rows in training: the batches of an epoch, and their division over ranks and micro-batches."""

from collections.abc import Sequence

import numpy as np

POOL = 50  # batches whose rows are sorted by cost together
# Rows that are permuted at once: what the order of an epoch takes of memory does not grow beyond.
BUFFER_ROWS = 2**20
BLOCK_ROWS = 2**14  # consecutive rows that stay in one buffer


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> Sequence[np.ndarray]:
    """The global batches of an epoch: row numbers, of similar cost together, each row exactly once.

    Rows are permuted, sorted by cost within pools of 50 batches, cut into batches, and these shuffled. The last batch of
    the last pool may be short.

    More than 2**20 rows are ordered in bounded memory: blocks of 2**14 consecutive rows are permuted, and as many of
    them as make 2**20 rows are ordered together, as above. Such a group is a buffer: one at a time
    is in memory, and any can be made without those before it.

    Args:
        lengths: (N,) cost of each row.
        seed, epoch: all that the order depends on; not the number of ranks.
    """
    if len(lengths) > BUFFER_ROWS:
        return _BufferedBatches(lengths, batch_size, seed, epoch)
    return _batches(lengths, np.arange(len(lengths)), batch_size, (seed, epoch))


def _batches(
    lengths: np.ndarray, rows: np.ndarray, batch_size: int, entropy: tuple[int, ...]
) -> list[np.ndarray]:
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    order = random.permutation(rows)
    batches = []
    for start in range(0, len(order), POOL * batch_size):
        pool = order[start : start + POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[place] for place in random.permutation(len(batches))]


class _BufferedBatches(Sequence):
    """The batches of an epoch of many rows; see `epoch_batches`."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, epoch: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch
        self.batches_of_buffer = max(1, BUFFER_ROWS // batch_size)
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
        self.first_rows = BLOCK_ROWS * random.permutation(-(-len(lengths) // BLOCK_ROWS))
        self.last_rows = np.minimum(self.first_rows + BLOCK_ROWS, len(lengths))
        self.ends = np.cumsum(self.last_rows - self.first_rows)  # of the blocks in the order of the epoch
        self.buffer: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __getitem__(self, place):
        if not 0 <= place < len(self):
            raise IndexError(place)
        number, in_buffer = divmod(place, self.batches_of_buffer)
        if self.buffer[0] != number:
            self.buffer = (-1, [])  # freed before the next is made
            entropy = (self.seed, self.epoch, number + 1)
            self.buffer = (number, _batches(self.lengths, self._rows(number), self.batch_size, entropy))
        return self.buffer[1][in_buffer]

    def _rows(self, number: int) -> np.ndarray:
        """The rows of a buffer: of the blocks between two places in the order of the epoch."""
        size = self.batches_of_buffer * self.batch_size
        start, stop = number * size, min((number + 1) * size, len(self.lengths))
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right")
        rows = []
        for block in range(first, last + 1):
            # Its place in the order.
            begin = self.ends[block] - (self.last_rows[block] - self.first_rows[block])
            offset = self.first_rows[block] - begin
            rows.append(np.arange(max(start, begin), min(stop, self.ends[block])) + offset)
        return np.concatenate(rows)


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
