"""Random changes to training images. They depend on (seed, epoch, row), so teacher and student see the same image.

Axes in names: B rows, C channels, S pixels of a side.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from stages.tasks.batches import Batch
from stages.tasks.masking import uniform

DEGREES, ZOOM, SHEAR, SHIFT = 40.0, 0.4, 0.4, 0.2
"""At strength 1: the most an image is turned, scaled, sheared, and moved (as a fraction of its side)."""
CONTRAST, BRIGHTNESS = 0.6, 0.6
"""At strength 1: the most that normalised pixels are multiplied by more or less than 1, and the most that is added."""
ERASED, LEAST_AREA, MOST_AREA = 0.5, 0.02, 0.33
"""At strength 1 the probability that a rectangle is filled with one random grey; its part of the image."""
NUMBERS = 11
"""Random numbers that an image needs."""


@dataclass(frozen=True)
class ImageChanges:
    """Turns, scales, shears and moves each image of a batch, changes its contrast and brightness, and erases a part.

    It is not the DeiT code's RandAugment: its kinds of changes, but all of them at once, each of a random extent. Nothing
    is mirrored, since mirrored digits and letters are others.

    Args:
        seed: of the stage.
        strength: from 0 (nothing changes) to 1.
    """

    seed: int
    strength: float

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """The batch with changed `pixel_values`."""
        drawn_NB = uniform(self.seed, epoch, batch.rows, NUMBERS).float().T
        x_BCSS = self.transformed(batch.inputs["pixel_values"], drawn_NB)
        return replace(batch, inputs=batch.inputs | {"pixel_values": x_BCSS})

    def transformed(self, x_BCSS: Tensor, drawn_NB: Tensor) -> Tensor:
        """Images changed by `NUMBERS` numbers from [0, 1) each."""
        turn, zoom, shear, right, down, contrast, brightness = self.strength * (2 * drawn_NB[:7] - 1)
        angle, size = turn * math.radians(DEGREES), 1 + ZOOM * zoom
        cos, sin = angle.cos() / size, angle.sin() / size
        # Where each pixel of the result comes from; the coordinates of a side go from -1 to 1.
        across = torch.stack([cos, SHEAR * shear * cos - sin, 2 * SHIFT * right], -1)
        along = torch.stack([sin, SHEAR * shear * sin + cos, 2 * SHIFT * down], -1)
        grid = functional.affine_grid(
            torch.stack([across, along], 1), list(x_BCSS.shape), align_corners=False
        )
        x_BCSS = functional.grid_sample(x_BCSS, grid, padding_mode="border", align_corners=False)
        x_BCSS = x_BCSS * (1 + CONTRAST * contrast)[:, None, None, None]
        x_BCSS = x_BCSS + (BRIGHTNESS * brightness)[:, None, None, None]
        return self._erased(x_BCSS, drawn_NB[7:])

    def _erased(self, x_BCSS: Tensor, drawn_NB: Tensor) -> Tensor:
        """Some images with a square filled with one grey (random erasing, Zhong et al., arXiv 1708.04896)."""
        whether, area, across, along = drawn_NB
        half_B = (LEAST_AREA + (MOST_AREA - LEAST_AREA) * area).sqrt() / 2
        places_S = (torch.arange(x_BCSS.shape[-1]) + 0.5) / x_BCSS.shape[-1]
        columns_BS, rows_BS = ((places_S - at[:, None]).abs() < half_B[:, None] for at in (across, along))
        inside_BSS = rows_BS[:, :, None] & columns_BS[:, None, :]
        inside_BSS &= (whether < ERASED * self.strength)[:, None, None]
        grey_B = 2 * (whether / max(ERASED * self.strength, 1e-9)) - 1  # uniform where it is below
        return torch.where(inside_BSS[:, None], grey_B[:, None, None, None], x_BCSS)
