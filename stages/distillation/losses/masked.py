"""Losses at masked tokens: the true tokens, and what the teacher takes them for.

Sums over the masked tokens of a batch. A job divides them by the expected number of masks, which every rank knows
beforehand: tokens that may be masked x the probability of a mask. Called alone, a loss is the mean over the masks that
there are, as in transformers' own models. Axes in names: N masked tokens of a batch, V vocabulary.
"""

from typing import Any

import torch
from torch.nn import functional

from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.tasks.batches import Batch


class MaskedWords(Loss):
    """Cross-entropy of the masked tokens: BERT's own loss (arXiv 1810.04805, section 3.1). It reads no teacher.

    Args:
        weight: factor of the loss in the sum of losses; a number or a schedule.

    Example:
        >>> outputs = ModelOutputs(vocabulary_NV=torch.zeros(1, 8))
        >>> labels = torch.tensor([[-100, 3, -100, -100]])
        >>> round(MaskedWords()(outputs, labels=labels).exp().item(), 3)
        8.0
    """

    student_capture = CaptureSpec(vocabulary=True)

    def terms(self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Batch) -> dict[str, LossTerm]:
        tokens_N = batch.at_masked(batch.labels)
        loss = functional.cross_entropy(student.vocabulary_NV.float(), tokens_N, reduction="sum")
        return {"masked_words": LossTerm(loss, "masked", self.weight)}


class MaskedSoftLabels(Loss):
    """KL(teacher || student) of the distributions over the vocabulary at the masked tokens, at temperature tau.

    It has the same gradient as the soft cross-entropy (DistilBERT, arXiv 1910.01108, section 2).

    Args:
        temperature: tau, of student and teacher; a number or a schedule.
        t_squared: multiply by tau^2, so that the gradient keeps its size at any tau (arXiv 1503.02531, section 2).
        weight: factor of the loss in the sum of losses; a number or a schedule.

    Example:
        >>> outputs = ModelOutputs(vocabulary_NV=torch.zeros(1, 8))
        >>> MaskedSoftLabels()(outputs, outputs, labels=torch.tensor([[-100, 3, -100, -100]]))
        tensor(0.)
    """

    student_capture = teacher_capture = CaptureSpec(vocabulary=True)

    def __init__(self, temperature: Any = 1.0, t_squared: bool = False, weight: Any = 1.0):
        super().__init__(weight)
        self.t_squared = t_squared
        self.temperature = self.schedule(temperature, "temperature", above_zero=True)

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        temperature = self.temperature(self.progress)
        mine_NV, theirs_NV = (
            torch.log_softmax(outputs.vocabulary_NV.float() / temperature, -1)
            for outputs in (student, teacher)
        )
        loss = functional.kl_div(mine_NV, theirs_NV, reduction="sum", log_target=True)
        factor = temperature**2 if self.t_squared else 1.0
        return {"masked_soft_labels": LossTerm(factor * loss, "masked", self.weight)}
