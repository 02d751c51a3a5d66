"""Tokens behind masks: the true ones, and what the teacher takes them for.

Sums over the masks of a batch, divided by their expected number, which every rank knows beforehand: tokens x share.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from checkpoints.errors import UserError
from stages.distillation.capture import Needs, View
from stages.distillation.losses.base import Loss, LossTerm, Pair

if TYPE_CHECKING:
    from stages.tasks.batches import Batch


class MaskedWords(Loss):
    """Cross-entropy of the tokens behind the masks, BERT's own loss (arXiv 1810.04805, section 3.1); no teacher.

    Args:
        pair: the models' configs, and the share that is masked.
        weight: of the term in the loss.
    """

    student_needs = Needs(vocabulary=True)

    def __init__(self, pair: Pair, weight: Any = 1.0):
        super().__init__(weight)
        self.share = share_of(pair)

    def forward(self, student: View, teacher: View | None, batch: "Batch") -> dict[str, LossTerm]:
        pieces_N = batch.labels[batch.labels >= 0]
        loss = functional.cross_entropy(student.vocabulary_NV.float(), pieces_N, reduction="sum")
        return {"masked_words": LossTerm(loss / self.share, "tokens", self.weight)}


class MaskedSoftLabels(Loss):
    """KL(teacher || student) of the distributions over the vocabulary at the masks, both at temperature T.

    Its gradient is that of the soft cross-entropy (DistilBERT, arXiv 1910.01108, section 2).

    Args:
        pair: the models' configs, and the share that is masked.
        temperature: T of both sides.
        t_squared: multiply by T^2, so that the gradient keeps its size at any T (arXiv 1503.02531, section 2).
        weight: of the term in the loss.
    """

    student_needs = teacher_needs = Needs(vocabulary=True)

    def __init__(self, pair: Pair, temperature: Any = 1.0, t_squared: bool = False, weight: Any = 1.0):
        super().__init__(weight)
        self.share, self.t_squared = share_of(pair), t_squared
        self.temperature = self.schedule(temperature, "temperature")

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, LossTerm]:
        temperature = self.temperature(self.progress)
        mine_NV, theirs_NV = (
            torch.log_softmax(view.vocabulary_NV.float() / temperature, -1) for view in (student, teacher)
        )
        loss = functional.kl_div(mine_NV, theirs_NV, reduction="sum", log_target=True)
        factor = temperature**2 if self.t_squared else 1.0
        return {"masked_soft_labels": LossTerm(factor * loss / self.share, "tokens", self.weight)}


def share_of(pair: Pair) -> float:
    """The share of tokens that are masked. Raises UserError where none are."""
    if not pair.mlm_probability:
        raise UserError(
            "nothing is masked: it takes a corpus (`data: corpus`) and training.mlm_probability above 0"
        )
    return pair.mlm_probability
