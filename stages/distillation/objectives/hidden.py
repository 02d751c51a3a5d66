"""Hidden-state and embedding distillation (paper equations 8 and 9)."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from stages.distillation.objectives import Objective, Term
from stages.distillation.view import Needs, View

if TYPE_CHECKING:
    from stages.tasks.batches import Batch


class HiddenStates(Objective):
    """Mean squared difference of hidden states after a learned projection to the teacher's width.

    sum_m ||H_m W_m - H^T_g(m)||^2 / (d_teacher * sum of real lengths), m = 0 being the embedding output.

    Args:
        layers: {student index: teacher index}, 0 included.
        student_width, teacher_width: d' and d.
        shared: one projection for all layers, as the published code; else one a layer, as the paper.
        weight: of the term in the loss.
    """

    def __init__(
        self,
        layers: dict[int, int],
        student_width: int,
        teacher_width: int,
        shared=False,
        weight: float = 1.0,
    ):
        super().__init__()
        self.layers, self.weight, self.teacher_width = layers, weight, teacher_width
        count = 1 if shared else len(layers)
        self.projections = nn.ModuleList(nn.Linear(student_width, teacher_width) for _ in range(count))
        self.student_needs = Needs(hidden=frozenset(layers))
        self.teacher_needs = Needs(hidden=frozenset(layers.values()))

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, Term]:
        total = 0.0
        for i, (s, t) in enumerate(self.layers.items()):
            projected = self.projections[i % len(self.projections)](student.hidden_BLW[s])
            with torch.autocast(projected.device.type, enabled=False):
                difference = projected.float() - teacher.hidden_BLW[t].float()
                total = total + (difference.square().sum(-1) * student.mask_BL).sum()
        return {"hidden": Term(total / self.teacher_width, "tokens", self.weight)}
