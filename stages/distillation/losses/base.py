"""What a distillation loss is: a module that a person can call alone, and that a job can sum up.

Called alone, a loss returns the mean over its batch as a scalar. For the job the same object returns sums and what
each is a sum over (`terms`); only the job divides, by the counts of the whole global batch, so that padding,
accumulation and the number of ranks leave the loss as it is.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.layer_maps import layer_map
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.schedules import Schedule, schedule
from stages.tasks.batches import Batch

Normalizer = Literal["rows", "tokens", "pairs", "targets", "labels", "masked"]


@dataclass(frozen=True)
class LossTerm:
    """A sum, and what it is a sum over.

    Attributes:
        sum: scalar, in fp32.
        normalizer: rows; tokens (sum of lengths); pairs of tokens (sum of squared lengths); targets (one a row, or
            one a word at token level); labels (targets whose gold label is known); masked (tokens that are expected to
            be masked).
        weight: factor of the term in the loss.
        tag: name of the backward pass that the term belongs to (`stages.training.step.Pass`).
    """

    sum: Tensor
    normalizer: Normalizer
    weight: float = 1.0
    tag: str = "loss"


class Loss(nn.Module):
    """A distillation loss.

    To write one, declare what it reads from each model (`student_capture`, `teacher_capture`), and implement `terms`. What
    it learns (projections) are its parameters. What it remembers from step to step (a queue) are its buffers. The job's
    checkpoints hold both; the saved student holds neither.

    Args:
        weight: factor of its terms in the sum of losses; a number or a schedule.

    Attributes:
        student_capture, teacher_capture: what it reads from the models.
        whole_batch: whether a row's loss depends on the other rows of the global batch (in-batch negatives). Such a loss
            needs the whole batch of a rank at once, without gradient accumulation.
        one_class: whether it needs a task in which each row has exactly one class.
        one_label: whether it reads a single label of each row; mixup and CutMix (`Batch.mixed`) are then refused.
        tag: the tag of the backward pass of its terms, where a method gives the loss one; None: the terms' own.
        progress: the fraction of the stage's steps that are done, from 0 to 1. Schedules read it.
        is_scheduled: whether any of its settings is a schedule.

    Example:
        >>> class SameSign(Loss):
        ...     student_capture = teacher_capture = CaptureSpec(logits=True)
        ...     def terms(self, student, teacher, batch):
        ...         short = (-student.logits_BC * teacher.logits_BC.sign()).clamp(min=0).sum(-1)
        ...         return {"same_sign": LossTerm(batch.sum(short), "targets", self.weight)}
        >>> outputs = ModelOutputs(logits_BC=torch.tensor([[1.0, -2.0]]))
        >>> SameSign()(outputs, ModelOutputs(logits_BC=torch.tensor([[3.0, 1.0]])))
        tensor(2.)
    """

    student_capture = CaptureSpec()
    teacher_capture = CaptureSpec()
    whole_batch = False
    one_label = one_class = False
    tag: str | None = None

    def __init__(self, weight: Any = 1.0):
        super().__init__()
        self.progress, self.is_scheduled = 0.0, False
        self.weight_schedule = self.schedule(weight, "weight")

    def schedule(self, value: Any, setting: str, above_zero: bool = False) -> Schedule:
        """Return the schedule that a setting's value stands for."""
        self.is_scheduled = self.is_scheduled or isinstance(value, dict)
        return schedule(value, setting, above_zero)

    @property
    def weight(self) -> float:
        """The factor of the terms in the sum of losses, at this point of the training."""
        return self.weight_schedule(self.progress)

    def terms(self, student: ModelOutputs, teacher: Any, batch: Batch) -> dict[str, LossTerm]:
        """Return the sums of a batch, by name.

        Args:
            student: what was captured from the student.
            teacher: what was captured from the teacher; None for a loss that reads no teacher.
            batch: masks, labels, and the weights of the rows (`batch.sum` applies them).
        """
        raise NotImplementedError

    def forward(
        self,
        student: ModelOutputs,
        teacher: ModelOutputs | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        symbols: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean loss of a batch.

        Args:
            student, teacher: outputs that `capture` has filled; the teacher's may be None if the loss reads no teacher.
            attention_mask: (B, L), 1 for real tokens. Losses on tokens need it.
            labels: (B,) class indices or scores, or (B, L) at token level, with -100 for tokens that are not scored.
                Losses on gold labels and on masked tokens need them.
            symbols: (B, L) class indices of the rows' strings, then -1; `labels` are then (B, T), of T frames, 0 where the
                string is known and -1 elsewhere.

        Returns:
            A scalar, the weighted sum of its terms.

        Raises:
            ValueError: the outputs do not hold what the loss reads, or a tensor that it needs is None.
        """
        given = {"attention_mask": attention_mask, "symbols": symbols}
        inputs = {name: tensor for name, tensor in given.items() if tensor is not None}
        shown = [*_of_rows(student), *student.named.values()]
        rows = next((x for x in (attention_mask, labels, *shown) if x is not None), None)
        if rows is None:
            raise UserError(self._unfit(student, teacher) or "the student's outputs are empty")
        self._check_rows({"student": student, "teacher": teacher}, attention_mask, labels)
        weight = torch.ones(len(rows), device=rows.device)
        batch = Batch(inputs, labels, weight, torch.arange(len(rows), device=rows.device))
        try:
            terms = self.terms(student, teacher, batch)
        except (AssertionError, AttributeError, KeyError, RuntimeError) as error:
            if why := self._unfit(student, teacher):
                raise UserError(why) from error
            raise
        total = torch.zeros((), device=rows.device)
        for term in terms.values():
            total = total + term.weight * term.sum / batch.count(term.normalizer)
        return total

    def _unfit(self, student: ModelOutputs, teacher: ModelOutputs | None) -> str:
        """What the outputs lack of what the loss asks for; empty if they have it all."""
        specs = {"student": self.student_capture, "teacher": self.teacher_capture}
        for (side, spec), outputs in zip(specs.items(), (student, teacher), strict=True):
            if missing := (outputs or ModelOutputs()).lacks(spec):
                return (
                    f"the {side}'s outputs lack {missing}, which {type(self).__name__} reads; run the {side} within "
                    f'capture({side}, losses, side="{side}")'
                )
        if all(spec.logits for spec in specs.values()) and teacher is not None:
            return _unlike(student, teacher)
        return ""

    def _check_rows(
        self, outputs: dict[str, ModelOutputs | None], attention_mask: Tensor | None, labels: Tensor | None
    ) -> None:
        """Raise a UserError unless all have as many rows: one row would be repeated for all of the others."""
        given = {"attention_mask": attention_mask, "labels": labels}
        rows = {
            f"the {side}'s outputs": len(x) for side, of in outputs.items() if of for x in _of_rows(of)[:1]
        }
        rows |= {name: len(x) for name, x in given.items() if x is not None}
        if len(set(rows.values())) > 1:
            found = ", ".join(f"{count} in {name}" for name, count in rows.items())
            raise UserError(f"the numbers of rows differ: {found}; give all of the same batch")


def _of_rows(outputs: ModelOutputs) -> list[Tensor]:
    """The tensors whose first axis is the rows of the batch."""
    layers = (outputs.hidden_BLW, outputs.queries_BHLD, outputs.values_BHLD, outputs.scores_BHLL)
    shown = [outputs.logits_BC, *(tensor for of in layers for tensor in of.values())]
    return [tensor for tensor in shown if tensor is not None]


def _unlike(student: ModelOutputs, teacher: ModelOutputs) -> str:
    """How the logits of both models differ in shape; empty if they do not."""
    mine, theirs = tuple(student.logits.shape), tuple(teacher.logits.shape)
    if mine == theirs:
        return ""
    return (
        f"the student's logits are {mine}, the teacher's {theirs}; give both models the same head and classes, "
        "and the same batch"
    )


def compared_logits(student: ModelOutputs, teacher: ModelOutputs) -> tuple[Tensor, Tensor]:
    """The logits of both models in fp32, for a loss that compares them one by one.

    Raises:
        UserError: their shapes differ: torch would repeat a single class, and so compare what does not correspond.
    """
    if why := _unlike(student, teacher):
        raise UserError(why)
    return student.logits.float(), teacher.logits.float()


def mapped_layers(
    student: PretrainedConfig, teacher: PretrainedConfig, which: Any, embedding: bool = True
) -> dict[int, int]:
    """{student layer: teacher layer} of a layer map.

    Args:
        student, teacher: configs.
        which: uniform, last, first or a list (`stages.distillation.layer_maps`).
        embedding: whether layer 0, the embedding output, is among them.

    Raises:
        ValueError: the layer counts do not fit the map, or the student has no layers.
    """
    if not hasattr(student, "num_hidden_layers"):
        raise UserError(f"a {student.model_type} has no layers to distil; use a loss on logits")
    layers = layer_map(which, student.num_hidden_layers, teacher.num_hidden_layers)
    return layers if embedding else {s: t for s, t in layers.items() if s > 0}


def attention_heads(student: PretrainedConfig, teacher: PretrainedConfig) -> tuple[int, int]:
    """The attention heads of student and teacher.

    Raises:
        ValueError: the student has none.
    """
    if not hasattr(student, "num_attention_heads"):
        raise UserError(f"a {student.model_type} has no attention to distil; use a loss on logits")
    return student.num_attention_heads, teacher.num_attention_heads
