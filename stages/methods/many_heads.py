"""CERBERUS (Matsubara et al., arXiv 2201.05767): a student of one body and several heads, each with its own teacher."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.errors import UserError
from stages.distillation.losses.each_head import HEADS
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.settings import check_type, whole
from stages.distillation.students.many_heads import BODIES, ManyHeadsConfig, with_many_heads
from stages.methods.base import Method, Targets
from stages.tasks.batches import Batch
from stages.tasks.kinds import Classes
from stages.tasks.task import Task
from stages.teaching.recorded_logits import logits_as_outputs, training_logits
from stages.training.stage import Stage


class ManyHeads(Method):
    """The student begins as another student, whose last layers and classifier become the beginning of each head.

    Head k learns from the k-th of the teachers, under the loss `each_head`. They may be of any kinds and tokenizers.

    Args:
        reads: the teachers: one for each head, or one for all. They are earlier students; "teacher" is the tuned teacher.
        heads: their number.
        layers: own layers of each head; the body has the student's others.
    """

    def __init__(self, reads: Sequence[str], heads: int = 3, layers: int = 1):
        super().__init__()
        self.heads, self.layers = whole(heads, 1, 100, "heads"), whole(layers, 1, 100, "layers")
        if len(reads) not in (1, heads):
            raise UserError(
                f"[{', '.join(reads)}] must name one teacher for all heads, or {heads}, one for each",
                argument="reads",
            )
        self.reads = list(reads) if len(reads) == heads else list(reads) * heads

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse tasks other than classes of rows, students that have no layers to part, and losses that see no heads."""
        super().check(task, student, spec)
        if not isinstance(task.kind, Classes) or task.token_level:
            raise UserError(
                "many_heads averages the probabilities of a row's classes, and the task has none; take plain",
                argument="method",
            )
        check_type(student, BODIES, "is not taken apart into body and heads")
        if task.kind.pooling:
            raise UserError(
                f"{task.kind.pooling!r}: the teachers may cut texts in other places; leave this out",
                argument="windows",
            )
        if student.num_hidden_layers <= self.layers:
            raise UserError(
                f"{self.layers} layers a head leave no body of a student of {student.num_hidden_layers}; give it more",
                argument="student.layers",
            )
        if spec not in (CaptureSpec(), CaptureSpec(named=frozenset([HEADS]))):
            raise UserError(
                "the heads have a teacher each, under each_head alone; put the losses into it",
                argument="losses",
            )

    def trained(self, student: PretrainedConfig) -> PretrainedConfig:
        """The student taken apart into body and heads."""
        return ManyHeadsConfig.of(student, self.heads, self.layers)

    def begin(self, stage: Stage, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The student of the recipe, taken apart; one that has as many heads already stays as it is."""
        student, tokenizer = super().begin(stage, task)
        return self.apart(student), tokenizer

    def apart(self, student: PreTrainedModel) -> PreTrainedModel:
        """Give a student its heads.

        Raises:
            ValueError: it has heads of another number or size.
        """
        config = student.config
        if not isinstance(config, ManyHeadsConfig):
            return with_many_heads(student, self.heads, self.layers)
        if (config.heads, config.head_layers) != (self.heads, self.layers):
            raise UserError(
                f"the student begins as one of {config.heads} heads of {config.head_layers} layers, not {self.heads} of "
                f"{self.layers}; give the same numbers, or begin from a stock student",
                argument="method",
            )
        return student

    def targets(self, stage: Stage, task: Task, spec: CaptureSpec, rows: dict[str, Any]) -> Targets:
        """Each teacher's logits, asked once and then read from the cache of all runs."""
        if spec == CaptureSpec():
            return dict.fromkeys(rows)
        tables = {
            name: training_logits(stage, task, f"reads {name}")[0] for name in dict.fromkeys(self.reads)
        }
        table_NX = np.concatenate([tables[name] for name in self.reads], 1)
        shown = logits_as_outputs(table_NX, rows["train"], stage.device)

        def by_head(batch: Batch) -> ModelOutputs:
            return ModelOutputs(named={HEADS: shown(batch).logits.unflatten(1, (self.heads, -1))})

        return {"train": by_head}
