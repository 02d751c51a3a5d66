"""Where a baseline begins. Its training and resume: integration/test_resume.py, test_scores.py."""

import pytest
import torch

from stages.distillation.models import ModelSource, load_encoder
from stages.finetune import begin
from stages.tasks.kinds import Classes, Entities
from stages.training.options import Job
from stages.training.stage import Stage
from tests.conftest import make_encoder


@pytest.mark.parametrize("kind", [Classes(labels=("no", "yes")), Entities(labels=("O", "B-a", "I-a"))])
@pytest.mark.parametrize("from_layers", [True, False])
def test_it_begins_as_the_teachers_layers_or_random(tmp_path, kind, from_layers):
    teacher = make_encoder(tmp_path / "teacher", layers=6)
    sizes = {"layers": 3, "dropout": 0.0}
    options = {"seed": 1, "architecture": sizes, "from_layers": from_layers}
    inputs, device = {"teacher": {"path": str(teacher)}}, torch.device("cpu")
    stage = Stage(
        "finetuned", "finetune", tmp_path / "run", options, inputs, "", Job(precision="fp32"), device
    )
    classifier, tokenizer = begin(stage, kind)
    assert classifier.config.id2label == dict(enumerate(kind.labels)) and len(tokenizer) > 5
    student, whole = classifier.base_model.encoder.layer, load_encoder(ModelSource(teacher)).encoder.layer
    assert len(student) == 3
    same = [
        torch.equal(own.output.dense.weight, given.output.dense.weight)
        for own, given in zip(student, whole[1::2], strict=True)
    ]
    assert same == [from_layers] * 3
