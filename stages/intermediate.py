"""Task distillation, first step (paper section 4.2): the tuned teacher's layers, on the task's text,
augmented where that was done.

The student learns embeddings, hidden states and raw attention scores as in the general stage. The teacher's
logits are recorded on the way, so that the prediction stage needs no teacher.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from stages.distillation.distillation import Distillation
from stages.distillation.models import load_classifier, load_config, load_encoder
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.students.architecture import student_from_teacher_layers
from stages.distillation.trimmed_vocabulary import keep_tokens
from stages.tasks.batches import Batch
from stages.tasks.kinds import Kind
from stages.teaching.live_teacher import task_teacher, teacher_outputs
from stages.teaching.projections import begin_with_projections
from stages.teaching.reading import Reading, reading
from stages.teaching.recorded_logits import TeacherLogits
from stages.teaching.student import distillation_score, layer_losses, save_student
from stages.training.cached_rows import task_rows, train_rows
from stages.training.job import Job
from stages.training.options import Intermediate
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Distil the tuned teacher's layers on the task's text; the lowest loss on dev is kept."""
    task, options, source = stage.task(), Intermediate(**stage.options["training"]), stage.model("teacher")
    reads = reading(stage)
    student = begin(stage, task.kind, reads)
    train = reads.both(train_rows(stage, task, reads.tokenizer, options.max_length))
    dev = reads.both(task_rows(stage, task, "dev", reads.tokenizer, options.max_length))

    model = Distillation(student, layer_losses(options, student.config, load_config(source)))
    if options.projection_init == "general" and "student" in stage.inputs:
        stage.log(begin_with_projections(model, Path(stage.model("student").name)))
    teacher = task_teacher(stage, task, model.teacher_capture | CaptureSpec(logits=True))
    outputs = teacher_outputs(stage, teacher, {"train": train, "dev": dev})
    recorded = TeacherLogits(train, task.kind.outputs, stage.device)

    def targets(batch: Batch) -> ModelOutputs:
        given = outputs["train"](batch)
        recorded.note(batch, given)
        return given

    evaluate = distillation_score(stage, model, outputs["dev"], dev)
    job = Job(stage, model, train, targets, evaluate, recorded)
    state = job.run()
    recorded.gather()
    scores = {"dev": state.best_score, "metric": "-loss", "steps": state.step}
    # The teacher's layers have no head, whose weights would be scaled.
    scale = task.kind.scale if "student" in stage.inputs else (0.0, 1.0)
    stage.publish(save_student(job, reads.tokenizer, recorded.write, scale), scores)


def begin(stage: Stage, kind: Kind, reads: Reading) -> PreTrainedModel:
    """The student as it begins: a general student, whose head stays if it is for these labels, or the teacher's every k-th layer."""
    torch.manual_seed(stage.seed)
    if "student" in stage.inputs:
        return load_classifier(stage.model("student"), kind)
    architecture = stage.options["architecture"]
    encoder = load_encoder(stage.model("teacher"))
    student = student_from_teacher_layers(encoder, architecture["layers"], architecture["dropout"])
    keep_tokens(student, reads.tokenizer, reads.teacher_ids)
    return student
