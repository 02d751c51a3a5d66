"""Attention distillation on raw scores, before softmax (paper equation 7)."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.distillation.objectives import Objective, Term
from stages.distillation.view import Needs, View

if TYPE_CHECKING:
    from stages.tasks.batches import Batch


MAPS_UP_TO = 128
"""Length up to which the L x L maps of heads 26 and 64 wide are faster than D x D products (measured on CPU)."""


class AttentionScores(Objective):
    """Mean squared difference of raw attention scores Q K^T / sqrt(D), before softmax.

    sum_m ||A_m - A^T_g(m)||^2 / (H * sum of squared real lengths), over pairs of real tokens. Where the
    head counts differ, the concatenated queries and keys are split anew into gcd(student, teacher) heads.

    Args:
        layers: {student layer: teacher layer}; the embedding (0) is passed over.
        student_heads, teacher_heads: head counts of the two models.
        weight: of the term in the loss.
        form: "maps" builds the L x L maps, "traces" D x D products instead; "auto" takes the faster.
    """

    def __init__(
        self,
        layers: dict[int, int],
        student_heads: int,
        teacher_heads: int,
        weight: float = 1.0,
        form: str = "auto",
    ):
        super().__init__()
        self.layers = {s: t for s, t in layers.items() if s > 0}
        self.heads = math.gcd(student_heads, teacher_heads)
        self.weight, self.form = weight, form
        self.student_needs = Needs(scores=frozenset(self.layers))
        self.teacher_needs = Needs(scores=frozenset(self.layers.values()))

    def forward(self, student: View, teacher: View, batch: "Batch") -> dict[str, Term]:
        total = 0.0
        with torch.autocast(student.mask_BL.device.type, enabled=False):
            for s, t in self.layers.items():
                mine = self._prepare(student.queries_BHLD[s], student.keys_BHLD[s], student.mask_BL)
                theirs = self._prepare(teacher.queries_BHLD[t], teacher.keys_BHLD[t], student.mask_BL)
                maps = self.form == "maps" or self.form == "auto" and mine[0].shape[-2] <= MAPS_UP_TO
                total = total + (score_distance_by_maps if maps else score_distance_by_traces)(*mine, *theirs)
        return {"attention": Term(total / self.heads, "pairs", self.weight)}

    def _prepare(self, q_BHLD: Tensor, k_BHLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (scaled) and keys in fp32, in relation heads, with masked positions set to zero."""
        q_BHLD, k_BHLD = (self._split(x).float() * mask_BL[:, None, :, None] for x in (q_BHLD, k_BHLD))
        return q_BHLD / q_BHLD.shape[-1] ** 0.5, k_BHLD

    def _split(self, x_BHLD: Tensor) -> Tensor:
        b, h, length, d = x_BHLD.shape
        if h == self.heads:
            return x_BHLD
        return x_BHLD.transpose(1, 2).reshape(b, length, self.heads, h * d // self.heads).transpose(1, 2)


def score_distance_by_maps(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> Tensor:
    """sum_ij (qs_i.ks_j - qt_i.kt_j)^2, the two (B, H, L, L) maps materialised. Masked positions are zeros."""
    return (qs @ ks.transpose(-1, -2) - qt @ kt.transpose(-1, -2)).square().sum()


def score_distance_by_traces(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> Tensor:
    """The same number from D x D products, in memory linear in L.

    sum_ij (qs_i.ks_j - qt_i.kt_j)^2 = <Qs'Qs, Ks'Ks> - 2 <Qs'Qt, Ks'Kt> + <Qt'Qt, Kt'Kt>
    """

    def product(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return ((a.transpose(-1, -2) @ b) * (c.transpose(-1, -2) @ d)).sum()

    return product(qs, qs, ks, ks) - 2 * product(qs, qt, ks, kt) + product(qt, qt, kt, kt)
