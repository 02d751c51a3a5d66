"""Continuation-KD (Jafari et al., arXiv 2212.05998): a teacher whose logits are scaled up while the student trains."""

from typing import Any

from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.tasks.batches import Batch


class Continuation(Loss):
    """max(0, ||z_S - phi z_T||^2 - m phi), summed over classes, averaged over targets (equations 4 to 6).

    phi rises to 1, so that the student first learns from a smoothed teacher. A squared distance up to m phi counts as 0,
    as noise of the teacher. With m = 0 the loss is the first phase of Annealing-KD (arXiv 2104.07163). With m = 0 and
    phi = 1 it is `MatchedLogits` times the number of classes.

    Args:
        phi: factor of the teacher's logits; a number, or a schedule from near 0 to 1.
        margin: m; a number or a schedule.
        weight: factor of the loss, 1 - psi in the paper; a number or a schedule.

    Example:
        >>> loss = Continuation(phi={"linear": [0.1, 1.0]}, margin=0.5)
        >>> loss(ModelOutputs(torch.tensor([[1.0, 0.0]])), ModelOutputs(torch.tensor([[10.0, 0.0]])))
        tensor(0.)
    """

    student_capture = teacher_capture = CaptureSpec(logits=True)

    def __init__(self, phi: Any = 1.0, margin: Any = 0.0, weight: Any = 1.0):
        super().__init__(weight)
        self.phi, self.margin = self.schedule(phi, "phi"), self.schedule(margin, "margin")

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        phi = self.phi(self.progress)
        distance = (student.logits_BC.float() - phi * teacher.logits_BC.float()).square().sum(-1)
        losses = (distance - self.margin(self.progress) * phi).clamp(min=0)
        return {"continuation": LossTerm(batch.sum(losses), "targets", self.weight)}
