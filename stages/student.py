"""A student of a task under any losses: what recipes are made of.

It begins from random weights, from some of the teacher's layers, or from what an earlier stage made, and learns what
the recipe's lines say. The best on dev is kept: by the task's metric, or by the loss where nothing trains its answers.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_aug.word_vectors import WordVectors
from stages.distillation.distillation import Distillation
from stages.distillation.losses import build
from stages.distillation.models import (
    load_classifier,
    load_config,
    load_encoder,
    load_tokenizer,
    new_classifier,
)
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.students.architecture import (
    begin_with_vectors,
    student_config,
    student_from_teacher_layers,
)
from stages.evaluation.scores import warn_if_constant
from stages.tasks.batches import Batch
from stages.tasks.task import Task
from stages.tasks.token_rows import TokenRows
from stages.teaching.live_teacher import task_teacher, teacher_outputs
from stages.teaching.recorded_logits import logits_as_outputs, teacher_logits
from stages.teaching.student import distillation_score, save_student, task_score
from stages.training.cached_rows import task_rows, train_rows
from stages.training.job import Job
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Train the student under the recipe's losses."""
    task, options, source = stage.task(), stage.training, stage.model("teacher")
    tokenizer = load_tokenizer(source)
    student = begin(stage, task, tokenizer)
    everything = stage.options.get("with_unlabelled", False)
    train = train_rows(stage, task, tokenizer, options.max_length, everything)
    dev = task_rows(stage, task, "dev", tokenizer, options.max_length)

    configs = (student.config, load_config(source), stage.options["layer_map"])
    model = Distillation(student, [build(line, *configs) for line in stage.options["losses"]])
    answers = model.student_capture.logits
    targets = teacher_targets(stage, task, model.teacher_capture, {"train": train, "dev": dev}, answers)
    evaluate = (
        task_score(stage, model, dev, task)
        if answers
        else distillation_score(stage, model, targets["dev"], dev)
    )
    job = Job(stage, model, train, targets["train"], evaluate, set_progress=model.set_progress)
    state = job.run()
    if answers:
        warn_if_constant(stage, task, state.best_score)
    scores = {"dev": state.best_score, "metric": task.selection if answers else "-loss", "steps": state.step}
    stage.publish(save_student(job, tokenizer), scores)


def begin(stage: Stage, task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The student as it begins; a head that is new is drawn from the seed."""
    torch.manual_seed(stage.seed)
    if "student" in stage.inputs:
        return load_classifier(stage.model("student"), task.labels, token_level=task.token_level)
    sizes = dict(stage.options["student"])
    init, layers = sizes.pop("init"), sizes.pop("init_layers")
    source = stage.model("teacher")
    config = student_config(load_config(source), **sizes)
    student = new_classifier(config, task.labels, task.token_level)
    if "vectors" in stage.inputs:
        vectors = WordVectors.read(Path(stage.inputs["vectors"]["path"]))
        table, pieces = student.get_input_embeddings(), tokenizer.get_vocab()
        found = begin_with_vectors(table, pieces, vectors.words, vectors.vectors)
        stage.log(f"{found:,} of {len(pieces):,} tokens begin as word vectors")
    if init == "teacher-layers":
        encoder = student_from_teacher_layers(load_encoder(source), sizes["layers"], sizes["dropout"], layers)
        student.base_model.load_state_dict(encoder.state_dict(), strict=False)
    return student


def teacher_targets(
    stage: Stage, task: Task, spec: CaptureSpec, rows: dict[str, TokenRows], train_alone: bool
) -> dict[str, Callable[[Batch], ModelOutputs] | None]:
    """What the teacher shows of the named rows: nothing, its recorded answers, or its layers, live or from disk."""
    if spec == CaptureSpec():
        return dict.fromkeys(rows)
    if spec == CaptureSpec(logits=True):
        logits = teacher_logits(stage, task, rows["train"])
        return {"train": logits_as_outputs(logits, rows["train"], stage.device)}
    teacher = task_teacher(stage, task, spec)
    return teacher_outputs(stage, teacher, {"train": rows["train"]} if train_alone else rows)
