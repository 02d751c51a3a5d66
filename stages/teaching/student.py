"""The student of a stage: the layers it learns from, its score on dev, and its files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.distillation import Distillation
from stages.distillation.losses import AttentionScores, HiddenStates, Loss
from stages.distillation.outputs import ModelOutputs
from stages.distillation.task_heads import in_units
from stages.evaluation.predict import predict
from stages.evaluation.scores import score
from stages.tasks.batches import Batch, batches_by_length
from stages.tasks.task import Task
from stages.tasks.task_rows import TaskRows
from stages.training.job import Job
from stages.training.options import Distilling
from stages.training.stage import Stage


def layer_losses(options: Distilling, student: PretrainedConfig, teacher: PretrainedConfig) -> list[Loss]:
    """Embedding, hidden-state and attention-score losses under the layer map (TinyBERT, equations 7, 8 and 9)."""
    losses: list[Loss] = []
    layers = (student, teacher, options.layer_map)
    if options.hidden_weight:
        losses.append(HiddenStates(*layers, options.hidden_weight, projection=options.projection))
    if options.attention_weight:
        losses.append(AttentionScores(*layers, options.attention_weight))
    if not losses:
        raise UserError(
            "0, and attention_weight is 0 too, so nothing is learned; set one of them above 0",
            argument="hidden_weight",
        )
    return losses


def task_score(stage: Stage, model: Distillation, rows: TaskRows, task: Task) -> Callable[[], float]:
    """The student's selection metric on dev. What is returned is called on every rank; ranks share the rows."""

    def measure() -> float:
        logits = predict(model.student, rows, stage.device, stage.precision, shared=_share(stage))
        return score(fitted(task, logits), "dev", logits)[task.selection]

    return measure


def fitted(task: Task, logits: np.ndarray) -> Task:
    """The task with its kind fitted to one model: what the kind chooses on dev, such as a threshold, fits these logits."""
    kind = task.kind.fitted(task.selection, logits, np.asarray(task.splits["dev"].gold))
    return replace(task, kind=kind)


def choose_on_dev(stage: Stage, model: Distillation, rows: TaskRows, task: Task) -> None:
    """Keep in the student's config what the kind chooses on dev, such as a threshold. Called on every rank."""
    if task.kind.fits_on_dev:
        student: Any = model.student
        logits = predict(student, rows, stage.device, stage.precision, shared=_share(stage))
        fitted(task, logits).kind.keep(student.config)


def _share(stage: Stage) -> bool:
    """Whether ranks share an evaluation. ZeRO 3 gathers weights in each forward pass: there all make the same passes."""
    return stage.job.zero < 3


def distillation_score(
    stage: Stage, model: Distillation, teacher: Callable[[Batch], ModelOutputs] | None, rows: TaskRows
) -> Callable[[], float]:
    """The negative distillation loss on dev rows: the stage's selection metric before there are predictions.

    What is returned is called on every rank; ranks share the rows.
    """
    total = rows.normalizers(np.arange(len(rows)))

    def measure() -> float:
        loss = torch.zeros((), dtype=torch.float64, device=stage.device)
        rank, world = (dist.get_rank(), dist.get_world_size()) if _share(stage) else (0, 1)
        with torch.no_grad():
            for batch in batches_by_length(rows, rank=rank, world=world):
                batch = batch.to(stage.device)
                precision = stage.precision
                with torch.autocast(stage.device.type, precision, enabled=precision != torch.float32):
                    terms = model(batch, teacher and teacher(batch))
                loss += sum(
                    term.weight * term.sum.double() / total[term.normalizer] for term in terms.values()
                )
        if world > 1:
            dist.all_reduce(loss)
        return -loss.item()

    return measure


def save_student(
    job: Job,
    preprocessor: Any,
    extra: Callable[[Path], None] | None = None,
    scale: tuple[float, float] = (0.0, 1.0),
):
    """A writer of the stage's artefact: the student in Hugging Face form, with its tokenizer or image processor.

    Args:
        preprocessor: the tokenizer of its rows, or the image processor.
        extra: writes further files.
        scale: the scale of the task's kind: the student that is written answers in the user's units.
    """
    student: Any = job.model.student
    weights = in_units(student, job.student_weights(), scale)

    def write(directory: Path) -> None:
        student.save_pretrained(directory, state_dict=weights)
        preprocessor.save_pretrained(directory)
        if extra:
            extra(directory)

    return write
