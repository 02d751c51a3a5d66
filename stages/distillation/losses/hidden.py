"""Distillation of hidden states: of each token (TinyBERT, equations 8 and 9), and of how two layers go together.

Axes in names: B rows, L positions, W width of the hidden states.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.losses.base import Loss, LossTerm, mapped_layers
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.settings import choose
from stages.tasks.batches import Batch


class HiddenStates(Loss):
    """Distance between the hidden states of student and teacher, after a learned projection to the teacher's width.

    It is a mean over real tokens. S are the student's states, T the teacher's; layer m of the student learns from layer
    g(m) of the teacher, and m = 0 is the embedding output. W_m has a bias. Three distances:

    `mse`: sum_m ||S_m W_m - T_g(m)||^2 / (d_teacher * sum of lengths) (TinyBERT, equations 8 and 9).
    `normalised`: like `mse`, but states are divided by their norms, and the sum is not divided by d_teacher
    (Patient KD, arXiv 1908.09355, equation 7).
    `cosine`: sum_m (1 - cos(S_m W_m, T_g(m))) / sum of lengths (as DistilBERT, arXiv 1910.01108).

    Args:
        student, teacher: the models' configs.
        layer_map: which teacher layer each student layer learns from: uniform, last, first or a list.
        weight: factor of the loss in the sum of losses; a number or a schedule.
        distance: mse, normalised or cosine.
        projection: per_layer, as in the paper; shared, one for all layers, as in the published code; or none, for
            equal widths.
        only: the student layers that learn, such as [3]; 0 is the embedding. None for all.

    Raises:
        ValueError: the layer counts do not fit the map, or projection="none" with unequal widths.

    Example:
        >>> loss = HiddenStates(student.config, teacher.config)
        >>> with capture(student, loss, side="student") as s, capture(teacher, loss, side="teacher") as t:
        ...     _ = student(**batch), teacher(**batch)
        >>> loss(s, t, attention_mask=batch["attention_mask"]).shape
        torch.Size([])
    """

    def __init__(
        self,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        layer_map: Any = "uniform",
        weight: Any = 1.0,
        distance: str = "mse",
        projection: str = "per_layer",
        only: list[int] | None = None,
    ):
        super().__init__(weight)
        self.layers = chosen_of(mapped_layers(student, teacher, layer_map), only)
        self.teacher_width = teacher.hidden_size
        self.distance = choose(distance, ("mse", "normalised", "cosine"), "distance")
        choose(projection, ("per_layer", "shared", "none"), "projection")
        if projection == "none":
            self.projections = nn.ModuleList([unprojected(student, teacher)])
        else:
            count = 1 if projection == "shared" else len(self.layers)
            self.projections = projections(student, teacher, count)
        self.student_capture = CaptureSpec(hidden=frozenset(self.layers))
        self.teacher_capture = CaptureSpec(hidden=frozenset(self.layers.values()))

    @property
    def projections_by_name(self) -> dict[str, nn.Module]:
        """The projections under the layers that they join, such as "2-4": the student's second, the teacher's fourth.

        A projection that all layers share is "shared".
        """
        if len(self.projections) < len(self.layers):
            return {"shared": self.projections[0]}
        names = [f"{s}-{t}" for s, t in self.layers.items()]
        return dict(zip(names, self.projections, strict=True))

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        total = 0.0
        for i, (s, t) in enumerate(self.layers.items()):
            projected = self.projections[i % len(self.projections)](student.hidden_BLW[s])
            with torch.autocast(projected.device.type, enabled=False):
                total = total + self._distance(projected, teacher.hidden_BLW[t], batch)
        return {"hidden": LossTerm(total, "tokens", self.weight)}

    def _distance(self, mine_BLW: Tensor, theirs_BLW: Tensor, batch: Batch) -> Tensor:
        if self.distance == "mse":
            mask_BL = batch.mask_BL if batch.padded else None
            return _SquaredDistance.apply(mine_BLW, theirs_BLW, mask_BL) / self.teacher_width
        mine_BLW, theirs_BLW = mine_BLW.float(), theirs_BLW.float()
        if self.distance == "cosine":
            distance_BL = 1 - functional.cosine_similarity(mine_BLW, theirs_BLW, dim=-1)
        else:
            mine_BLW, theirs_BLW = (functional.normalize(x, dim=-1) for x in (mine_BLW, theirs_BLW))
            distance_BL = (mine_BLW - theirs_BLW).square().sum(-1)
        return (distance_BL * batch.mask_BL).sum()


class _SquaredDistance(torch.autograd.Function):
    """sum of squared differences over real tokens, in fp32; theirs get no gradient. The difference alone is kept."""

    @staticmethod
    def forward(ctx: Any, mine_BLW: Tensor, theirs_BLW: Tensor, mask_BL: Tensor | None) -> Tensor:
        difference_BLW = mine_BLW.float() - theirs_BLW
        if mask_BL is not None:
            difference_BLW *= mask_BL[..., None]
        ctx.save_for_backward(difference_BLW)
        ctx.dtype = mine_BLW.dtype
        return torch.linalg.vector_norm(difference_BLW, dim=-1).square().sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (difference_BLW,) = ctx.saved_tensors
        return (difference_BLW * (2 * upstream[0])).to(ctx.dtype), None, None


class Gram(Loss):
    """Compares H_m^T H_m+1 / length of student and teacher: how one layer's states relate to the next one's.

    The mean squared difference of the two (W, W) matrices of a row. The student's states are first projected to the
    teacher's width by a learned projection. The loss is summed over neighbouring mapped layers and averaged over rows
    (flow of solution procedure, Yim et al., CVPR 2017). `HiddenStates` compares the states themselves.

    Args:
        student, teacher: the models' configs.
        layer_map: which teacher layer each student layer learns from: uniform, last, first or a list.
        weight: factor of the loss in the sum of losses; a number or a schedule.

    Raises:
        ValueError: the layer counts do not fit the map.

    Example:
        >>> loss = Gram(student.config, teacher.config, weight=0.1)
        >>> with capture(student, loss, side="student") as s, capture(teacher, loss, side="teacher") as t:
        ...     _ = student(**batch), teacher(**batch)
        >>> loss(s, t, attention_mask=batch["attention_mask"]).shape
        torch.Size([])
    """

    def __init__(
        self,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        layer_map: Any = "uniform",
        weight: Any = 1.0,
    ):
        super().__init__(weight)
        self.layers = mapped_layers(student, teacher, layer_map)
        self.projections = projections(student, teacher, len(self.layers))
        self.student_capture = CaptureSpec(hidden=frozenset(self.layers))
        self.teacher_capture = CaptureSpec(hidden=frozenset(self.layers.values()))

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        mine = [
            projection(student.hidden_BLW[s])
            for projection, s in zip(self.projections, self.layers, strict=True)
        ]
        theirs = [teacher.hidden_BLW[t] for t in self.layers.values()]
        total, mask_BL = 0.0, batch.mask_BL
        with torch.autocast(mask_BL.device.type, enabled=False):
            for (a, b), (c, d) in zip(pairwise(mine), pairwise(theirs), strict=True):
                difference = gram(a, b, mask_BL) - gram(c, d, mask_BL)
                total = total + difference.square().mean((1, 2)).sum()
        return {"gram": LossTerm(total, "rows", self.weight)}


def gram(a_BLW: Tensor, b_BLW: Tensor, mask_BL: Tensor) -> Tensor:
    """A^T B over real tokens, divided by their number: (B, W, W) in fp32. Zero for a row of weight zero."""
    lengths_B11 = mask_BL.sum(1).clamp(min=1)[:, None, None]
    return (a_BLW.float() * mask_BL[..., None]).transpose(1, 2) @ b_BLW.float() / lengths_B11


def projections(student: PretrainedConfig, teacher: PretrainedConfig, count: int) -> nn.ModuleList:
    """Learned maps of the student's width to the teacher's."""
    return nn.ModuleList(nn.Linear(student.hidden_size, teacher.hidden_size) for _ in range(count))


def unprojected(student: PretrainedConfig, teacher: PretrainedConfig) -> nn.Module:
    """The student's states as they are.

    Raises:
        ValueError: the teacher's are of another width.
    """
    if student.hidden_size != teacher.hidden_size:
        raise UserError(
            f"'none' needs equal widths, not {student.hidden_size} (student) and {teacher.hidden_size} (teacher); take "
            "per_layer or shared",
            argument="projection",
        )
    return nn.Identity()


def chosen_of(layers: dict[int, int], only: list[int] | None) -> dict[int, int]:
    """The entries of a layer map for some student layers.

    Raises:
        ValueError: `only` names a layer not in the map.
    """
    if only is None:
        return layers
    if not isinstance(only, list) or not only or any(layer not in layers for layer in only):
        raise UserError(f"{only!r} must be a list of student layers from 0 to {max(layers)}", argument="only")
    return {layer: layers[layer] for layer in only}
