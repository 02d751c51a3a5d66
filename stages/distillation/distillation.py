"""What a job trains: a student and the losses it learns from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import nn

from checkpoints.errors import UserError
from stages.distillation.dropout import replace_dropout
from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.outputs import CaptureSpec, ModelOutputs, read
from stages.tasks.batches import Batch


class Distillation(nn.Module):
    """A student and its losses, as a job trains them. The saved student does not hold the losses' projections and queues.

    Args:
        student: a model of transformers, or any whose output has the fields that the losses read.
        losses: what it learns from.
        chosen: called with a batch and the teacher's outputs, returns the part of both that the student learns from; None:
            it learns from all.

    Attributes:
        teacher: a method sets one that trains along with the student, by its own loss terms; None: the teacher is frozen,
            and its outputs are given.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: Sequence[Loss],
        chosen: Callable[[Batch, ModelOutputs | None], tuple[Batch, ModelOutputs | None]] | None = None,
    ):
        super().__init__()
        self.student, self.chosen = student, chosen
        self.teacher: nn.Module | None = None
        replace_dropout(student)
        self.losses = nn.ModuleList(losses)
        self._losses = list(losses)  # the same, known to be losses
        self.student_capture = reduce(or_, (loss.student_capture for loss in losses), CaptureSpec())
        self.teacher_capture = reduce(or_, (loss.teacher_capture for loss in losses), CaptureSpec())

    @property
    def set_progress(self) -> Callable[[float], None] | None:
        """Tells losses, and what a method has added, what fraction of the steps is done; None where no schedule changes them."""
        scheduled: list[Any] = [part for part in self.modules() if getattr(part, "is_scheduled", False)]

        def tell(progress: float) -> None:
            for part in scheduled:
                part.progress = progress

        return tell if scheduled else None

    def forward(self, batch: Batch, teacher_outputs: ModelOutputs | None) -> dict[str, LossTerm]:
        """The terms of all losses on a batch."""
        if self.teacher is not None:
            teacher_outputs = read(self.teacher, batch, self.teacher_capture, "teacher")
        if self.chosen is not None:
            batch, teacher_outputs = self.chosen(batch, teacher_outputs)
        outputs = read(self.student, batch, self.student_capture)
        return self.terms(outputs, teacher_outputs, batch)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the student and the losses, separately: hooks between them capture what the losses read."""
        self.student.compile(*args, **kwargs)
        self.terms = torch.compile(self.terms, *args, **kwargs)  # type: ignore[method-assign]

    def terms(
        self, outputs: ModelOutputs, teacher_outputs: ModelOutputs | None, batch: Batch
    ) -> dict[str, LossTerm]:
        """The terms of all losses, of what was captured."""
        terms: dict[str, LossTerm] = {}
        for loss in self._losses:
            own = loss.terms(outputs, teacher_outputs, batch)
            if twice := terms.keys() & own.keys():
                raise UserError(f"two lines give the loss {min(twice)!r}; keep one", argument="losses")
            terms |= {name: replace(term, tag=loss.tag or term.tag) for name, term in own.items()}
        return terms
