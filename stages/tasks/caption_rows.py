"""Rows of images and texts: pairs to evaluate, and images to train on, for which false captions are drawn.

Axes in names: N rows, B rows of a batch, G captions, L tokens of a caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from checkpoints.errors import UserError
from stages.tasks.batches import Batch
from stages.tasks.image_rows import ImageRows
from stages.tasks.masking import uniform
from stages.tasks.types import Split

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase

FALSE_CAPTIONS = 15
"""Drawn for an image in each epoch; as METER's code and DCD's do on COCO."""


@dataclass(frozen=True)
class ImageTextProcessor:
    """What makes a model's inputs of images, and of texts."""

    image: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase

    def save_pretrained(self, directory: Path) -> None:
        """Write both."""
        self.image.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def read(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of texts, (G, L) int64."""
        return dict(
            self.tokenizer(list(texts), padding=True, truncation=True, return_attention_mask=True, return_tensors="pt",
                           return_token_type_ids=False)
        )  # fmt: skip


@dataclass(frozen=True)
class PairRows(ImageRows):
    """Rows of an image and a caption each.

    Attributes:
        images: (N,) the number of each row's image among `pixels`, which need not be (N, ...).
        captions: (N,) the number of each row's caption in `read`.
        read: the tokenized captions, (G captions, L) each.
    """

    images: np.ndarray
    captions: np.ndarray
    read: dict[str, Tensor]

    @classmethod
    def of(cls, split: Split, pixels: np.ndarray, processor: ImageTextProcessor) -> Self:
        """The rows of a split, with the pixels of its images in the order in which they come up."""
        names, texts = (
            {text: i for i, text in enumerate(dict.fromkeys(column))}
            for column in (split.text_a, split.text_b or [])
        )
        images = np.array([names[name] for name in split.text_a])
        captions = np.array([texts[text] for text in split.text_b or []])
        labels = np.array(split.labels, np.int64)
        return cls(pixels, labels, processor.image, images, captions, processor.read([*texts]))

    def pixels_of(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels[self.images[indices]]

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Batch:
        """As for images, with the row's caption."""
        batch = super().collate(indices, weights)
        own = {name: of[self.captions[indices]] for name, of in self.read.items()}
        return replace(batch, inputs=batch.inputs | own)


@dataclass(frozen=True)
class CaptionedImages(ImageRows):
    """Images to train on. A batch has all captions, and `true`, (B, G): which of them are true of each image.

    `DrawnCaptions` then draws the candidates of each image, of which the first is true; so all labels are 0.

    Attributes:
        true_NG: which captions are true of each image.
        read: what the tokenizer gives of the captions, (G, L) each.

    Raises:
        UserError: there are not enough captions.
    """

    unit: ClassVar[str] = "pair"

    true_NG: np.ndarray
    read: dict[str, Tensor]

    @classmethod
    def of(cls, split: Split, pixels: np.ndarray, processor: ImageTextProcessor) -> Self:
        """The rows of a split whose labels are true captions."""
        captions = sorted({text for texts in split.labels for text in texts})
        true_NG = np.array([[text in texts for text in captions] for texts in split.labels])
        labels = np.zeros(len(split), np.int64)
        return cls(pixels, labels, processor.image, true_NG, processor.read(captions))

    def __post_init__(self) -> None:
        fewest = int((~self.true_NG).sum(1).min())
        if fewest < FALSE_CAPTIONS:
            raise UserError(
                f"there are {fewest} captions that are not true of one of the images, and {FALSE_CAPTIONS} are drawn for "
                "each; give more training rows"
            )

    @cached_property
    def lengths(self) -> np.ndarray:  # type: ignore[override]
        """(N,) the pairs that a row makes."""
        return np.full(len(self), 1 + FALSE_CAPTIONS)

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Batch:
        batch = super().collate(indices, weights)
        return replace(
            batch, inputs=batch.inputs | self.read | {"true": torch.from_numpy(self.true_NG[indices])}
        )


@dataclass(frozen=True)
class DrawnCaptions:
    """Draws for each image one of its true captions and `FALSE_CAPTIONS` others, by (seed, epoch, row).

    No caption that is true of the image is drawn as false.
    """

    seed: int

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """The batch with `candidates`, (B, 1 + FALSE_CAPTIONS): numbers of captions."""
        true_BG = batch.inputs["true"]
        drawn_BG = uniform(self.seed, epoch, batch.rows, true_BG.shape[1])
        own_B1 = drawn_BG.masked_fill(~true_BG, 2.0).argmin(1, keepdim=True)
        false_BN = drawn_BG.masked_fill(true_BG, 2.0).topk(FALSE_CAPTIONS, largest=False).indices
        inputs = {name: of for name, of in batch.inputs.items() if name != "true"}
        return replace(batch, inputs=inputs | {"candidates": torch.cat([own_B1, false_BN], 1)})
