"""Prediction-layer distillation (paper equation 10), and the plain losses on gold labels."""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from stages.distillation.objectives import Objective, Term
from stages.distillation.view import Needs, View

if TYPE_CHECKING:
    from stages.tasks.batches import Batch


class SoftLabels(Objective):
    """Cross-entropy with the teacher's distribution at temperature T: -softmax(z_T/T) . log_softmax(z_S/T).

    Summed over classes, averaged over rows, not multiplied by T^2. A teacher of one output (a score) is
    followed in mean squared error. The published code also divides by the number of classes; we do not.
    """

    student_needs = teacher_needs = Needs(logits=True)

    def __init__(self, temperature: float = 1.0, weight: float = 1.0):
        super().__init__()
        self.temperature, self.weight = temperature, weight

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, Term]:
        z_student, z_teacher = student.logits_BC.float(), teacher.logits_BC.float()
        if z_student.shape[1] == 1:
            losses = (z_student - z_teacher).square().sum(-1)
        else:
            target = torch.softmax(z_teacher / self.temperature, -1)
            losses = -(target * torch.log_softmax(z_student / self.temperature, -1)).sum(-1)
        return {"soft_labels": Term((losses * batch.weight).sum(), "rows", self.weight)}


class GoldLabels(Objective):
    """Cross-entropy with the gold class, or squared error with the gold score; no teacher."""

    student_needs = Needs(logits=True)

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, student: View, teacher: View | None, batch: "Batch") -> dict[str, Term]:
        logits_BC = student.logits_BC.float()
        if logits_BC.shape[1] == 1:
            losses = (logits_BC[:, 0] - batch.labels.float()).square()
        else:
            losses = functional.cross_entropy(logits_BC, batch.labels.long(), reduction="none")
        return {"gold_labels": Term((losses * batch.weight).sum(), "rows", self.weight)}
