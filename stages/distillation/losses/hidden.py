"""Distillation of hidden states: of each token (paper equations 8 and 9), and of how two layers go together."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints.errors import UserError
from stages.distillation.capture import Needs, View
from stages.distillation.losses.base import Loss, LossTerm, Pair, choose

if TYPE_CHECKING:
    from stages.tasks.batches import Batch


class HiddenStates(Loss):
    """Distance of hidden states after a learned projection to the teacher's width, over real tokens.

    `mse`: sum_m ||H_m W_m - H^T_g(m)||^2 / (d_teacher * sum of real lengths), m = 0 being the embedding output.
    `normalised`: the same of states divided by their norms, not over d_teacher (Patient KD, arXiv 1908.09355, eq. 7).
    `cosine`: sum_m of 1 - cos(H_m W_m, H^T_g(m)), over the sum of real lengths.

    Args:
        pair: the models' configs.
        layer_map: the pair's own, where none.
        weight: of the term in the loss.
        distance: mse, normalised or cosine.
        projection: per_layer, as the paper; shared, one for all layers, as the published code; or none, for equal widths.
        only: the student layers that learn, 0 the embedding, such as [3]; all, where none are named.
    """

    def __init__(
        self,
        pair: Pair,
        layer_map: Any = None,
        weight: Any = 1.0,
        distance: str = "mse",
        projection: str = "per_layer",
        only: list[int] | None = None,
    ):
        super().__init__(weight)
        self.layers, self.teacher_width = chosen_of(pair.layers(layer_map), only), pair.teacher.hidden_size
        self.distance = choose(distance, ("mse", "normalised", "cosine"), "distance")
        choose(projection, ("per_layer", "shared", "none"), "projection")
        if projection == "none":
            self.projections = nn.ModuleList([unprojected(pair)])
        else:
            self.projections = projections(pair, 1 if projection == "shared" else len(self.layers))
        self.student_needs = Needs(hidden=frozenset(self.layers))
        self.teacher_needs = Needs(hidden=frozenset(self.layers.values()))

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, LossTerm]:
        total = 0.0
        for i, (s, t) in enumerate(self.layers.items()):
            projected = self.projections[i % len(self.projections)](student.hidden_BLW[s])
            with torch.autocast(projected.device.type, enabled=False):
                total = (
                    total
                    + (
                        self._distance(projected.float(), teacher.hidden_BLW[t].float()) * student.mask_BL
                    ).sum()
                )
        return {"hidden": LossTerm(total, "tokens", self.weight)}

    def _distance(self, mine_BLW: Tensor, theirs_BLW: Tensor) -> Tensor:
        if self.distance == "cosine":
            return 1 - functional.cosine_similarity(mine_BLW, theirs_BLW, dim=-1)
        if self.distance == "normalised":
            mine_BLW, theirs_BLW = (functional.normalize(x, dim=-1) for x in (mine_BLW, theirs_BLW))
            return (mine_BLW - theirs_BLW).square().sum(-1)
        return (mine_BLW - theirs_BLW).square().sum(-1) / self.teacher_width


class Gram(Loss):
    """How the states of one mapped layer go with those of the next: H_m^T H_m+1 / length, of each row.

    Mean squared difference of the two (W, W) matrices, the student's after a learned projection to the teacher's width;
    summed over neighbouring mapped layers, averaged over rows (flow of solution procedure, Yim et al., CVPR 2017).

    Args:
        pair: the models' configs.
        layer_map: the pair's own, where none.
        weight: of the term in the loss.
    """

    def __init__(self, pair: Pair, layer_map: Any = None, weight: Any = 1.0):
        super().__init__(weight)
        self.layers = pair.layers(layer_map)
        self.projections = projections(pair, len(self.layers))
        self.student_needs = Needs(hidden=frozenset(self.layers))
        self.teacher_needs = Needs(hidden=frozenset(self.layers.values()))

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, LossTerm]:
        mine = [
            projection(student.hidden_BLW[s])
            for projection, s in zip(self.projections, self.layers, strict=True)
        ]
        theirs = [teacher.hidden_BLW[t] for t in self.layers.values()]
        total = 0.0
        with torch.autocast(student.mask_BL.device.type, enabled=False):
            for (a, b), (c, d) in zip(pairwise(mine), pairwise(theirs), strict=True):
                difference = gram(a, b, student.mask_BL) - gram(c, d, student.mask_BL)
                total = total + difference.square().mean((1, 2)).sum()
        return {"gram": LossTerm(total, "rows", self.weight)}


def gram(a_BLW: Tensor, b_BLW: Tensor, mask_BL: Tensor) -> Tensor:
    """A^T B over real tokens, divided by their number: (B, W, W) in fp32. Zero for a row of weight zero."""
    lengths_B11 = mask_BL.sum(1).clamp(min=1)[:, None, None]
    return (a_BLW.float() * mask_BL[..., None]).transpose(1, 2) @ b_BLW.float() / lengths_B11


def projections(pair: Pair, count: int) -> nn.ModuleList:
    """So many learned maps of the student's width to the teacher's."""
    return nn.ModuleList(nn.Linear(pair.student.hidden_size, pair.teacher.hidden_size) for _ in range(count))


def unprojected(pair: Pair) -> nn.Module:
    """The student's states as they are. Raises UserError where the teacher's are of another width."""
    mine, theirs = pair.student.hidden_size, pair.teacher.hidden_size
    if mine != theirs:
        raise UserError(f"projection=none: the student's width {mine} must be the teacher's {theirs}")
    return nn.Identity()


def chosen_of(layers: dict[int, int], only: list[int] | None) -> dict[int, int]:
    """The entries of a layer map for some student layers. Raises UserError where it has none for one of them."""
    if only is None:
        return layers
    if not isinstance(only, list) or not only or any(layer not in layers for layer in only):
        raise UserError(f"only={only!r} must be a list of student layers from 0 to {max(layers)}")
    return {layer: layers[layer] for layer in only}
