"""Random changes to training images. They depend on (seed, epoch, row), so teacher and student see the same image.

Axes in names: B rows, C channels, S pixels of a side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional

from stages.tasks.batches import Batch
from stages.tasks.image_rows import ImageRows
from stages.tasks.masking import uniform

DEGREES, ZOOM, SHEAR, SHIFT = 40.0, 0.4, 0.4, 0.2
"""At strength 1: the most an image is turned, scaled, sheared, and moved (as a fraction of its side)."""
CONTRAST, BRIGHTNESS = 0.6, 0.6
"""At strength 1: the most that normalised pixels are multiplied by more or less than 1, and the most that is added."""
ERASED, LEAST_AREA, MOST_AREA = 0.5, 0.02, 0.33
"""At strength 1 the probability that a square is filled with one grey; the least and most of its area."""
NUMBERS = 11
"""Random numbers that an image needs."""


@dataclass(frozen=True)
class ImageChanges:
    """Turns, scales, shears and shifts each image of a batch, changes contrast and brightness, and erases a part of some.

    Unlike the DeiT code's RandAugment it makes all changes at once, each of a random extent. It mirrors nothing, since
    mirrored digits and letters are others.

    Args:
        seed: the seed of the stage.
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
        part = LEAST_AREA + (MOST_AREA - LEAST_AREA) * area
        inside_BSS = _squares(x_BCSS.shape[-1], part, across, along)
        inside_BSS &= (whether < ERASED * self.strength)[:, None, None]
        grey_B = 2 * (whether / max(ERASED * self.strength, 1e-9)) - 1  # uniform where it is below
        return torch.where(inside_BSS[:, None], grey_B[:, None, None, None], x_BCSS)


def _squares(side: int, area_B: Tensor, across_B: Tensor, along_B: Tensor) -> Tensor:
    """(B, S, S) whether a pixel is in a square with a part of the image as area; what is beyond the image's edge is cut off.

    Args:
        area_B: the area of the whole square.
        across_B, along_B: where its centre is, from 0 to 1.
    """
    half_B1 = area_B.sqrt()[:, None] / 2
    places_S = (torch.arange(side) + 0.5) / side
    columns_BS, rows_BS = ((places_S - at[:, None]).abs() < half_B1 for at in (across_B, along_B))
    return rows_BS[:, :, None] & columns_BS[:, None, :]


@dataclass(frozen=True)
class MixedImages:
    """Mixes another training image into each, and the other's class into its class, by a ratio lambda from Beta(alpha, alpha).

    mixup (Zhang et al., arXiv 1710.09412): lambda x + (1 - lambda) x'. CutMix (Yun et al., arXiv 1905.04899, section 3.1): a
    square of x' with the area 1 - lambda, whose centre is anywhere in the image, replaces that of x; lambda is then the
    area that is left of x. Where both are asked for, half of the images get one and half the other, by chance.

    Lambda and x' depend on (seed, epoch, row) alone; x' is any row whose class is known. In the published code of DeiT a
    batch is mixed with itself in reversed order, and all of it by one lambda.

    Args:
        rows: those that are trained on.
        changes: made to both images before.
        seed: the seed of the stage.
        mixup, cutmix: alpha of each; 0: this one is left out.
    """

    rows: ImageRows
    changes: Callable[[Batch, int], Batch] | None
    seed: int
    mixup: float
    cutmix: float

    @cached_property
    def _labelled(self) -> np.ndarray:
        return np.flatnonzero(self.rows.labels >= 0)

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """Mix another image into each `pixel_values` of a batch; `mixed` says which class it has, and how much of the first is left."""
        drawn = uniform(self.seed, epoch, batch.rows, NUMBERS + 5)[:, NUMBERS:].T
        which_B, ratio_B, other_B, across_B, along_B = drawn
        chosen = self._labelled[(other_B * len(self._labelled)).long().numpy()]
        others = self.rows.collate(chosen, batch.weight.numpy())
        if self.changes:
            batch, others = self.changes(batch, epoch), self.changes(others, epoch)
        x_BCSS, other_BCSS = batch.inputs["pixel_values"], others.inputs["pixel_values"]
        cuts_B = which_B < (0.5 if self.mixup and self.cutmix else 1.0 if self.cutmix else 0.0)
        alpha_B = np.where(cuts_B.numpy(), self.cutmix, self.mixup)
        lambda_B = torch.from_numpy(betaincinv(alpha_B, alpha_B, ratio_B.numpy()))
        cut_BSS = ~_squares(x_BCSS.shape[-1], 1 - lambda_B, across_B, along_B)
        own_BSS = torch.where(cuts_B[:, None, None], cut_BSS.double(), lambda_B[:, None, None]).float()
        mixed_BCSS = own_BSS[:, None] * x_BCSS + (1 - own_BSS[:, None]) * other_BCSS
        mixed = (torch.from_numpy(self.rows.labels[chosen]), own_BSS.mean((1, 2)))
        return replace(batch, inputs=batch.inputs | {"pixel_values": mixed_BCSS}, mixed=mixed)
