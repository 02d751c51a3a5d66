"""Images as rows: opened by Pillow, resized by a model's image processor, kept as bytes, normalised batch by batch.

Axes in names: N rows of a split, B of a batch, C channels (red, green, blue), S pixels of a side.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from checkpoints import store
from checkpoints.errors import UserError
from stages.tasks.batches import Batch, normalizers
from stages.tasks.task_rows import TaskRows

if TYPE_CHECKING:
    import torch
    from transformers import BaseImageProcessor

MOST_PIXELS = 50_000_000
"""Of an image. A small file may hold more than fits in memory."""

Image = Path | bytes | np.ndarray
"""A file, a file's bytes, or (H, W, 3) uint8."""


def opened(image: Image, name: str) -> np.ndarray:
    """Return an image as (H, W, 3) uint8: red, green and blue, turned as its camera noted.

    Args:
        name: for messages.

    Raises:
        UserError: there is no such file, Pillow cannot read it, or it has more pixels than `MOST_PIXELS`.
    """
    if isinstance(image, np.ndarray):
        return image
    from PIL import Image as pillow
    from PIL import ImageOps

    try:
        pillow.init()
        formats = [known for known in pillow.OPEN if known != "EPS"]  # which would start Ghostscript
        with pillow.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=formats) as file:
            if file.width * file.height > MOST_PIXELS:
                raise UserError(f"{name} has {file.width:,} x {file.height:,} pixels; at most {MOST_PIXELS:,} in all are read: "
                                "make it smaller or remove it")  # fmt: skip
            if file.mode == "F":
                raise ValueError("its pixels are fractions")
            turned = ImageOps.exif_transpose(file)
            if file.mode.startswith("I"):  # 16 bits of grey, of which Pillow would clip all but the darkest
                grey = np.asarray(turned) / 257
                if 0 < grey.max() < 256 / 257:
                    raise ValueError("its 16-bit values are all below 256, so it would be black: save 8 bits")
                if grey.min() < 0 or grey.max() > 255:
                    raise ValueError("its pixels have more than 16 bits")
                return np.repeat(grey.astype(np.uint8)[..., None], 3, 2)
            return np.asarray(turned.convert("RGB"))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name} cannot be read as an image (there is no such file)") from None
    except (OSError, ValueError, SyntaxError, RuntimeError, pillow.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} cannot be read as an image ({reason:.100}); give PNG, JPEG or another format that "
                        "Pillow reads, or remove it") from error  # fmt: skip


def side(processor: BaseImageProcessor) -> int:
    """Return the pixels of a side of the images that a processor makes, S.

    Raises:
        UserError: they are not squares of one size.
    """
    shapes = {
        np.asarray(resized(processor, np.zeros((height, width, 3), np.uint8))).shape
        for height, width in ((48, 64), (64, 48))
    }
    (_, height, width), *others = sorted(shapes)
    if others or height != width:
        raise UserError(
            f"the image processor makes images of {' and '.join(f'{h} x {w}' for _, h, w in sorted(shapes))} pixels, but "
            'all must be squares of one size; give "size" a height and an equal width in preprocessor_config.json'
        )
    return height


def resized(processor: BaseImageProcessor, image_HWC: np.ndarray) -> np.ndarray:
    """Return an image as the processor resizes and crops it, (C, S, S) uint8."""
    make: Any = processor
    made = make(images=[image_HWC], do_rescale=False, do_normalize=False, return_tensors="np")
    return made["pixel_values"][0]


def write_pixels(
    images: Sequence[Image],
    names: Sequence[str],
    processor: BaseImageProcessor,
    path: Path,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Write resized images to a file of bytes that `np.load` maps, (N, C, S, S)."""
    shape = resized(processor, opened(images[0], names[0])).shape
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (len(images), *shape))
    store.reserve(path, path.stat().st_size)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        made = resized(processor, opened(image, name))
        if made.shape != shape:
            raise UserError(
                f"{name} becomes {made.shape[1]} x {made.shape[2]} pixels, {names[0]} {shape[1]} x {shape[2]}, but all must be "
                'of one size; give "size" a height and a width in preprocessor_config.json'
            )
        pixels[i] = made
        if advance:
            advance(1)
    pixels.flush()


@dataclass(frozen=True)
class ImageRows(TaskRows):
    """Rows of images, each with one class; a job trains on them (`stages.training.rows`), evaluation predicts them.

    Attributes:
        pixels: (N, C, S, S) uint8.
        labels: (N,) int64 class ids, UNLABELLED where the class is not known.
        processor: the processor of the model that reads them; it says how pixels are normalised.
    """

    pixels: np.ndarray
    labels: np.ndarray
    processor: BaseImageProcessor

    unit: ClassVar[str] = "image"

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:  # type: ignore[override]
        """(N,) 1: all images cost the same."""
        return np.ones(len(self), np.int64)

    def normalizers(self, indices: np.ndarray) -> dict[str, float]:
        labelled = (self.labels[indices] >= 0).astype(np.int64)
        return normalizers(self.lengths[indices], labelled=labelled)

    @cached_property
    def _linear(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Factor and offset of each channel, (C, 1, 1): what rescaling and normalising amount to."""
        import torch

        given: dict[str, Any] = self.processor.to_dict()
        factor = given.get("rescale_factor", 1.0) if given.get("do_rescale", True) else 1.0
        mean, std = (
            np.broadcast_to(given[name] if given.get("do_normalize") else neutral, 3).astype(np.float64)
            for name, neutral in (("image_mean", 0.0), ("image_std", 1.0))
        )
        scale, offset = (torch.tensor(x, dtype=torch.float32) for x in (factor / std, -mean / std))
        return scale[:, None, None], offset[:, None, None]

    def pixels_of(self, indices: np.ndarray) -> np.ndarray:
        """(B, C, S, S) of these rows."""
        return self.pixels[indices]

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Batch:
        """These rows as a batch: `pixel_values` (B, C, S, S) float32, as the model's image processor would give them."""
        import torch

        scale, offset = self._linear
        pixels_BCSS = torch.from_numpy(self.pixels_of(indices)).float() * scale + offset
        return Batch(
            {"pixel_values": pixels_BCSS},
            torch.from_numpy(self.labels[indices]),
            torch.from_numpy(weights),
            torch.from_numpy(np.asarray(indices, np.int64)),
            padded=False,
        )
