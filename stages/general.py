"""General distillation (paper section 4.1): an un-tuned teacher, unlabelled text, no prediction loss.

The student begins with random weights, or with some of the teacher's. It learns the teacher's embeddings, hidden states
and raw attention scores under the layer map. Out comes a general student for any task; the projections that it learned
with lie beside it.
"""

import torch
from transformers import PreTrainedModel

from stages.distillation.distillation import Distillation
from stages.distillation.models import load_encoder
from stages.distillation.students.architecture import (
    random_student,
    student_config,
    student_from_teacher_layers,
)
from stages.distillation.teachers import FrozenTeacher
from stages.distillation.trimmed_vocabulary import begin_as_reduced, fit_vocabulary, keep_tokens
from stages.teaching.live_teacher import teacher_outputs
from stages.teaching.projections import projections_writer
from stages.teaching.reading import Reading, reading
from stages.teaching.student import layer_losses, save_student
from stages.training.cached_rows import corpus_rows
from stages.training.job import Job
from stages.training.options import General
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Distil the teacher's layers on the corpus into a general student."""
    source, options = stage.model("teacher"), General(**stage.options["training"])
    reads, teacher = reading(stage), load_encoder(source)
    student = begin(stage, options, teacher, reads)
    rows = reads.both(corpus_rows(stage, reads.tokenizer, options.max_length, options.tokens))

    model = Distillation(student, layer_losses(options, student.config, teacher.config))
    frozen = FrozenTeacher(teacher, model.teacher_capture, stage.device, stage.precision)
    outputs = teacher_outputs(stage, frozen, {"corpus": rows})
    job = Job(stage, model, rows, targets=outputs["corpus"])
    state = job.run()
    write = save_student(job, reads.tokenizer, projections_writer(model))
    stage.publish(write, {"steps": state.step, "tokens": int(rows.lengths.sum())})


def begin(stage: Stage, options: General, teacher: PreTrainedModel, reads: Reading) -> PreTrainedModel:
    """The student as it begins: random weights, with the teacher's word embeddings (reduced) or not, or some of its layers."""
    torch.manual_seed(stage.seed)  # the projections, too, where no weights of the student are drawn
    sizes, which = stage.options["architecture"], options.layer_map
    if options.init == "teacher-layers":
        student = student_from_teacher_layers(teacher, sizes["layers"], sizes["dropout"], which)
        keep_tokens(student, reads.tokenizer, reads.teacher_ids)
        return student
    config = student_config(teacher.config, **sizes, which=which)
    if "vocabulary" in stage.inputs:
        fit_vocabulary(config, reads.tokenizer)
    student = random_student(config, stage.seed)
    if options.init == "teacher-embeddings":
        begin_as_reduced(student, teacher, reads.teacher_ids)
    return student
