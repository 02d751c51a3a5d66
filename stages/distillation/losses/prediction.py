"""Prediction-layer distillation (paper equation 10, and on the logits), and the plain losses on gold labels.

Of each answer: one a row, or one a word where words have labels; then logits_BC is (B, L, C).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from stages.distillation.capture import Needs, View
from stages.distillation.losses.base import Loss, LossTerm, Pair

if TYPE_CHECKING:
    from stages.tasks.batches import Batch


class SoftLabels(Loss):
    """Cross-entropy with the teacher's distribution at temperature T: -softmax(z_T/T) . log_softmax(z_S/T).

    Summed over classes, averaged over answers, not multiplied by T^2. A teacher of one output (a score) is
    followed in mean squared error. The published code also divides by the number of classes; we do not.

    Args:
        pair: the models' configs.
        temperature: T of both sides.
        weight: of the term in the loss.
    """

    student_needs = teacher_needs = Needs(logits=True)

    def __init__(self, pair: Pair, temperature: Any = 1.0, weight: Any = 1.0):
        super().__init__(weight)
        self.temperature = self.schedule(temperature, "temperature")

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, LossTerm]:
        z_student, z_teacher = student.logits_BC.float(), teacher.logits_BC.float()
        if z_student.shape[-1] == 1:
            losses = (z_student - z_teacher).square().sum(-1)
        else:
            temperature = self.temperature(self.progress)
            target = torch.softmax(z_teacher / temperature, -1)
            losses = -(target * torch.log_softmax(z_student / temperature, -1)).sum(-1)
        return {"soft_labels": LossTerm(batch.sum(losses), "targets", self.weight)}


class MatchedLogits(Loss):
    """Mean squared difference of logits, over classes and answers (Ba and Caruana, arXiv 1312.6184, equation 1).

    Args:
        pair: the models' configs.
        weight: of the term in the loss.
    """

    student_needs = teacher_needs = Needs(logits=True)

    def __init__(self, pair: Pair, weight: Any = 1.0):
        super().__init__(weight)

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, LossTerm]:
        losses = (student.logits_BC.float() - teacher.logits_BC.float()).square().mean(-1)
        return {"matched_logits": LossTerm(batch.sum(losses), "targets", self.weight)}


class GoldLabels(Loss):
    """Cross-entropy with the gold class, or squared error with the gold score, where it is known; no teacher.

    Args:
        pair: the models' configs.
        weight: of the term in the loss.
    """

    student_needs = Needs(logits=True)

    def __init__(self, pair: Pair, weight: Any = 1.0):
        super().__init__(weight)

    def forward(self, student: View, teacher: View | None, batch: "Batch") -> dict[str, LossTerm]:
        logits, labels = student.logits_BC.float(), batch.labels
        if logits.shape[-1] == 1:
            known = ~labels.isnan()
            losses = (logits[..., 0] - labels.nan_to_num()).square()
        else:
            known = labels >= 0
            losses = functional.cross_entropy(
                logits.flatten(0, -2), labels.clamp(min=0).flatten(), reduction="none"
            ).view_as(labels)
        return {"gold_labels": LossTerm(batch.sum(losses * known), "labels", self.weight)}
