"""Task distillation, second step (paper section 4.2): the tuned teacher's answers.

The student learns the teacher's distribution over classes by soft cross-entropy. The teacher's logits come
from the record of the intermediate stage; only rows that it has not seen cost a teacher pass, once. Where the teacher
is a table of answers, they are what is learned; the teacher of the layers answers for rows that have none.
"""

from pathlib import Path

import numpy as np
import torch

from stages.distillation.distillation import Distillation
from stages.distillation.losses import GoldLabels, SoftLabels
from stages.distillation.models import load_classifier
from stages.distillation.task_heads import set_first_bias
from stages.evaluation.scores import warn_if_constant
from stages.tasks.task import Task
from stages.tasks.token_rows import TokenRows
from stages.teaching.given_answers import needs_encoder, with_answers
from stages.teaching.reading import reading
from stages.teaching.recorded_logits import (
    TEACHER_LOGITS_FILE,
    compute_logits,
    logits_as_outputs,
    teacher_logits,
)
from stages.teaching.student import choose_on_dev, save_student, task_score
from stages.training.cached_rows import task_rows, train_rows
from stages.training.job import Job
from stages.training.options import Prediction
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Distil the teacher's answers; the best student on dev is kept."""
    task, options = stage.task(), Prediction(**stage.options["training"])
    reads = reading(stage)
    tokenizer = reads.tokenizer
    torch.manual_seed(stage.seed)
    student = load_classifier(stage.model("student"), task.kind)
    set_first_bias(student, task.kind, task.splits["train"].labels)
    gold = options.targets == "gold" or options.targets == "auto" and task.kind.follows_gold
    if gold or task.kind.predicts_original:
        # The paper reads the original rows for STS-B's gold scores (footnote of section 4.2), and for SQuAD.
        train = task_rows(stage, task, "train", tokenizer, options.max_length)
    else:
        train = train_rows(stage, task, tokenizer, options.max_length)
    dev = task_rows(stage, task, "dev", tokenizer, options.max_length)

    problem_type = task.kind.problem_type
    soft = SoftLabels(options.temperature, problem_type=problem_type)
    model = Distillation(student, [GoldLabels(problem_type=problem_type) if gold else soft])
    targets = None
    if not gold:
        targets = logits_as_outputs(learned_logits(stage, task, reads.both(train)), train, stage.device)
    job = Job(stage, model, train, targets, task_score(stage, model, dev, task))
    state = job.run()
    choose_on_dev(stage, model, dev, task)
    warn_if_constant(stage, task, state.best_score)
    scores = {"dev": state.best_score, "metric": task.selection, "steps": state.step}
    stage.publish(save_student(job, tokenizer, scale=task.kind.scale), scores)


def learned_logits(stage: Stage, task: Task, rows: TokenRows) -> np.ndarray:
    """What the student learns of each target: the answers, where they were given, else the teacher's logits."""
    if not task.splits["train"].answers:
        return recorded_logits(stage, task, rows)
    return with_answers(
        stage, task, rows, recorded_logits(stage, task, rows) if needs_encoder(stage) else None
    )


def recorded_logits(stage: Stage, task: Task, rows: TokenRows) -> np.ndarray:
    """The teacher's logits by target: those recorded by the intermediate stage, and one pass for the others."""
    record = Path(stage.model("student").name) / TEACHER_LOGITS_FILE
    table_NC = np.load(record) if record.is_file() else None
    if table_NC is None or len(table_NC) != rows.targets.sum() or stage.options["record_differs"]:
        return teacher_logits(stage, task, rows)
    missing = np.flatnonzero(np.isnan(table_NC).any(axis=1))
    if len(missing):
        of_rows = np.unique(np.searchsorted(rows.first_targets.numpy(), missing, side="right") - 1)
        table_NC[missing] = compute_logits(stage, task, rows, of_rows)[missing]
    return table_NC
