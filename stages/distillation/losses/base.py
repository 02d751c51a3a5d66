"""Losses: functions of (student view, teacher view, batch) that return named sums.

A loss returns for each term a sum and what it was summed over. Only the job divides, by the counts of the
whole global batch, so that padding, accumulation and the number of ranks leave the loss as it is.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.capture import Needs, View
from stages.distillation.layer_maps import layer_map
from stages.distillation.schedules import Schedule, schedule

if TYPE_CHECKING:
    from stages.tasks.batches import Batch

Normalizer = Literal["rows", "tokens", "pairs", "targets", "labels"]


@dataclass(frozen=True)
class LossTerm:
    """A sum, in fp32, and what it is a sum over.

    Rows, tokens (sum of lengths), token pairs (their squares), answers (one a row, or one a word where words have
    labels), or labels (answers whose gold label is known).
    """

    sum: Tensor
    normalizer: Normalizer
    weight: float = 1.0


@dataclass(frozen=True)
class Pair:
    """What a loss is made for.

    Attributes:
        student, teacher: configs; the teacher's may be absent where no loss asks for it.
        layer_map: where a loss's own setting names none.
        mlm_probability: of the tokens that are masked.
    """

    student: PretrainedConfig
    teacher: PretrainedConfig | None = None
    layer_map: Any = "uniform"
    mlm_probability: float = 0.0

    def layers(self, kind: Any = None) -> dict[int, int]:
        """{student layer: teacher layer}, 0 (the embedding) included. Raises UserError where they do not fit."""
        if not hasattr(self.student, "num_hidden_layers"):
            raise UserError(f"a {self.student.model_type} has no layers that could learn from the teacher's")
        return layer_map(
            kind or self.layer_map, self.student.num_hidden_layers, self.teacher.num_hidden_layers
        )

    @property
    def heads(self) -> tuple[int, int]:
        """Attention heads of student and teacher. Raises UserError where the student has none."""
        if not hasattr(self.student, "num_attention_heads"):
            raise UserError(
                f"a {self.student.model_type} has no attention that could learn from the teacher's"
            )
        return self.student.num_attention_heads, self.teacher.num_attention_heads


class Loss(nn.Module):
    """A distillation loss. Learned parts (projections) are its parameters and never leave the job.

    Attributes:
        progress: the share of the stage's steps that are done; schedules read it.
        is_scheduled: whether any of its settings is more than a number, so that its loss changes by itself.
    """

    student_needs = Needs()
    teacher_needs = Needs()

    def __init__(self, weight: Any = 1.0):
        super().__init__()
        self.progress, self.is_scheduled = 0.0, False
        self.weight_schedule = self.schedule(weight, "weight")

    def schedule(self, value: Any, setting: str) -> Schedule:
        """What a setting says that may change while the student trains."""
        self.is_scheduled = self.is_scheduled or isinstance(value, dict)
        return schedule(value, setting)

    @property
    def weight(self) -> float:
        """Of the terms in the loss, now."""
        return self.weight_schedule(self.progress)

    def forward(self, student: View, teacher: View | None, batch: "Batch") -> dict[str, LossTerm]:
        raise NotImplementedError


def choose(value: str, choices: tuple[str, ...], setting: str) -> str:
    """A setting that is one of some words. Raises UserError for any other."""
    if value not in choices:
        raise UserError(f"{setting}={value!r} must be {' or '.join(choices)}")
    return value
