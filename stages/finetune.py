"""The baseline: the same student merely fine-tuned on the task's gold labels, without a teacher.

Where the labels are answers (`stages.tasks.answers`), it learns those: their distributions, where they have them.

It begins from the general student, from layers of the un-tuned teacher, or from random weights of the same architecture.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from stages.distillation.distillation import Distillation
from stages.distillation.losses import GoldLabels, Loss, SoftLabels
from stages.distillation.models import load_classifier, load_config, load_tokenizer, new_classifier
from stages.distillation.students.architecture import student_config, student_from_teacher_layers
from stages.distillation.task_heads import HEADS, set_first_bias
from stages.distillation.trimmed_vocabulary import fit_vocabulary, keep_tokens
from stages.evaluation.scores import warn_if_constant
from stages.tasks.kinds import Kind
from stages.tasks.task import Task
from stages.teaching.given_answers import learned_answers
from stages.teaching.reading import reading
from stages.teaching.recorded_logits import logits_as_outputs
from stages.teaching.student import choose_on_dev, save_student, task_score
from stages.training.job import Job
from stages.training.rows_of_task import changes_of, rows_of
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Fine-tune the student, keeping the best on dev."""
    task = stage.task()
    fine_tune(stage, task, *begin(stage, task.kind))


def begin(stage: Stage, kind: Kind) -> tuple[PreTrainedModel, Any]:
    """The student as it begins, and its tokenizer."""
    torch.manual_seed(stage.seed)
    if "student" in stage.inputs:
        source = stage.model("student")
        return load_classifier(source, kind), load_tokenizer(source)
    reads, teacher = reading(stage), stage.model("teacher")
    architecture = stage.options.get("architecture", {})
    if stage.options.get("from_layers"):
        whole, auto = load_classifier(teacher, kind), HEADS[kind.head]
        student = student_from_teacher_layers(
            whole, architecture["layers"], architecture["dropout"], kind=auto
        )
        keep_tokens(student, reads.tokenizer, reads.teacher_ids)
        return student, reads.tokenizer
    if "shape" in stage.inputs:
        config = load_config(stage.model("shape"))
    else:
        config = student_config(load_config(teacher), **architecture)
    if "vocabulary" in stage.inputs:
        fit_vocabulary(config, reads.tokenizer)
    return new_classifier(config, kind), reads.tokenizer


def fine_tune(stage: Stage, task: Task, classifier: PreTrainedModel, tokenizer: Any) -> None:
    """Train a classifier on gold labels, or on answers, and publish the best on dev; say so if a constant is as good.

    Args:
        tokenizer: the tokenizer of its rows, or the image processor.
    """
    set_first_bias(classifier, task.kind, task.splits["train"].labels)
    length = stage.training.max_length
    train, dev = (rows_of(stage, task, split, tokenizer, length) for split in ("train", "dev"))
    weights, problem_type = getattr(classifier.config, "class_weights", None), task.kind.problem_type
    loss: Loss = GoldLabels(class_weights=weights, problem_type=problem_type)
    targets = None
    if task.splits["train"].answers:
        loss = SoftLabels(problem_type=problem_type)
        targets = logits_as_outputs(learned_answers(stage, task)[train.texts], train, stage.device)
    model = Distillation(classifier, [loss])
    score = task_score(stage, model, dev, task)
    job = Job(stage, model, train, targets, score, batch_transform=changes_of(stage, task, train))
    state = job.run()
    choose_on_dev(stage, model, dev, task)
    warn_if_constant(stage, task, state.best_score)
    scores = {"dev": state.best_score, "metric": task.selection, "steps": state.step}
    stage.publish(save_student(job, tokenizer, scale=task.kind.scale), scores)
