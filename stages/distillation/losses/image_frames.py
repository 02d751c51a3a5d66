"""What keeps an oracle's symbols where the image has them, a reconstruction of ours for arXiv 2111.03664."""

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.losses.prediction import ctc_losses
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.settings import check_type, is_number
from stages.tasks.batches import Batch

IMAGE = "image_logits"
"""The oracle's output by the image alone."""


class ImageFrames(Loss):
    """An oracle must emit symbols where a head that reads the image alone emits them. It reads no teacher.

    CTC gives all placements of a string's symbols over the frames the same target, so an oracle may copy the string to any
    of them. Two terms tie the placement to the image: the CTC loss of the head that reads the image alone, and for each
    frame KL(p || q), where p is that head's distribution of blank and not blank, without gradient, and q the oracle's. Both
    are averaged over frames. This is ours, not the paper's.

    Args:
        student: its config; a `strip_oracle`'s.
        image_weight: weight of the CTC loss of the head.
        weight: factor of both terms; a number or a schedule.

    Example:
        Where both heads say the same, only the CTC loss is left: 15 of 81 paths of 4 frames give a string of 2 symbols.

        >>> frames = torch.zeros(1, 4, 3)
        >>> oracle = ModelOutputs(logits_BC=frames, named={"image_logits": frames})
        >>> known, string = torch.zeros(1, 4, dtype=torch.long), torch.tensor([[1, 2]])
        >>> round(ImageFrames()(oracle, labels=known, symbols=string).item(), 4)   # 0.3 x -log(15 / 81) / 4
        0.1265
    """

    student_capture = CaptureSpec(logits=True, named=frozenset({IMAGE}))

    def __init__(self, student: PretrainedConfig | None = None, image_weight: float = 0.3, weight: Any = 1.0):
        super().__init__(weight)
        if student is not None:
            lacks = "has no head that reads the image alone"
            check_type(student, ("strip_oracle",), lacks, argument="losses.image_frames")
        if not is_number(image_weight):
            raise UserError(f"{image_weight!r} must be a number", argument="image_weight")
        self.image_weight = image_weight

    def terms(self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Batch) -> dict[str, LossTerm]:
        image, own = (z.float().log_softmax(-1) for z in (student.named[IMAGE], student.logits_BC))
        target = _emission(image).detach()
        apart_BT = (target.exp() * (target - _emission(own))).sum(-1)
        read_B = ctc_losses(image, batch.symbols)
        return {
            "image_ctc": LossTerm(batch.sum(read_B), "labels", self.weight * self.image_weight),
            "image_frames": LossTerm(batch.sum(apart_BT), "targets", self.weight),
        }


def _emission(logs_BTC: Tensor) -> Tensor:
    """(B, T, 2) log-probabilities that a frame emits nothing, and that it emits a symbol."""
    return torch.stack([logs_BTC[..., 0], logs_BTC[..., 1:].logsumexp(-1)], -1)
