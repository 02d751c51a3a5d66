"""The loss of DeiT's two tokens (Touvron et al., arXiv 2012.12877, section 4)."""

from typing import Any

from torch.nn import functional
from transformers import PretrainedConfig

from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.losses.prediction import class_losses
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.settings import check_type, choose, number
from stages.tasks.batches import Batch

WITH_TOKEN = ("bert_with_token", "deit")
"""Kinds of students with the token: of text, and of images."""


class DistillationToken(Loss):
    """The class token learns the gold label, the distillation token what the teacher says, each through its own head.

    Hard (equation 3): (1 - alpha) CE(class head, y) + alpha CE(distillation head, argmax z_T). Soft (equation 2): the
    second term is alpha tau^2 times the cross-entropy with softmax(z_T/tau) at temperature tau, which differs from the
    paper's KL divergence by the teacher's entropy, so its gradient is the paper's. Both are averaged over rows. (The
    published code divides the soft term by the number of classes, too; give a smaller alpha for that.)

    Args:
        student: the student's config, of a kind in WITH_TOKEN.
        kind: "hard" or "soft".
        alpha: weight of the distillation head, from 0 to 1 (paper: 0.5 hard; 0.1 soft).
        temperature: tau of the soft kind (paper: 3.0).
        weight: factor of both terms; a number or a schedule.

    Example:
        >>> heads = {"cls_logits": torch.zeros(1, 2), "distillation_logits": torch.zeros(1, 2)}
        >>> loss = DistillationToken(alpha=0.25)
        >>> teacher = ModelOutputs(logits_BC=torch.tensor([[1.0, 3.0]]))
        >>> round(loss(ModelOutputs(named=heads), teacher, labels=torch.tensor([0])).item(), 4)   # log 2
        0.6931
    """

    one_class = True
    student_capture = CaptureSpec(logits=True, named=frozenset({"cls_logits", "distillation_logits"}))
    teacher_capture = CaptureSpec(logits=True)

    def __init__(
        self,
        student: PretrainedConfig | None = None,
        kind: str = "hard",
        alpha: float = 0.5,
        temperature: float = 3.0,
        weight: Any = 1.0,
    ):
        super().__init__(weight)
        if student is not None:
            check_type(student, WITH_TOKEN, "has no distillation token", argument="losses.distillation_token")
        self.kind, self.alpha = choose(kind, ("hard", "soft"), "kind"), number(alpha, "from 0 to 1", "alpha")
        self.temperature = number(temperature, "above 0", "temperature")

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        of_class, of_token = (student.named[name].float() for name in ("cls_logits", "distillation_logits"))
        z_teacher = teacher.logits_BC.float()
        gold = class_losses(of_class, batch) * batch.labelled
        if self.kind == "hard":
            said = functional.cross_entropy(of_token, z_teacher.argmax(-1), reduction="none")
        else:
            tau = self.temperature
            target = (z_teacher / tau).softmax(-1)
            said = tau**2 * functional.cross_entropy(of_token / tau, target, reduction="none")
        return {
            "class_token": LossTerm(batch.sum(gold), "labels", self.weight * (1 - self.alpha)),
            "distillation_token": LossTerm(batch.sum(said), "targets", self.weight * self.alpha),
        }
