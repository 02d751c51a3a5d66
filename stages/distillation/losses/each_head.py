"""Losses of a student with several heads: each has a teacher of its own (CERBERUS, arXiv 2201.05767), or they teach each other."""

from typing import Any

from torch import nn

from checkpoints.errors import UserError
from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.losses.prediction import GoldLabels, MatchedLogits, SoftLabels
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.recipe_lines import build_from_line
from stages.tasks.batches import Batch

HEADS = "head_logits"
"""The field of a student's output with the logits of all heads, (B, K, C); the same of their teachers."""

OF_LOGITS: dict[str, type[Loss]] = {
    "gold_labels": GoldLabels,
    "matched_logits": MatchedLogits,
    "soft_labels": SoftLabels,
}


class EachHead(Loss):
    """The sum over the heads k of losses on the logits of head k and of teacher k.

    Nothing is learned from the mean of the heads.

    Args:
        losses: lines of a recipe, of `gold_labels`, `soft_labels` and `matched_logits`.
        weight: factor of the loss in the sum of losses; a number or a schedule.
        problem_type: as in the student's config.

    Example:
        >>> loss = EachHead(["gold_labels"])
        >>> outputs = ModelOutputs(named={"head_logits": torch.zeros(2, 3, 2)})   # 2 rows, 3 heads, 2 classes
        >>> round(loss(outputs, labels=torch.tensor([0, 1])).item(), 4)   # 3 log 2
        2.0794
    """

    student_capture = CaptureSpec(logits=True, named=frozenset([HEADS]))

    def __init__(self, losses: list[str | dict], weight: Any = 1.0, problem_type: str | None = None):
        super().__init__(weight)
        if not isinstance(losses, list) or not losses:
            raise UserError(
                f"{losses!r} must be a list of lines, of {', '.join(OF_LOGITS)}", argument="losses"
            )
        given = {"problem_type": problem_type}
        self._each = [build_from_line(line, OF_LOGITS, "losses", given) for line in losses]
        self.losses = nn.ModuleList(self._each)
        self.is_scheduled = self.is_scheduled or any(loss.is_scheduled for loss in self._each)
        taught = any(loss.teacher_capture != CaptureSpec() for loss in self._each)
        self.teacher_capture = CaptureSpec(named=frozenset([HEADS])) if taught else CaptureSpec()

    def terms(self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Batch) -> dict[str, LossTerm]:
        found: dict[str, LossTerm] = {}
        for loss in self._each:
            loss.progress = self.progress
            for k, logits_BC in enumerate(student.named[HEADS].unbind(1)):
                of_teacher = teacher and ModelOutputs(logits_BC=teacher.named[HEADS][:, k])
                for name, term in loss.terms(ModelOutputs(logits_BC=logits_BC), of_teacher, batch).items():
                    total = term.sum + found[name].sum if name in found else term.sum
                    found[name] = LossTerm(total, term.normalizer, self.weight * term.weight)
        return found


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
