"""One of several classes, of an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from stages.tasks.kinds.base import Head
from stages.tasks.kinds.classes import Classes


@dataclass(frozen=True)
class ImageClasses(Classes):
    """An image has one class.

    Attributes:
        augmentation: strength of the random changes to training images, from 0 (none) to 1
            (`stages.tasks.image_changes`).
    """

    augmentation: float = field(default=0.0, kw_only=True)

    name: ClassVar[str] = "image classes"
    reads_images: ClassVar[bool] = True
    head: ClassVar[Head] = "ImageClassification"
