"""The loss of DCD (Rao et al., IEEE TMM 25, 2023): candidates of an image, weighed by how sure the teacher is of them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.distillation.gather import gather_rows
from stages.distillation.losses.base import Loss, LossTerm, compared_logits
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.settings import choose, number
from stages.tasks.batches import Batch

WEIGHTS = ("published", "sharp", "own", "none")


class WeighedCandidates(Loss):
    """alpha w_i MSE(z_S, z_T) + (1 - alpha) v_i BCE(z_S, y), over the candidates of each row i, summed over the batch.

    H_i is the entropy of softmax(z_T) over the candidates of a row, and u_i = H_i / (sum of H over the batch). Where the
    teacher is unsure the row learns more from its label: v_i = u_i. Where it is sure it learns more from the teacher:
    w = softmax((1 - u)^2) over the batch. Both sum to 1 over the batch.

    The published code multiplies these weights with one mean over the whole batch, where they do nothing, and may
    compare logits of different candidates. Here each row has its own mean over its own candidates.

    Args:
        alpha: weight of the teacher's logits, from 0 to 1 (published: 0.2).
        weights: "published"; "sharp", w = softmax(-H / temperature), ours: (1 - u)^2 is nearly the same for all rows of a
            batch; "own", v alone; or "none".
        temperature: the temperature of the sharp weights.
        weight: factor of both terms; a number or a schedule.

    Example:
        >>> sure, unsure = torch.tensor([9.0, 0.0]), torch.tensor([0.0, 0.0])
        >>> teacher = ModelOutputs(logits_BC=torch.stack([sure, unsure]))
        >>> student = ModelOutputs(logits_BC=torch.zeros(2, 2))
        >>> loss = WeighedCandidates(alpha=0.0)   # only the unsure row counts, as log 2
        >>> round(loss(student, teacher, labels=torch.tensor([0, 0])).item(), 3)
        0.693
    """

    student_capture = teacher_capture = CaptureSpec(logits=True)
    whole_batch = one_label = True

    def __init__(
        self, alpha: float = 0.2, weights: str = "published", temperature: float = 0.1, weight: Any = 1.0
    ):
        super().__init__(weight)
        self.alpha, self.weights = number(alpha, "from 0 to 1", "alpha"), choose(weights, WEIGHTS, "weights")
        self.temperature = number(temperature, "above 0", "temperature")

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        (z_student, z_teacher), labels = compared_logits(student, teacher), batch.labels
        apart_B = (z_student - z_teacher).square().mean(-1)
        true_BC = functional.one_hot(labels, z_student.shape[-1]).float()
        own_B = functional.binary_cross_entropy_with_logits(z_student, true_BC, reduction="none").mean(-1)
        log_BC = z_teacher.log_softmax(-1)
        entropy_B = -(log_BC.exp() * log_BC).sum(-1)
        sure_B, unsure_B = self.of_rows(entropy_B, gather_rows(batch.at_counted(entropy_B))[0])
        return {
            "candidate_logits": LossTerm(batch.sum(sure_B * apart_B), "rows", self.weight * self.alpha),
            "true_candidate": LossTerm(batch.sum(unsure_B * own_B), "rows", self.weight * (1 - self.alpha)),
        }

    def of_rows(self, entropy_B: Tensor, all_N: Tensor) -> tuple[Tensor, Tensor]:
        """w and v of rows, times the rows N of the global batch, so that a mean over these is the weighted sum."""
        even_B, total = torch.ones_like(entropy_B), all_N.sum().clamp(min=1e-12)
        if self.weights == "none":
            return even_B, even_B
        unsure_B = entropy_B * len(all_N) / total
        if self.weights == "own":
            return even_B, unsure_B
        powers_B, powers_N = (
            -of / self.temperature if self.weights == "sharp" else (1 - of / total).square()
            for of in (entropy_B, all_N)
        )
        return len(all_N) * (powers_B - powers_N.logsumexp(0)).exp(), unsure_B
