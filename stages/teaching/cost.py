"""What a training stage will cost: tokens, operations, and about how long they take on this machine."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from stages.distillation.compatibility import forward_flops
from stages.distillation.models import new_classifier
from stages.distillation.outputs import inputs_of
from stages.methods import build_method
from stages.tasks.graph_rows import NodeRows
from stages.tasks.task import Task
from stages.tasks.task_rows import TaskRows
from stages.teaching.live_teacher import may_keep_layers
from stages.training.options import StageToCheck
from stages.training.rows_of_task import changes_of
from stages.training.speed import STEP_SECONDS, estimated_seconds, step_seconds
from stages.training.stage import Stage

TIMED_ROWS = 32
"""Rows of which a step is timed."""


@dataclass
class Cost:
    """What a stage takes.

    Attributes:
        flops: floating-point operations of the models' passes.
        seconds: about how long they take on this machine.
    """

    flops: float
    seconds: float


def training_cost(
    stage: Stage,
    plan: StageToCheck,
    rows: TaskRows,
    task: Task | None,
    trained: PretrainedConfig,
    teacher: PretrainedConfig | None,
) -> tuple[Cost, str]:
    """What a stage will cost, and a line that tells it.

    Args:
        stage: that asks; its device and precision are those of the run.
        rows: that it reads, without augmentation.
        trained: the config of the model that it trains.
        teacher: the teacher's, where the losses read it.
    """
    variants = _variants(plan, task)
    length = float(rows.lengths.mean())
    epochs = f"{plan.epochs} epoch" + "s" * (plan.epochs != 1)
    steps = plan.epochs * math.ceil(len(rows) * (1 + variants) / plan.batch_size)
    of_pass = int(rows.lengths.sum()) * (1 + variants)
    tokens = of_pass * plan.epochs
    flops = 3 * forward_flops(build_method(plan.method, plan.reads).trained(trained), tokens, length)
    images = task is not None and task.kind.reads_images
    seconds = steps * STEP_SECONDS
    of_teacher = 0.0
    if teacher is not None:
        once = isinstance(rows, NodeRows) or not images and may_keep_layers(stage, plan.epochs)
        of_teacher = forward_flops(teacher, of_pass * (1 if once else plan.epochs), length)
    if task and rows.unit != "token":
        of_step = _measured(stage, plan, rows, task, trained)
        if teacher is not None and images:
            of_step += _measured(stage, plan, rows, task, teacher) / 3  # a forward pass
        flops += of_teacher
        what = f"{of_pass:,} {rows.unit}" + "s" * (of_pass > 1)
        line = f"{what} x {epochs}, {flops / 1e12:,.2f} TFLOP"
        return Cost(flops, seconds + steps * of_step), line
    seconds += estimated_seconds(stage, trained, flops)
    if teacher is not None:
        seconds += estimated_seconds(stage, teacher, of_teacher)
        flops += of_teacher
    augmented = f" x up to {1 + variants} variants" if variants else ""
    texts = "" if rows.begins is None else f"{int(rows.begins.sum()):,} texts in windows, "
    return Cost(flops, seconds), (
        f"{texts}{len(rows):,} rows{augmented} x {epochs}, {count(tokens)} tokens (mean {length:.0f} a row, "
        f"{rows.truncated / len(rows):.1%} of rows truncated), {flops / 1e12:,.1f} TFLOP"
    )


def count(tokens: int) -> str:
    """A number of tokens, from 100,000 on in millions."""
    return f"{tokens / 1e6:,.2f} M" if tokens >= 1e5 else f"{tokens:,}"


def _measured(
    stage: Stage, plan: StageToCheck, rows: TaskRows, task: Task, config: PretrainedConfig
) -> float:
    """Seconds of a step of a model of images or a graph, by a few rows of a batch."""
    of_batch = min(plan.batch_size, len(rows))
    some = np.arange(min(of_batch, TIMED_ROWS))
    batch = rows.collate(some, np.ones(len(some), np.float32))
    drawn = replace(stage, options=stage.options | {"seed": 0})  # check has none
    if changes := changes_of(drawn, task, rows):
        batch = changes(batch, 0)
    model: Any = new_classifier(copy.deepcopy(config), task.kind)
    model.to(stage.device)
    return step_seconds(model, inputs_of(model, batch.to(stage.device).inputs)) * of_batch / len(some)


def _variants(plan: StageToCheck, task: Task | None) -> int:
    """How many variants of each row a stage reads at the most: where it reads the original rows, none."""
    if task is None:
        return plan.variants
    if plan.targets == "gold" or (plan.targets == "auto" and task.kind.follows_gold):
        return 0
    if task.kind.predicts_original and not plan.reads_teacher:
        return 0
    one = task.splits["train"].text_b is None or task.kind.fixes_second
    return plan.variants * (1 if one else 2)
