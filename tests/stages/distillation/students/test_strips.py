"""The reader of strips, and the oracle that also reads the string."""

import pytest
import torch
from transformers import AutoModelForCTC

from checkpoints.errors import UserError
from stages.distillation.students.architecture import student_config
from stages.distillation.students.strips import StripConfig, StripOracleConfig

TEACHER = StripConfig(image_size=(8, 12), num_labels=4)


def made(kind: str = "strip_oracle", **settings):
    torch.manual_seed(0)
    config = student_config(TEACHER, 1, 6, dropout=0.0, kind=kind, settings=settings)
    config.num_labels = 4
    return AutoModelForCTC.from_config(config).eval()


def pixels(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def test_a_reader_answers_for_each_frame():
    assert made("strip_ctc")(pixels()).logits.shape == (2, 6, 4)
    assert TEACHER.frames == 6 and TEACHER.forward_flops(2) == 2 * TEACHER.forward_flops(1)
    with pytest.raises(UserError, match="^the strips have 8 x 14 pixels, the model reads 8 x 12; give it"):
        made("strip_ctc")(torch.zeros(1, 3, 8, 14))


def test_what_is_after_a_string_changes_nothing_and_the_string_itself_does():
    model = made()
    short, long = torch.tensor([[1, 2], [3, -1]]), torch.tensor([[1, 2, -1, -1], [3, -1, -1, -1]])
    torch.testing.assert_close(model(pixels(), short).logits, model(pixels(), long).logits)
    other = model(pixels(), torch.tensor([[2, 1], [3, -1]]))
    assert not torch.equal(other.logits[0], model(pixels(), short).logits[0])
    assert torch.equal(other.image_logits, model(pixels(), short).image_logits)
    unknown = model(pixels(), torch.full((2, 2), -1)).logits
    assert unknown.isfinite().all()


@pytest.mark.parametrize("mask", [0.0, 0.5])
def test_symbols_are_hidden_in_training_alone(mask):
    model = made(mask=mask)
    torch.manual_seed(3)
    strings, images = torch.full((200, 5), 2), pixels(1).expand(200, -1, -1, -1)
    assert len(model(images, strings).logits.round(decimals=4).unique(dim=0)) == 1
    seen = model._memory(strings)[0]
    assert len(seen.round(decimals=4).unique(dim=0)) == 1
    seen = model.train()._memory(strings)[0]
    assert len(seen.round(decimals=4).unique(dim=0)) == (1 if mask == 0 else 2**5)


@pytest.mark.parametrize("mask", [1, -0.1, "half"])
def test_a_mask_that_cannot_be_is_refused(mask):
    with pytest.raises(UserError, match="must be a number from 0 to below 1"):
        StripOracleConfig(mask=mask).check()
