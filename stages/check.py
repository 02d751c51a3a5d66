"""Before hours are spent: do vocabulary, labels, layers, heads and lengths fit, and what will it cost?

Tokenizes what the stages will read (the rows are cached for them), refuses what cannot work, and logs the tokens,
operations and truncated rows of every training stage.
"""

from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.errors import UserError, about
from stages.distillation.compatibility import (
    check_length,
    check_padding,
    check_tokenizers,
    check_vocabularies,
    forward_flops,
)
from stages.distillation.layer_maps import layer_map
from stages.distillation.losses import build
from stages.distillation.models import (
    ModelSource,
    Say,
    classifies,
    load_classifier,
    load_config,
    load_encoder,
    load_tokenizer,
)
from stages.distillation.outputs import CaptureSpec
from stages.distillation.students.architecture import student_config
from stages.distillation.teachers import check_problem_type, class_order
from stages.evaluation.predict import predict
from stages.evaluation.scores import check_scale
from stages.methods import build_method
from stages.tasks.task import Split, Task
from stages.tasks.token_rows import TokenRows
from stages.teaching.live_teacher import may_keep_layers
from stages.training.cached_rows import corpus_rows, task_rows, train_rows
from stages.training.options import StageToCheck
from stages.training.speed import estimated_seconds
from stages.training.stage import Stage

SOME_ROWS = 200
"""Rows of dev on which a given teacher's scores are compared with the labels."""


def run(stage: Stage) -> None:
    """Check every training stage of the run.

    Raises:
        ValueError: one of them cannot work.
    """
    task = stage.task() if "task" in stage.inputs else None
    for note in task.notes if task else ():
        stage.log(note)
    student = stage.model("student") if "student" in stage.inputs else None
    models = check_models(stage.model("teacher"), student, stage.options, task, stage.log)
    if (
        task
        and task.kind.problem_type == "regression"
        and classifies(models.teacher) is False
        and not stage.options["accept_teacher"]
    ):
        _check_scale(stage, task, models)
    counted = {}
    plans = {name: StageToCheck(**plan) for name, plan in stage.options["stages"].items()}
    for name, plan in plans.items():
        with about(name):
            counted[name] = check_stage(stage, name, plan, models, task)
    total = sum(work.flops for work in counted.values())
    if not plans:
        raise UserError("there is nothing to train")
    if any(plan.variants for plan in plans.values()):
        stage.log("the augmentation itself is not counted")
    stage.publish(
        lambda directory: (directory / "cost.txt").write_text(f"{total}\n"),
        {"flops": total, "stages": {name: asdict(work) for name, work in counted.items()}},
    )


@dataclass
class Work:
    """What a stage takes.

    Attributes:
        flops: floating-point operations of the models' passes.
        seconds: about how long they take on this machine.
    """

    flops: float
    seconds: float


@dataclass
class Models:
    """The given models: the teacher's tokenizer, and the configs of teacher and student."""

    tokenizer: PreTrainedTokenizerBase
    teacher: PretrainedConfig
    student: PretrainedConfig


def check_models(
    teacher: ModelSource, student: ModelSource | None, options: dict[str, Any], task: Task | None, say: Say
) -> Models:
    """Check what needs no rows: vocabularies, classes, weights, and the layers and lengths of every training stage.

    Args:
        teacher: as given.
        student: a general student, if one is given.
        options: of the stage `check`.
        task: with its rows.
        say: called with a line for each change to the given weights, such as a head that is dropped.

    Raises:
        ValueError: they do not fit.
    """
    tokenizer, config = load_tokenizer(teacher), load_config(teacher)
    given = load_config(student) if student else student_config(config, **options["architecture"])
    models = Models(tokenizer, config, given)
    check_vocabularies(config, given, len(tokenizer))
    if task and classifies(config) == task.token_level:
        check_problem_type(config, task.kind)
        class_order(config, task.labels, options["teacher_labels"])
    for name, plan in options["stages"].items():
        with about(name):
            _trained(StageToCheck(**plan), models, task)
    check_padding(_loaded(teacher, config, task, say), tokenizer)
    if student:
        _loaded(student, None, task, say)
        try:
            own = load_tokenizer(student)
        except UserError as error:
            say(f"of the vocabularies only the sizes were compared: {error}")
        else:
            check_tokenizers(tokenizer, own)
    return models


def _loaded(
    source: ModelSource, own: PretrainedConfig | None, task: Task | None, say: Say
) -> PreTrainedModel:
    """A model as the stages will load it.

    Args:
        own: its config, if it is the teacher: one that classifies as the task needs keeps its head.
    """
    if task is None:
        return load_encoder(source, say)
    keeps_head = own is not None and classifies(own) == task.token_level
    return load_classifier(source, None if keeps_head else task.kind, say=say)


def _trained(plan: StageToCheck, models: Models, task: Task | None) -> tuple[PretrainedConfig, bool]:
    """The model that a stage trains, and whether its losses read the teacher.

    Raises:
        ValueError: layers, losses or lengths do not fit.
    """
    teacher, student, reads_teacher = models.teacher, models.student, plan.reads_teacher
    if plan.losses is not None and plan.student is not None:  # a recipe's student
        student = student_config(teacher, **plan.student)
        if student.model_type == "bilstm" and models.tokenizer.padding_side == "left":
            raise UserError(
                "'bilstm' reads a row from its first column on, but the teacher's tokenizer pads on the left; give textcnn",
                argument="kind",
            )
        configs = (student, teacher, plan.layer_map, plan.mlm_probability or 0.0)
        captures = [build(line, *configs).teacher_capture for line in plan.losses]
        spec = reduce(or_, captures, CaptureSpec())
        reads_teacher = spec != CaptureSpec()
        if task:
            build_method(plan.method, plan.reads).check(task, student, spec)
    elif plan.layer_map is not None:
        layer_map(plan.layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
    trained = teacher if plan.trains == "teacher" else student
    for config in (trained, teacher) if reads_teacher else (trained,):
        check_length(config, plan.max_length)
    return trained, reads_teacher


def check_stage(stage: Stage, name: str, plan: StageToCheck, models: Models, task: Task | None) -> Work:
    """Check one training stage, and log what it will cost.

    Raises:
        ValueError: the student's layers or losses do not fit, rows are too long, or there are none.
    """
    trained, reads_teacher = _trained(plan, models, task)
    rows = _rows(stage, plan, models.tokenizer, task)
    tokens, length = int(rows.lengths.sum()) * plan.epochs, float(rows.lengths.mean())
    if name == "tuning" and task and classifies(models.teacher) == task.token_level:
        stage.log(f"{name}: the given teacher is tuned already, and is only evaluated")
        return Work(0.0, 0.0)
    variants = plan.variants
    if variants and task is not None:
        learns_gold = plan.targets == "gold" or plan.targets == "auto" and task.kind.follows_gold
        variants *= 0 if learns_gold else 1 if task.splits["train"].text_b is None else 2
    tokens *= 1 + variants
    student = 3 * forward_flops(trained, tokens, length)
    seconds = estimated_seconds(stage, trained, student)
    teacher = 0.0
    if reads_teacher:
        passes = 1 if may_keep_layers(stage, plan.epochs) else plan.epochs
        teacher = forward_flops(models.teacher, tokens * passes / plan.epochs, length)
        seconds += estimated_seconds(stage, models.teacher, teacher)
    work = Work(student + teacher, seconds)
    augmented = f" x up to {1 + variants} variants" if variants else ""
    stage.log(
        f"{name}: {len(rows):,} rows{augmented} x {plan.epochs} epochs, {tokens / 1e6:.2f} M tokens (mean {length:.0f} a "
        f"row, {rows.truncated / len(rows):.1%} of rows truncated), {work.flops / 1e12:,.1f} TFLOP"
    )
    return work


def _check_scale(stage: Stage, task: Task, models: Models) -> None:
    """Compare the scores of a given teacher with the labels of some rows of dev."""
    dev = task.splits["dev"]
    some = Split(dev.text_a[:SOME_ROWS], dev.text_b and dev.text_b[:SOME_ROWS], dev.labels[:SOME_ROWS])
    length = stage.options["stages"]["tuning"]["max_length"] if "tuning" in stage.options["stages"] else 128
    rows = task_rows(stage, replace(task, splits={"some": some}), "some", models.tokenizer, length)
    teacher = load_classifier(stage.model("teacher"), capturing=False)
    check_scale(predict(teacher.eval().to(stage.device), rows, stage.device)[:, 0], np.array(some.labels))


def _rows(
    stage: Stage, plan: StageToCheck, tokenizer: PreTrainedTokenizerBase, task: Task | None
) -> TokenRows:
    """The rows that a stage will read, tokenized into the cache of the runs."""
    if plan.data != "task" or task is None:
        held_out = None if plan.mlm_probability is None else False
        return corpus_rows(stage, tokenizer, plan.max_length, plan.tokens, held_out, plan.data)
    if task.token_level:
        for split in task.splits.keys() - {"train", "unlabelled"}:
            if cut := task_rows(stage, task, split, tokenizer, plan.max_length).truncated:
                raise UserError(
                    f"{plan.max_length} tokens truncate {cut} rows of {split}, whose last words would have no "
                    "prediction; raise it",
                    argument="max_length",
                )
    return train_rows(stage, task, tokenizer, plan.max_length, plan.with_unlabelled)
