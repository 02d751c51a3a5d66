"""The teacher of a task: an encoder fine-tuned on it, or a given classifier that is shown to know it.

A model without classifier weights is fine-tuned on the task's training rows, the best epoch on dev kept.
One that has them is evaluated first: if it does no better than the best constant answer it is refused
(unless `accept_teacher` is set), for a student can only learn what its teacher knows.
"""

from dataclasses import replace

import torch

from checkpoints.errors import UserError
from stages.distillation.models import (
    has_weights,
    load_classifier,
    load_config,
    load_preprocessor,
    new_classifier,
    note_image_size,
)
from stages.distillation.students.architecture import set_dropout
from stages.distillation.task_heads import knows
from stages.distillation.teachers import class_order
from stages.evaluation.predict import predict
from stages.evaluation.scores import constant_score, score
from stages.finetune import fine_tune
from stages.tasks.task import Task
from stages.teaching.student import fitted
from stages.training.options import Tuning
from stages.training.progress import Progress
from stages.training.rows_of_task import rows_of
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Tune or check the teacher; the artefact is a classifier whose classes are named."""
    task = stage.task()
    if knows(load_config(stage.model("model")), task.kind):
        check(stage, task)
    else:
        tune(stage, task)


def tune(stage: Stage, task: Task) -> None:
    """Fine-tune the encoder on the task's gold labels, or on answers, keeping the best on dev.

    A directory with a config and no weights stands for random weights.
    """
    source = stage.model("model")
    config = set_dropout(load_config(source), Tuning(**stage.options["training"]).dropout)
    preprocessor = load_preprocessor(source, task.kind)
    note_image_size(config, preprocessor)
    torch.manual_seed(stage.seed)
    if has_weights(source):
        classifier = load_classifier(source, task.kind, config=config)
    else:
        classifier = new_classifier(config, task.kind)
    fine_tune(stage, task, classifier, preprocessor)


def check(stage: Stage, task: Task) -> None:
    """Evaluate a given classifier on dev and keep it, its classes named.

    Raises:
        ValueError: it does no better than a constant answer, or its classes are not the task's.
    """
    source = stage.model("model")
    tokenizer = load_preprocessor(source, task.kind)
    order = class_order(load_config(source), task.labels, stage.options["teacher_labels"])
    classifier = load_classifier(source)
    note_image_size(classifier.config, tokenizer)
    dev = rows_of(stage, task, "dev", tokenizer, stage.training.max_length)
    classifier.eval().to(stage.device)
    with Progress(stage, len(dev), "row") as progress:
        logits = predict(
            classifier, dev, stage.device, stage.precision, advance=progress.advance, order=order
        )
    task = fitted(replace(task, kind=task.kind.of_model(classifier.config)), logits)
    reached = score(task, "dev", logits)[task.selection]
    constant = constant_score(task)
    stage.log(
        f"the given teacher reaches {task.selection} {reached:.4f} on dev, a constant answer {constant:.4f}"
    )
    if reached <= constant and not stage.options["accept_teacher"]:
        raise UserError(
            f"the teacher {source.name} does not know the task: {task.selection} {reached:.4f} on dev, no better than a "
            f"constant answer ({constant:.4f}); give a teacher tuned on it, or one without classifier weights (it is "
            "tuned here), or set this to true",
            argument="accept_teacher",
        )
    if task.labels:
        names = dict(zip(order, task.labels, strict=True))
        classifier.config.id2label = {i: names[i] for i in range(len(names))}
        classifier.config.label2id = {name: i for i, name in classifier.config.id2label.items()}
        classifier.config.problem_type = task.kind.problem_type
    task.kind.keep(classifier.config)

    def write(directory) -> None:
        classifier.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    stage.publish(write, {"dev": reached, "metric": task.selection})
