"""What a general student begins as."""

from types import SimpleNamespace

import pytest
import torch

from stages.distillation.models import ModelSource, load_encoder
from stages.general import begin
from stages.training.options import General
from tests.conftest import make_encoder


@pytest.mark.parametrize("init", ["random", "teacher-embeddings", "teacher-layers"])
def test_a_seed_decides_the_student_and_the_projections_drawn_after_it(tmp_path, init):
    make_encoder(tmp_path / "teacher")
    teacher = load_encoder(ModelSource(str(tmp_path / "teacher")))
    sizes = {"layers": 2, "dropout": 0.0}

    def drawn(seed, before):
        torch.manual_seed(before)
        stage = SimpleNamespace(options={"architecture": sizes}, seed=seed, inputs={})
        student = begin(stage, General(init=init), teacher, SimpleNamespace(tokenizer=None, teacher_ids=None))
        return [*student.state_dict().values(), torch.rand(3)]

    first, again, other = drawn(1, before=7), drawn(1, before=8), drawn(2, before=7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[-1], other[-1])
