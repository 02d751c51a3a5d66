"""Self-relations of queries, keys or values (MiniLMv2, arXiv 2012.15828, section 3.1)."""

import math
from typing import TYPE_CHECKING, Any

import torch

from stages.distillation.capture import Needs, View
from stages.distillation.losses.attention import softmax_of, split_heads, without_embedding
from stages.distillation.losses.base import Loss, LossTerm, Pair, choose

if TYPE_CHECKING:
    from stages.tasks.batches import Batch


class Relations(Loss):
    """KL(softmax(X_T X_T^T / sqrt(D)) || softmax(X_S X_S^T / sqrt(D))), X the queries, keys or values of a layer.

    The mean over relation heads and real tokens, summed over mapped layers. The concatenated heads are split into
    gcd(student heads, teacher heads) relation heads, so that widths and heads may differ.

    Args:
        pair: the models' configs.
        of: queries, keys or values.
        layer_map: the pair's own, where none.
        weight: of the term in the loss.
    """

    def __init__(self, pair: Pair, of: str = "values", layer_map: Any = None, weight: Any = 1.0):
        super().__init__(weight)
        self.of = choose(of, ("queries", "keys", "values"), "of")
        self.layers = without_embedding(pair.layers(layer_map))
        self.heads = math.gcd(*pair.heads)
        field = "values" if of == "values" else "scores"
        self.student_needs = Needs(**{field: frozenset(self.layers)})
        self.teacher_needs = Needs(**{field: frozenset(self.layers.values())})

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, LossTerm]:
        total = 0.0
        with torch.autocast(student.mask_BL.device.type, enabled=False):
            for s, t in self.layers.items():
                mine, theirs = (
                    softmax_of(x, x, batch.attention_mask)
                    for x in (
                        split_heads(view_of(v, self.of)[i], self.heads)
                        for v, i in ((student, s), (teacher, t))
                    )
                )
                distance = (theirs.exp() * (theirs - mine)).sum(-1).mean(1)
                total = total + (distance * student.mask_BL).sum()
        return {self.of: LossTerm(total, "tokens", self.weight)}


def view_of(view: View, of: str) -> dict[int, torch.Tensor]:
    """The queries, keys or values of a view."""
    return getattr(view, f"{of}_BHLD")
