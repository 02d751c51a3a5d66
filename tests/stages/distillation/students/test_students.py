"""Students that are no stock models: padding, saving, ONNX, their sizes and their operations."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from checkpoints.errors import UserError
from stages.distillation.compatibility import forward_flops
from stages.distillation.losses import build
from stages.distillation.models import ModelSource, load_classifier, new_classifier
from stages.distillation.students.architecture import KINDS, begin_with_vectors, student_config
from stages.distillation.students.cmow import CMOWConfig
from stages.distillation.students.ngrams import NGramsConfig
from stages.distillation.students.strips import STRIPS
from stages.tasks.kinds import Classes, Words
from tests.conftest import make_tokenizer, tiny_config

SIZES = {"bilstm": {"layers": 2, "width": 8}, "textcnn": {"layers": 0, "width": 8, "feed_forward": 6}}
LENGTHS = (9, 2, 5)


def a_student(kind, words=False, dropout=0.1):
    torch.manual_seed(0)
    config = student_config(tiny_config(), kind=kind, dropout=dropout, **SIZES[kind])
    return new_classifier(config, (Words if words else Classes)(("a", "b", "c"))).eval()


def inputs(padded=9):
    """Rows of real lengths; what stands at padding is a word, so that a leak would show."""
    ids = torch.randint(5, 20, (len(LENGTHS), padded), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[int(i < n) for i in range(padded)] for n in LENGTHS])
    return {"input_ids": ids, "attention_mask": mask}


def test_every_kind_is_known_by_its_modules_name():
    own = {
        "bert_with_token",
        "cmow",
        "han",
        "ngrams",
        "rgcn",
        *STRIPS,
    }  # which have tests of their own
    assert set(SIZES) | own == set(KINDS)


@pytest.mark.parametrize("words", [False, True], ids=["rows", "words"])
@pytest.mark.parametrize("kind", SIZES)
def test_padding_never_counts(kind, words):
    student, batch = a_student(kind, words), inputs()
    with torch.no_grad():
        together = student(**batch, output_hidden_states=True)
        for row, n in enumerate(LENGTHS):
            alone = student(**{name: x[row : row + 1, :n] for name, x in batch.items()}).logits[0]
            logits = together.logits[row, :n] if words else together.logits[row]
            torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-6)
        last = batch["input_ids"][0, 8].item()
        batch["input_ids"][0, 8] = last % 15 + 5
        assert not torch.allclose(student(**batch).logits[0], together.logits[0])  # a real token does count
    assert len(together.hidden_states) == 1 + {"bilstm": 2, "textcnn": 1}[kind]
    assert together.hidden_states[0].shape == (3, 9, 8)


@pytest.mark.parametrize("words", [False, True], ids=["rows", "words"])
@pytest.mark.parametrize("kind", SIZES)
def test_what_is_saved_loads_and_onnx_answers_the_same(kind, words, tmp_path):
    from pipeline.deploy.onnx_model import OnnxClassifier, write_onnx
    from pipeline.deploy.smaller import write_int8

    student, batch = a_student(kind, words), inputs()
    student.save_pretrained(tmp_path / "m")
    make_tokenizer(tmp_path / "m")
    loaded = load_classifier(ModelSource(str(tmp_path / "m")), capturing=False).eval()
    assert type(loaded) is type(student) and loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    with torch.no_grad():
        expected = student(**batch).logits
        assert torch.equal(loaded(**batch).logits, expected)
        tapped = load_classifier(ModelSource(str(tmp_path / "m"))).eval()
        assert torch.equal(tapped(**batch).logits, expected)
    write_onnx(loaded, ["input_ids", "attention_mask"], tmp_path / "m.onnx")
    write_int8(tmp_path / "m.onnx", tmp_path / "int8.onnx")
    onnx = OnnxClassifier(tmp_path / "m.onnx", loaded.config)
    torch.testing.assert_close(onnx(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    one = {name: x[1:2, :2] for name, x in batch.items()}
    torch.testing.assert_close(
        onnx(**one).logits[0], expected[1, :2] if words else expected[1], rtol=1e-4, atol=1e-5
    )
    assert OnnxClassifier(tmp_path / "int8.onnx", loaded.config)(**batch).logits.shape == expected.shape


def test_operations_are_those_of_the_products():
    tokens = sum(LENGTHS)
    student = a_student("textcnn")
    rows = {name: x.repeat(1, 1) for name, x in inputs().items()}
    with FlopCounterMode(display=False) as counter:
        student(**rows)
    head = 2 * 3 * student.encoder.width * 3  # rows x features x classes
    padded = len(LENGTHS) * max(LENGTHS)
    assert forward_flops(student.config, padded, 9) == counter.get_total_flops() - head
    student = a_student("bilstm")
    products = sum(p.numel() for name, p in student.encoder.named_parameters() if "weight_" in name)
    assert forward_flops(student.config, tokens, 5) == 2 * products * tokens


@pytest.mark.parametrize(
    "config, of_a_token",
    [
        (NGramsConfig(hidden_size=8, ngrams=6), 4 * 8),
        (CMOWConfig(hidden_size=16, intermediate_size=8), 16 + 2 * 128),
        (CMOWConfig(hidden_size=16, intermediate_size=8, pairs="diffcat"), 2 * (16 + 2 * 128)),
    ],
    ids=lambda x: getattr(x, "model_type", ""),
)
def test_operations_of_a_hidden_layer_count_once_a_row(config, of_a_token):
    hidden = AutoModelForSequenceClassification.from_config(config).hidden
    of_a_row = 9 * of_a_token + 2 * hidden.weight.numel()
    assert forward_flops(config, 9, 9) == of_a_row and forward_flops(config, 90, 9) == 10 * of_a_row


def test_sizes_that_a_kind_lacks_or_has_not_are_refused():
    for wrong, words in (
        (
            {"kind": "gru", "layers": 1},
            "kind: 'gru' is unknown; there are bert_with_token, bilstm, cmow, han, ngrams, rgcn",
        ),
        (
            {"kind": "bilstm", "layers": 1, "width": 8, "heads": 2},
            "heads: 2 for a bilstm, whose sizes are layers, width; leave it out",
        ),
        ({"kind": "bilstm", "layers": 1}, "width: 0 for a bilstm.*give one above 0"),
        ({"kind": "bilstm", "layers": 1, "width": 7}, "width: 7 must be even"),
        ({"kind": "textcnn", "layers": 1, "width": 8, "feed_forward": 6}, "layers: 1 for a textcnn"),
    ):
        with pytest.raises(UserError, match=words):
            student_config(tiny_config(), **wrong)


@pytest.mark.parametrize(
    "kind, loss, words",
    [
        ("bilstm", "attention_scores", "a bilstm has no attention"),
        ("bilstm", "attention_maps", "a bilstm has no attention"),
        ("bilstm", "relations", "a bilstm has no attention"),
        ("textcnn", "attention_scores", "a textcnn has no layers"),
        ("textcnn", "hidden_states", "a textcnn has no layers"),
        ("textcnn", "gram", "a textcnn has no layers"),
    ],
)
def test_losses_that_need_what_a_kind_lacks_are_refused(kind, loss, words):
    student = student_config(tiny_config(), kind=kind, **SIZES[kind])
    with pytest.raises(UserError, match=f"losses.{loss}: {words}"):
        build(loss, student, tiny_config())


def test_the_hidden_states_of_a_bilstm_can_learn():
    student = a_student("bilstm")
    loss = build("hidden_states", student.config, tiny_config())
    assert loss.layers == {0: 0, 1: 2, 2: 4}


def test_whole_words_begin_as_their_vectors_and_keep_the_angles_between_them():
    torch.manual_seed(0)
    table = nn.Embedding(10, 16)
    before = table.weight.detach().clone()
    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pieces = {"good": 7, "##ly": 5, "bad": 2, "[CLS]": 0}
    assert begin_with_vectors(table, pieces, ["bad", "unknown", "good", "ly"], vectors) == 2
    rows = table.weight.detach()
    others = [i for i in range(10) if i not in (2, 7)]
    assert torch.equal(rows[others], before[others])
    cosine = torch.cosine_similarity(rows[2], rows[7], dim=0).item()
    assert cosine == pytest.approx(float(vectors[0] @ vectors[2]), abs=1e-5)
    length = before.norm(dim=1).mean()
    torch.testing.assert_close(rows[[2, 7]].norm(dim=1), length.expand(2))
    assert begin_with_vectors(table, {"x": 1}, ["y"], vectors[:1]) == 0
