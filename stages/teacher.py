"""The teacher of a task: an encoder fine-tuned on it, or a given classifier that is shown to know it.

A model without classifier weights is fine-tuned on the task's training rows, the best epoch on dev kept.
One that has them is evaluated first: if it does no better than the best constant answer it is refused,
for a student can only learn what its teacher knows.
"""

import torch

from checkpoints.errors import UserError
from stages.distill import Distillation, save_student, task_score
from stages.distillation.models import load_classifier, load_config, load_tokenizer
from stages.distillation.objectives.prediction import GoldLabels
from stages.distillation.teachers import class_order
from stages.evaluate import constant_score, predict, score
from stages.job import Job
from stages.rows import task_rows
from stages.stage import Stage


def run(stage: Stage) -> None:
    """Tune or check the teacher; the artefact is a classifier whose classes are named."""
    source = stage.model("model")
    architectures = load_config(source).architectures or []
    if any("ForSequenceClassification" in name for name in architectures):
        check(stage)
    else:
        tune(stage, "model", "the teacher was tuned here, and is used all the same")


def tune(stage: Stage, model_input: str, poor: str) -> None:
    """Fine-tune a model on the task's gold labels, keeping the best on dev."""
    task, source = stage.task(), stage.model(model_input)
    tokenizer = load_tokenizer(source)
    torch.manual_seed(stage.seed)
    classifier = load_classifier(source, task.labels)
    fine_tune(stage, classifier, tokenizer, task, poor)


def fine_tune(stage: Stage, classifier, tokenizer, task, poor: str) -> None:
    """Train a classifier on gold labels, keep the best on dev, warn where it is no better than a constant."""
    length = stage.training.max_length
    train, dev = (task_rows(stage, task, split, tokenizer, length) for split in ("train", "dev"))
    model = Distillation(classifier, [GoldLabels()])
    job = Job(stage, model, train, evaluate=task_score(stage, model, dev, task))
    state = job.run()
    constant = constant_score(task)
    if state.best_score <= constant:
        stage.say(
            f"dev {task.selection} {state.best_score:.4f} is no better than a constant's {constant:.4f}: {poor}"
        )
    stage.publish(
        save_student(job, tokenizer), {"dev": state.best_score, "metric": task.selection, "steps": state.step}
    )


def check(stage: Stage) -> None:
    """Evaluate a given classifier on dev and keep it, its classes named.

    Raises:
        UserError: it does no better than a constant answer, or its classes are not the task's.
    """
    task, source = stage.task(), stage.model("model")
    tokenizer = load_tokenizer(source)
    order = class_order(load_config(source), task.labels, stage.options["teacher_labels"])
    classifier = load_classifier(source, task.labels, own_labels=True)
    dev = task_rows(stage, task, "dev", tokenizer, stage.training.max_length)
    logits = predict(classifier.eval().to(stage.device), dev, stage.device, stage.precision)[:, order]
    reached = score(task, "dev", logits)[task.selection]
    constant = constant_score(task)
    stage.say(
        f"the given teacher reaches {task.selection} {reached:.4f} on dev, a constant answer {constant:.4f}"
    )
    if reached <= constant and not stage.options["accept_teacher"]:
        raise UserError(
            f"teacher {source.name} does not know the task: {task.selection} {reached:.4f} on dev, no better than a "
            f"constant answer ({constant:.4f}); give a teacher tuned on it, one without classifier weights "
            "(it is tuned here), or accept_teacher=true"
        )
    if task.labels:
        names = dict(zip(order, task.labels, strict=True))
        classifier.config.id2label = {i: names[i] for i in range(len(names))}
        classifier.config.label2id = {name: i for i, name in classifier.config.id2label.items()}

    def write(directory) -> None:
        classifier.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    stage.publish(write, {"dev": reached, "metric": task.selection})
