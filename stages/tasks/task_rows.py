"""Rows of a task: of tokens (`TokenRows`), images (`ImageRows`) or a graph. What training and evaluation need of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    import torch

    from stages.tasks.batches import Batch


class TaskRows(ABC):
    """Rows with answers. By default each row has one answer and is a whole text, not a window of a longer one.

    Attributes:
        unit: what `lengths` count, such as "token".
        lengths: (N,) int64, the cost of each row.
        begins, places: those of windows (`TokenRows`); None where no text is cut into any.
    """

    unit: ClassVar[str]
    lengths: np.ndarray
    begins: np.ndarray | None = None
    places: np.ndarray | None = None

    @property
    def truncated(self) -> int:
        """How many rows were truncated."""
        return 0

    @property
    def targets(self) -> np.ndarray:
        """(N,) int64, the number of answers of each row."""
        return np.ones(len(self), np.int64)

    @property
    def first_targets(self) -> torch.Tensor:
        """(N,) int64, the index of each row's first answer among the answers of all rows."""
        import torch

        return torch.arange(len(self))

    @property
    def scored(self) -> np.ndarray | None:
        """Whether each answer is scored; None: all are."""
        return None

    @property
    def texts(self) -> np.ndarray:
        """(N,) the number of each row's text."""
        return np.arange(len(self))

    def of_texts(self, logits: np.ndarray) -> np.ndarray:
        """(texts, C): logits (N, C) of the rows, those of windows pooled."""
        return logits

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def normalizers(self, indices: np.ndarray) -> dict[str, float]:
        """What the losses of a global batch of these rows are divided by."""

    @abstractmethod
    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Batch:
        """These rows as a batch.

        Args:
            indices: (B,) row numbers.
            weights: (B,) 1, or 0 for a row that only fills the batch.
        """
