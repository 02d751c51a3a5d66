"""Dual encoders: pairs are parted into texts as they are tokenized alone, and compared as plain loops compare them."""

import pytest
import torch

from checkpoints.errors import UserError
from pipeline.deploy.onnx_model import OnnxClassifier, write_onnx
from stages.distillation.compatibility import forward_flops
from stages.distillation.models import ModelSource, load_classifier, load_encoder
from stages.distillation.students.architecture import student_config
from stages.distillation.students.dual_encoder import as_dual_encoder
from stages.distillation.task_heads import kind_of
from stages.tasks.kinds import Ranking
from tests.conftest import make_encoder, make_tokenizer, tiny_config

QUESTIONS = ["a good film", "the cast"]
CANDIDATES = ["warm and great actor of the film", "bad"]


def made(directory, vectors: str, scale: float | None = None):
    torch.manual_seed(1)
    model = as_dual_encoder(load_encoder(ModelSource(str(make_encoder(directory)))), vectors, scale)
    Ranking(("wrong", "right")).configure(model.config)
    return model.eval(), make_tokenizer(directory)


def plain_score(queries_TW, passages_UW) -> float:
    return sum(max((q @ p).item() for p in passages_UW) for q in queries_TW)


@pytest.mark.parametrize("vectors", ["cls", "mean", "tokens"])
@pytest.mark.parametrize("scale", [None, 20.0])
def test_pairs_are_compared_as_their_texts_alone(tmp_path, vectors, scale):
    model, tokenizer = made(tmp_path / "encoder", vectors, scale)
    pairs = tokenizer(QUESTIONS, CANDIDATES, padding=True, return_tensors="pt", return_token_type_ids=True)
    assert not pairs["attention_mask"].all()
    found = model(**pairs)

    def alone(text: str):
        """(K, T, W) by the stock encoder, of one text without padding."""
        states = model.encoder(
            **tokenizer(text, return_tensors="pt"), output_hidden_states=True
        ).hidden_states
        x_KLW = torch.cat(states[1:])
        x_KTW = {"cls": x_KLW[:, :1], "mean": x_KLW.mean(1, keepdim=True), "tokens": x_KLW}[vectors]
        return x_KTW if scale is None else scale**0.5 * x_KTW / x_KTW.norm(dim=-1, keepdim=True)

    for row in range(2):
        for seen, text in ((found.queries, QUESTIONS[row]), (found.passages, CANDIDATES[row])):
            theirs = alone(text)
            torch.testing.assert_close(seen[row, :, : theirs.shape[1]], theirs, rtol=1e-4, atol=1e-5)
            assert not seen[row, :, theirs.shape[1] :].any()
        expected = plain_score(alone(QUESTIONS[row])[-1], alone(CANDIDATES[row])[-1])
        assert found.logits[row].tolist() == pytest.approx([0, expected], rel=1e-4)
    single = model(**{name: x for name, x in tokenizer(QUESTIONS[:1], return_tensors="pt").items()
                      if name != "token_type_ids"})  # fmt: skip
    torch.testing.assert_close(single.queries[0], alone(QUESTIONS[0]), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    loaded = load_classifier(ModelSource(str(tmp_path / "saved")), capturing=False).eval()
    torch.testing.assert_close(loaded(**pairs).logits, found.logits)
    assert isinstance(kind_of(loaded.config), Ranking)
    if scale is None:  # is exported as the others are
        return
    write_onnx(loaded, list(pairs), tmp_path / "model.onnx")
    three = tokenizer([*QUESTIONS, "good"], [*CANDIDATES, "the plot"], padding=True, return_tensors="pt",
                      return_token_type_ids=True)  # fmt: skip
    of_onnx = OnnxClassifier(tmp_path / "model.onnx", loaded.config)(**three).logits
    torch.testing.assert_close(of_onnx, loaded(**three).logits, rtol=1e-4, atol=1e-4)


def test_questions_with_several_candidates_are_the_same_pairs(tmp_path):
    model, tokenizer = made(tmp_path, "tokens")
    several = [[QUESTIONS[0], CANDIDATES[0]], [QUESTIONS[0], CANDIDATES[1]],
               [QUESTIONS[1], CANDIDATES[1]], [QUESTIONS[1], "the good cast"]]  # fmt: skip
    pairs = tokenizer(several, padding=True, return_tensors="pt", return_token_type_ids=True)
    flat, together = model(**pairs), model(**{name: x.unflatten(0, (2, 2)) for name, x in pairs.items()})
    torch.testing.assert_close(together.logits.flatten(0, 1), flat.logits)
    torch.testing.assert_close(together.queries, flat.queries[::2])
    torch.testing.assert_close(together.passages.flatten(0, 1), flat.passages)


def test_its_operations_are_those_of_the_encoder(tmp_path):
    model, _ = made(tmp_path, "mean")
    with_pooler = forward_flops(model.encoder.config, 18, 9)
    assert 0.9 * with_pooler < forward_flops(model.config, 18, 9) < with_pooler
    with pytest.raises(UserError, match="kind: 'dual_encoder' cannot be chosen; take the method lead"):
        student_config(tiny_config(), 0, kind="dual_encoder")
