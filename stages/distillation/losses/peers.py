"""Heads of one student that learn from each other."""

from typing import Any

from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.losses.each_head import HEADS
from stages.distillation.losses.prediction import SoftLabels
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.tasks.batches import Batch


class Peers(Loss):
    """The first head and every other head learn each other's soft labels; the targets get no gradient.

    The mean over the other heads k of CE(p_k, p_1) + CE(p_1, p_k), with p the softmax at temperature tau. It is Semi-Online
    KD's exchange between a student and its auxiliary learner (Liu, Liu and Huang, arXiv 2111.11747).

    Args:
        temperature: tau; a number or a schedule.
        weight: factor of the loss; a number or a schedule. tau^2 keeps the gradients' size.

    Example:
        >>> heads = ModelOutputs(named={"head_logits": torch.zeros(1, 3, 2)})   # 3 heads, 2 classes
        >>> round(Peers()(heads).item(), 4)   # 2 log 2
        1.3863
    """

    student_capture = CaptureSpec(named=frozenset([HEADS]))

    def __init__(self, temperature: Any = 1.0, weight: Any = 1.0):
        super().__init__(weight)
        self.soft = SoftLabels(temperature)
        self.is_scheduled = self.is_scheduled or self.soft.is_scheduled

    def terms(self, student: ModelOutputs, teacher: Any, batch: Batch) -> dict[str, LossTerm]:
        self.soft.progress = self.progress
        first, *others = (ModelOutputs(logits_BC=head_BC) for head_BC in student.named[HEADS].unbind(1))
        pairs = [pair for other in others for pair in ((first, other), (other, first))]
        sums = [self.soft.terms(mine, fixed(theirs), batch)["soft_labels"].sum for mine, theirs in pairs]
        return {"peers": LossTerm(sum(sums[1:], sums[0]) / len(others), "targets", self.weight)}


def fixed(outputs: ModelOutputs) -> ModelOutputs:
    """The logits without gradients."""
    return ModelOutputs(logits_BC=outputs.logits.detach())
