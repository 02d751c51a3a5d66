"""Prediction-layer distillation (paper equation 10, and on the logits), and the plain losses on gold labels."""

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from stages.distillation.objectives import Objective, Pair, Term
from stages.distillation.view import Needs, View

if TYPE_CHECKING:
    from stages.tasks.batches import Batch


class SoftLabels(Objective):
    """Cross-entropy with the teacher's distribution at temperature T: -softmax(z_T/T) . log_softmax(z_S/T).

    Summed over classes, averaged over rows, not multiplied by T^2. A teacher of one output (a score) is
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

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, Term]:
        z_student, z_teacher = student.logits_BC.float(), teacher.logits_BC.float()
        if z_student.shape[1] == 1:
            losses = (z_student - z_teacher).square().sum(-1)
        else:
            temperature = self.temperature(self.progress)
            target = torch.softmax(z_teacher / temperature, -1)
            losses = -(target * torch.log_softmax(z_student / temperature, -1)).sum(-1)
        return {"soft_labels": Term((losses * batch.weight).sum(), "rows", self.weight)}


class MatchedLogits(Objective):
    """Mean squared difference of logits, over classes and rows (Ba and Caruana, arXiv 1312.6184, equation 1).

    Args:
        pair: the models' configs.
        weight: of the term in the loss.
    """

    student_needs = teacher_needs = Needs(logits=True)

    def __init__(self, pair: Pair, weight: Any = 1.0):
        super().__init__(weight)

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, Term]:
        losses = (student.logits_BC.float() - teacher.logits_BC.float()).square().mean(-1)
        return {"matched_logits": Term((losses * batch.weight).sum(), "rows", self.weight)}


class GoldLabels(Objective):
    """Cross-entropy with the gold class, or squared error with the gold score; no teacher.

    Args:
        pair: the models' configs.
        weight: of the term in the loss.
    """

    student_needs = Needs(logits=True)

    def __init__(self, pair: Pair, weight: Any = 1.0):
        super().__init__(weight)

    def forward(self, student: View, teacher: View | None, batch: "Batch") -> dict[str, Term]:
        logits_BC = student.logits_BC.float()
        if logits_BC.shape[1] == 1:
            losses = (logits_BC[:, 0] - batch.labels.float()).square()
        else:
            losses = functional.cross_entropy(logits_BC, batch.labels.long(), reduction="none")
        return {"gold_labels": Term((losses * batch.weight).sum(), "rows", self.weight)}
