"""The baseline: the same student merely fine-tuned on the task's gold labels, without a teacher.

It begins from the general student, or from random weights of the same architecture.
"""

import torch
from transformers import AutoModelForSequenceClassification

from stages.distillation.models import load_config, load_tokenizer
from stages.distillation.students import student_config
from stages.distillation.view import TAP
from stages.stage import Stage
from stages.teacher import fine_tune, tune

POOR = "so much for this baseline"


def run(stage: Stage) -> None:
    """Fine-tune the student, keeping the best on dev."""
    if "student" in stage.inputs:
        tune(stage, "student", POOR)
        return
    task, source = stage.task(), stage.model("teacher")
    config = student_config(load_config(source), **stage.options["architecture"])
    names = task.labels or ("score",)
    config.num_labels, config.id2label = len(names), dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = "single_label_classification" if task.labels else "regression"
    torch.manual_seed(stage.seed)
    classifier = AutoModelForSequenceClassification.from_config(config, attn_implementation=TAP)
    fine_tune(stage, classifier, load_tokenizer(source), task, POOR)
