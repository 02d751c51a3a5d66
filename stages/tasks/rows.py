"""Rows of a task: of tokens (`TokenRows`) or of images (`ImageRows`). What training and evaluation need of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from stages.tasks.batches import Batch


class TaskRows(Protocol):
    """Rows with answers. `TokenRows` says what each member is.

    What is `truncated`, and how a text is cut into windows (`begins`, `places`), is of tokens alone: rows of another kind
    give 0 and None.
    """

    @property
    def unit(self) -> str: ...

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def targets(self) -> np.ndarray: ...

    @property
    def first_targets(self) -> torch.Tensor: ...

    @property
    def scored(self) -> np.ndarray | None: ...

    @property
    def begins(self) -> np.ndarray | None: ...

    @property
    def places(self) -> np.ndarray | None: ...

    @property
    def truncated(self) -> int: ...

    @property
    def texts(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def of_texts(self, logits: np.ndarray) -> np.ndarray: ...

    def normalizers(self, indices: np.ndarray) -> dict[str, float]: ...

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Batch: ...
