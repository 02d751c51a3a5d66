"""Dropout for CPUs: what it draws, what it leaves, and attention with it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel

from stages.distillation import dropout as module
from stages.distillation.dropout import Dropout, attention, dropout, replace_dropout
from stages.distillation.models import ModelSource, load_encoder
from stages.distillation.outputs import CaptureSpec, read
from stages.tasks.batches import Batch
from tests.conftest import make_encoder


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_drops_its_share_and_keeps_the_mean(p, dtype):
    torch.manual_seed(1)
    x = torch.ones(300, 401, dtype=dtype, requires_grad=True)
    y = dropout(x, p)
    kept = y != 0
    n = x.numel()
    assert abs(kept.sum().item() - n * (1 - p)) < 5 * (n * p * (1 - p)) ** 0.5
    zero, scale = y.unique().tolist()
    assert y.dtype == dtype and zero == 0 and scale == pytest.approx(1 / (1 - p), rel=5e-3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    # Neighbours know nothing of each other: not those of a draw, not those of a row or of rows below.
    for ahead in (1, 2, 3, 4, 401):
        both = (kept.flatten()[ahead:] & kept.flatten()[:-ahead]).sum().item()
        assert abs(both - n * (1 - p) ** 2) < 6 * (n * (1 - p) ** 2) ** 0.5


def test_it_is_a_function_of_torchs_seed():
    x = torch.ones(1003)
    torch.manual_seed(5)
    first, second = dropout(x, 0.3), dropout(x, 0.3)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.3), first) and not torch.equal(first, second)
    assert torch.equal(dropout(x, 0.0), x) and not dropout(x, 1.0).any()


def test_a_models_dropout_is_replaced_and_nothing_else():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Dropout(0.2), nn.Dropout1d(0.2)))
    before = copy.deepcopy(model)
    replace_dropout(model.eval())
    assert (
        not model[1][0].training
        and type(model[1][0]) is Dropout
        and model[1][0].p == 0.2
        and type(model[1][1]) is nn.Dropout1d
    )
    assert model.state_dict().keys() == before.state_dict().keys()
    x = torch.randn(4, 8)
    assert torch.equal(model(x), before.eval()(x)) and not torch.equal(model.train()(x), before(x))


def test_attention_is_sdpas_and_drops_probabilities(monkeypatch):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 6, requires_grad=True)
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, ..., 3:] = False
    drawn = torch.from_numpy(np.random.default_rng(0).random((2, 4, 5, 5)) > 0.4).float() / 0.6
    for kept in (1.0, drawn):
        monkeypatch.setattr(module, "dropout", lambda x, p, kept=kept: x * kept)
        found = attention(q, k, v, mask, 0.4, 0.3).transpose(1, 2)
        weights = (q @ k.transpose(-1, -2) * 0.3).masked_fill(~mask, -torch.inf).softmax(-1)
        torch.testing.assert_close(found, (weights * kept) @ v)
    monkeypatch.setattr(module, "dropout", lambda x, p: x)
    found = attention(q, k, v, mask, 0.4, 0.3).transpose(1, 2)
    expected = functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3)
    torch.testing.assert_close(found, expected)
    mine, theirs = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (found, expected))
    torch.testing.assert_close(mine, theirs)


def test_attention_of_bf16_products_is_computed_in_fp32(monkeypatch):
    monkeypatch.setattr(module, "dropout", lambda x, p: x)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 6).mul(4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(q, k, v, None, 0.4, 0.4)
    expected = functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=0.4)
    assert found.dtype == torch.bfloat16
    assert (
        found.float().transpose(1, 2) - expected
    ).norm() < 0.004 * expected.norm()  # of the answer's rounding


def test_a_training_student_drops_in_attention(tmp_path, monkeypatch):
    """Where nothing is dropped after all, a student in training answers as the stock model does."""
    source = ModelSource(str(make_encoder(tmp_path / "m", "bert")))
    student, stock = load_encoder(source), AutoModel.from_pretrained(source.name).eval()
    replace_dropout(student.train())
    ids = torch.randint(5, 15, (3, 9))
    real = torch.ones_like(ids)
    real[1, 6:] = 0
    batch = Batch(
        {"input_ids": ids, "attention_mask": real, "token_type_ids": torch.zeros_like(ids)},
        None,
        torch.ones(3),
        torch.arange(3),
    )
    needs = CaptureSpec(hidden=frozenset({4}), queries_keys=frozenset({1, 4}))
    dropped = read(student, batch, needs).hidden_BLW[4]
    asked = []
    monkeypatch.setattr(module, "dropout", lambda x, p: asked.append((x.shape, p)) or x)
    view = read(student, batch, needs)
    expected = stock(ids, real, output_hidden_states=True).hidden_states[4]
    torch.testing.assert_close(view.hidden_BLW[4][real.bool()], expected[real.bool()])
    assert not torch.allclose(dropped, view.hidden_BLW[4]) and view.queries_BHLD.keys() == {1, 4}
    assert asked.count((torch.Size([3, 4, 9, 9]), 0.1)) == 4
