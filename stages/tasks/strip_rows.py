"""Rows of images of strings: a strip of symbols and the string that stands on it, for learning with CTC.

Axes in names: N rows of a split, B of a batch, T frames, L symbols of the longest string, C outputs of a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
import torch

from checkpoints.errors import UserError
from stages.tasks.batches import Batch, normalizers
from stages.tasks.image_rows import ImageRows
from stages.tasks.types import UNLABELLED

COLUMNS = 2
"""Columns of pixels that make a frame, of which a model says what it emits."""


@dataclass(frozen=True)
class StripRows(ImageRows):
    """Rows of strips. A model answers for each frame.

    A batch has the strings among its inputs, as `symbols` (B, L) int64: a model that reads labels takes them, others do
    not. `labels` (B, T) says at each frame of a row whether its string is known: 0, or UNLABELLED.

    Attributes:
        symbols: (N, L) int64, a string's class ids, then UNLABELLED; all UNLABELLED where it is not known.
    """

    symbols: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray, strings: Sequence[str], classes: Sequence[str], processor) -> Self:
        """Rows of these strings, empty where they are not known.

        Args:
            pixels: (N, 3, height, width) uint8.
            classes: symbols by class id.

        Raises:
            UserError: a strip is too narrow for its string.
        """
        frames = pixels.shape[-1] // COLUMNS
        for text in strings:
            needed = len(text) + sum(a == b for a, b in pairwise(text))  # a blank parts equal neighbours
            if needed > frames:
                raise UserError(
                    f"{text!r:.60} needs {needed} frames, and a strip of {pixels.shape[-1]} pixels has {frames}; let the image "
                    "processor make wider ones"
                )
        ids = {symbol: i for i, symbol in enumerate(classes)}
        symbols = np.full((len(strings), max(1, *map(len, strings))), UNLABELLED, np.int64)
        for row, text in zip(symbols, strings, strict=True):
            row[: len(text)] = [ids[symbol] for symbol in text]
        known = np.where(symbols[:, 0] >= 0, 0, UNLABELLED)
        return cls(pixels, known, processor, symbols)

    @property
    def frames(self) -> int:
        """T."""
        return self.pixels.shape[-1] // COLUMNS

    @property
    def targets(self) -> np.ndarray:
        """(N,) the answers of each row: one for each frame."""
        return np.full(len(self), self.frames)

    @property
    def first_targets(self) -> torch.Tensor:
        """(N,) int64, the number of each row's first frame."""
        return torch.arange(len(self)) * self.frames

    def of_texts(self, logits: np.ndarray) -> np.ndarray:
        """(N, T, C): the logits of each row's frames."""
        return logits.reshape(len(self), self.frames, -1)

    def normalizers(self, indices: np.ndarray) -> dict[str, float]:
        frames, known = self.targets[indices], self.labels[indices] >= 0
        return normalizers(self.lengths[indices], frames, frames * known)

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Batch:
        """As of `ImageRows`, and the strings."""
        batch = super().collate(indices, weights)
        symbols_BL = torch.from_numpy(self.symbols[indices])
        labels_BT = torch.from_numpy(self.labels[indices])[:, None].expand(-1, self.frames).contiguous()
        return replace(batch, inputs=batch.inputs | {"symbols": symbols_BL}, labels=labels_BT)

    @property
    def with_others_images(self) -> Self:
        """The same strings, each with the image of the row before it. A model that copies the string does as well on these."""
        return replace(self, pixels=np.roll(self.pixels, 1, axis=0))
