"""Objectives: functions of (student view, teacher view, batch), one a file, found by module name.

An objective declares what it needs of both views and returns, for each named term, a sum and what the sum
is over. Only the job divides: by the count of the whole global batch, so that padding, accumulation and
the number of ranks leave the loss as it is.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from stages.distillation.view import Needs, View

if TYPE_CHECKING:
    from stages.tasks.batches import Batch

Unit = Literal["rows", "tokens", "pairs"]


@dataclass(frozen=True)
class Term:
    """A sum, in fp32, and what it is a sum over: rows, tokens (sum of lengths) or token pairs (their squares)."""

    sum: Tensor
    per: Unit
    weight: float = 1.0


class Objective(nn.Module):
    """A distillation loss. Learned parts (projections) are its parameters and never leave the job."""

    student_needs = Needs()
    teacher_needs = Needs()

    def forward(self, student: View, teacher: View | None, batch: "Batch") -> dict[str, Term]:
        raise NotImplementedError
