"""What a job trains on. Rows of tokens are one kind; images, graphs or pairs are others, each in a file of its own."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

BatchTransform = Callable[[Any, int], Any]
"""Changes a batch while it is still in the CPU's memory: called with it and the epoch."""


class Rows(Protocol):
    """The data-set interface: the order of an epoch, sharding, accumulation and resume use only these members.

    Rows that only so many ranks can train on say so in an int `max_ranks` (a graph that is one row: 1). Rows whose cost is
    not counted in tokens name the `unit` ("image").

    Example:
        >>> class Images:
        ...     def __init__(self, pixels: torch.Tensor):
        ...         self.pixels, self.lengths = pixels, np.ones(len(pixels), np.int64)
        ...
        ...     def __len__(self) -> int:
        ...         return len(self.pixels)
        ...
        ...     def normalizers(self, indices: np.ndarray) -> dict[str, float]:
        ...         return {"rows": len(indices)}
        ...
        ...     def collate(self, indices: np.ndarray, weights: np.ndarray) -> BatchEncoding:
        ...         return BatchEncoding({"pixels": self.pixels[indices], "weight": torch.from_numpy(weights)})
    """

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int, the cost of each row (tokens); rows of similar cost share a batch."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def normalizers(self, indices: np.ndarray) -> dict[str, float]:
        """What the losses of a global batch of these rows are divided by: for each `LossTerm.normalizer`, at least 1."""
        ...

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Any:
        """These rows as a batch. The job calls its `to(device)`; the model that the job trains reads it.

        Args:
            indices: (B,) int64, row numbers.
            weights: (B,) float32, 1, or 0 for a row that only fills the batch and must not count in a loss.
        """
        ...
