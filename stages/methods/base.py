"""What a published method may have of its own in the making of a student. This one has nothing: it is plain distillation."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from checkpoints.errors import UserError
from data_aug.word_vectors import WordVectors
from stages.distillation.distillation import Distillation
from stages.distillation.losses import Loss
from stages.distillation.models import (
    load_classifier,
    load_config,
    load_encoder,
    load_preprocessor,
    new_classifier,
)
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.students.architecture import (
    begin_with_vectors,
    student_config,
    student_from_teacher_layers,
)
from stages.tasks.batches import Batch, batches_by_length
from stages.tasks.kinds import Nodes
from stages.tasks.task import Task
from stages.tasks.task_rows import TaskRows
from stages.teaching.live_teacher import task_teacher, teacher_outputs
from stages.teaching.recorded_logits import by_windows, logits_as_outputs, training_logits
from stages.training.options import StageToCheck, Training
from stages.training.rows import BatchTransform, Rows
from stages.training.rows_of_task import changes_of
from stages.training.stage import Stage
from stages.training.step import Step, StepKind

Targets = Mapping[str, Callable[[Batch], ModelOutputs] | None]
"""The teacher's outputs for a batch, by the name of the rows; None: nothing of them is read."""


class Method:
    """How a recipe's student begins, who teaches it and how it takes a step.

    A method of your own overrides what it has of its own, in one file of this package, and has a line in `METHODS`. Its
    constructor's arguments are its settings in recipes: `method: {name: {setting: value}}`. One object serves one stage.

    Attributes:
        found: what it measured or fitted, by name. It is reported with the student's scores.
        reads_other_tasks: whether it may read students that learned another task.
        reads_apart: whether its student reads the two texts of a pair each for itself.

    Example:
        A student whose biases train ten times as fast:

        >>> class FastBiases(Method):
        ...     def step(self, model, training):
        ...         def optimizers(parameters):
        ...             biases = [p for name, p in parameters.items() if name.endswith("bias")]
        ...             others = [p for name, p in parameters.items() if not name.endswith("bias")]
        ...             rate = training.learning_rate
        ...             return [torch.optim.AdamW(others, lr=rate), torch.optim.AdamW(biases, lr=10 * rate)]
        ...         return Step(optimizers=optimizers)
    """

    reads_other_tasks = reads_apart = False

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse what cannot work, before any work.

        Args:
            task: with its rows.
            student: its config.
            spec: what the student's losses read of the teacher.

        Raises:
            ValueError: it cannot.
        """
        if getattr(student, "reads_own_words", False):
            raise UserError(
                f"a student of kind {student.model_type} needs a method that makes its tokenizer, such as sparse_ngrams; name it",
                argument="method",
            )

    def check_plan(self, plan: StageToCheck) -> None:
        """Refuse settings of the recipe's student that cannot work, before any work.

        Raises:
            ValueError: they cannot.
        """
        if plan.reads_others and not self.reads_other_tasks:
            raise UserError(
                f"{plan.reads_others[0]!r} learned another task, whose answers teach nothing here; name students of this "
                "task",
                argument="reads",
            )

    def trained(self, student: PretrainedConfig) -> PretrainedConfig:
        """The config of the model that is trained, made from the recipe's student's; it gives the cost."""
        return student

    def begin(self, stage: Stage, task: Task) -> tuple[PreTrainedModel, Any]:
        """The student as it begins, and the tokenizer (or image processor) of its rows; a head that is new is drawn from the seed."""
        source = stage.model("teacher")
        tokenizer = load_preprocessor(source, task.kind)
        torch.manual_seed(stage.seed)
        if "student" in stage.inputs:
            given = stage.model("student")
            return load_classifier(given, task.kind), tokenizer
        sizes = dict(stage.options["student"])
        init, layers = sizes.pop("init"), sizes.pop("init_layers")
        student = new_classifier(student_config(load_config(source), **sizes), task.kind)
        if "vectors" in stage.inputs:
            vectors = WordVectors.read(Path(stage.inputs["vectors"]["path"]))
            table: Any = student.get_input_embeddings()
            pieces = tokenizer.get_vocab()
            found = begin_with_vectors(table, pieces, vectors.words, vectors.vectors)
            stage.log(f"{found:,} of {len(pieces):,} tokens begin as word vectors")
        if init == "teacher-layers":
            teacher = load_encoder(source)
            encoder = student_from_teacher_layers(teacher, sizes["layers"], sizes["dropout"], layers)
            student.base_model.load_state_dict(encoder.state_dict(), strict=False)
        return student, tokenizer

    def losses(self, lines: Sequence[str | dict[str, Any]]) -> Sequence[str | dict[str, Any]]:
        """The recipe's lines of losses, with the settings that the method measured in `begin`.

        Before any work, the lines that this returns then are checked.
        """
        return lines

    def rows(self, stage: Stage, task: Task, train: TaskRows) -> tuple[Rows, BatchTransform | None]:
        """The rows that the student trains on, made of the task's, and what changes each batch by the epoch, or None."""
        return train, changes_of(stage, task, train)

    def targets(self, stage: Stage, task: Task, spec: CaptureSpec, rows: dict[str, Any]) -> Targets:
        """The teacher's outputs for the named rows: none, recorded logits, or layers, computed or from disk.

        On images the teacher runs in each step, on the student's changed images.

        Args:
            task: with its rows.
            spec: what the student's losses read of the teacher.
            rows: "train", and "dev" if it is needed, in the student's tokens or pixels. Recorded logits come for "train"
                alone.
        """
        if spec == CaptureSpec():
            return dict.fromkeys(rows)
        if task.kind.reads_images:
            return dict.fromkeys(rows, task_teacher(stage, task, spec))
        if isinstance(task.kind, Nodes):
            (graph,) = batches_by_length(rows["train"])  # the only row: the teacher runs once
            outputs = task_teacher(stage, task, spec)(graph.to(stage.device))
            return dict.fromkeys(rows, lambda batch: outputs)
        if spec == CaptureSpec(logits=True):  # the teacher may read other tokens than the student
            logits, theirs = training_logits(stage, task)
            if task.kind.pooling:
                logits = by_windows(logits, theirs, rows["train"])
            return {"train": logits_as_outputs(logits, rows["train"], stage.device)}
        teacher = task_teacher(stage, task, spec)
        return teacher_outputs(stage, teacher, rows)

    def chosen(self, batch: Batch, teacher: ModelOutputs | None) -> tuple[Batch, ModelOutputs | None]:
        """Choose what the student learns from: a part of a training batch, and the teacher's answers to that part."""
        return batch, teacher

    def step(self, model: Distillation, training: Training) -> Step | None:
        """The method's own optimiser step; None: one loss, one backward pass, one AdamW."""
        return None

    def step_kind(self, losses: Iterable[Loss]) -> StepKind:
        """What is known of `step` before there is a model, for the stage `check`: it refuses options that do not go with it.

        Args:
            losses: the student's.
        """
        return StepKind()

    def examine(self, stage: Stage, task: Task, model: Distillation, dev: TaskRows) -> None:
        """Measure the trained student with its best weights; what this puts into `found` is reported."""

    def evaluation(self, model: Distillation, evaluate: Callable[[], float]) -> Callable[[], float]:
        """What gives the score by which weights are kept: `evaluate` (on dev), or made of it. NaN: these are not kept."""
        return evaluate

    def finish(self, model: Distillation) -> nn.Module:
        """The student that is written, made of the trained one, which holds the weights that are kept."""
        return model.student
