"""A student of unlabelled text under any losses, from which students of a task start.

It starts from random weights, from some of the teacher's layers, or from an earlier stage's student. With
`mlm_probability` above 0 it is a masked language model: teacher and student read the same masked text, and the accuracy
on held-out tokens is logged. With 0 it is an encoder that reads the text as it is. The last weights are kept.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from stages.distillation.distillation import Distillation
from stages.distillation.losses import build
from stages.distillation.models import load_config, load_encoder, load_masked_lm, load_tokenizer
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.students.architecture import (
    random_student,
    student_config,
    student_from_teacher_layers,
)
from stages.distillation.teachers import FrozenTeacher
from stages.evaluation.masked_accuracy import held_out_accuracy
from stages.tasks.batches import Batch
from stages.tasks.masking import Masking
from stages.teaching.live_teacher import teacher_outputs
from stages.teaching.student import save_student
from stages.training.cached_rows import corpus_rows
from stages.training.job import Job
from stages.training.options import LearningText
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Train the student on the corpus under the recipe's losses."""
    source, options = stage.model("teacher"), LearningText(**stage.options["training"])
    tokenizer = load_tokenizer(source)
    p = options.mlm_probability
    masking = Masking(tokenizer, p, stage.seed) if p else None
    student = begin(stage, masked=bool(p))
    rows = corpus_rows(
        stage, tokenizer, options.max_length, options.tokens, held_out=False, sentences=options.sentences
    )
    rows = replace(rows, masking=masking)

    configs = (student.config, load_config(source), stage.options["layer_map"], p)
    model = Distillation(student, [build(line, *configs) for line in stage.options["losses"]])
    targets: Callable[[Batch], ModelOutputs] | None = None
    if model.teacher_capture != CaptureSpec():
        targets = live = FrozenTeacher(
            load(stage, "teacher", bool(p)), model.teacher_capture, stage.device, stage.precision
        )
        if not masking:
            targets = teacher_outputs(stage, live, {"corpus": rows})["corpus"]
    job = Job(stage, model, rows, targets, set_progress=model.set_progress, batch_transform=masking)
    scores: dict[str, float] = {"steps": job.run().step, "tokens": int(rows.lengths.sum())}
    if model.student_capture.vocabulary:
        scores |= held_out_accuracy(stage, student, tokenizer, "the student")
    stage.publish(save_student(job, tokenizer), scores)


def begin(stage: Stage, masked: bool) -> PreTrainedModel:
    """The initial student. A new masked-LM head starts as the identity, the head of teacher layers as the teacher's."""
    if "student" in stage.inputs:
        return load(stage, "student", masked)
    kind = AutoModelForMaskedLM if masked else AutoModel
    sizes = dict(stage.options["student"])
    init, layers = sizes.pop("init"), sizes.pop("init_layers")
    if init == "teacher-layers":
        teacher = load(stage, "teacher", masked)
        return student_from_teacher_layers(teacher, sizes["layers"], sizes["dropout"], layers, kind)
    return random_student(student_config(load_config(stage.model("teacher")), **sizes), stage.seed, kind)


def load(stage: Stage, name: str, masked: bool) -> PreTrainedModel:
    """A model that the stage is given: with its masked-LM head where pieces are masked."""
    source = stage.model(name)
    torch.manual_seed(stage.seed)
    return load_masked_lm(source)[0] if masked else load_encoder(source)
