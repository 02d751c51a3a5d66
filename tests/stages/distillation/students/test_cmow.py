"""The CMOW/CBOW hybrid: against plain loops, what it sees of order and of pairs, saving, masked tokens, ONNX."""

import re

import pytest
import torch

from checkpoints.errors import UserError
from stages.distillation.models import ModelSource, load_classifier, load_masked_lm, new_classifier
from stages.distillation.outputs import CaptureSpec, read
from stages.distillation.students import cmow
from stages.distillation.students.architecture import student_config
from stages.distillation.students.cmow import CMOWForMaskedLM
from stages.tasks.batches import Batch
from stages.tasks.kinds import Classes
from stages.tasks.types import IGNORE_INDEX
from stages.teaching.given_models import Models, check_plan
from stages.training.options import StageToCheck
from tests.conftest import make_tokenizer, tiny_config

SIDE, WIDTH = 3, 9
LENGTHS, SECOND = (9, 3, 6), (5, 2, 4)
VARIANTS = [("vectors",), ("forwards",), ("backwards",), ("vectors", "forwards", "backwards")]


def config(**settings):
    return student_config(tiny_config(), 0, kind="cmow", width=WIDTH, feed_forward=7, settings=settings)


def a_student(**settings):
    torch.manual_seed(0)
    student = new_classifier(config(**settings), Classes(("a", "b", "c"))).eval()
    with torch.no_grad():  # far from the identity, so that order shows
        for table in student.encoder.tables.values():
            table.weight.normal_(std=0.5)
        student.norm.bias.normal_()
    return student


def inputs():
    """Pairs of real lengths; what stands at padding is a word, so that a leak would show."""
    ids = torch.randint(5, 20, (len(LENGTHS), 9), generator=torch.Generator().manual_seed(1))
    places = torch.arange(9).expand_as(ids)
    mask = (places < torch.tensor(LENGTHS)[:, None]).long()
    types = (places >= torch.tensor(SECOND)[:, None]).long() * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def plain_code(student, ids):
    """The code of a text's tokens, by loops."""
    codes = []
    for part, table in student.encoder.tables.items():
        if part == "vectors":
            codes.append(sum(table.weight[i] for i in ids))
        else:
            found = torch.eye(SIDE)
            for i in ids if part == "forwards" else ids[::-1]:
                found = found @ (torch.eye(SIDE) + table.weight[i].view(SIDE, SIDE))
            codes.append(found.flatten())
    return torch.cat(codes)


@pytest.mark.parametrize("parts", VARIANTS, ids="-".join)
@pytest.mark.parametrize("pairs", ["joint", "diffcat"])
def test_the_logits_are_those_of_plain_loops_whatever_the_padding(parts, pairs):
    student, batch = a_student(parts=list(parts), pairs=pairs), inputs()
    logits = student(**batch).logits
    for row, (n, second) in enumerate(zip(LENGTHS, SECOND, strict=True)):
        ids = batch["input_ids"][row, :n].tolist()
        if pairs == "joint":
            code = plain_code(student, ids)
        else:
            a, b = plain_code(student, ids[:second]), plain_code(student, ids[second:])
            code = torch.cat([a, b, (a - b).abs()])
        plain = student.classifier(student.norm(torch.relu(student.hidden(code))))
        torch.testing.assert_close(logits[row], plain, rtol=1e-4, atol=1e-5)


def test_matrices_see_the_order_of_tokens_and_vectors_do_not():
    batch = inputs()
    turned = batch["input_ids"].clone()
    turned[0, [2, 6]] = turned[0, [6, 2]]
    assert not torch.equal(turned, batch["input_ids"])
    for parts in VARIANTS:
        student = a_student(parts=list(parts))
        logits, others = (
            student(ids, batch["attention_mask"]).logits for ids in (batch["input_ids"], turned)
        )
        same = torch.allclose(logits[0], others[0], rtol=1e-4, atol=1e-5)
        assert same == (parts == ("vectors",)), parts


def test_a_tokens_code_is_what_stands_up_to_it_from_both_ends():
    student, batch = a_student(), inputs()
    states = student.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    assert states.shape == (3, 9, 4 * WIDTH)
    for row, n in enumerate(LENGTHS):
        ids = batch["input_ids"][row, :n].tolist()
        for place in range(n):
            front, end = plain_code(student, ids[: place + 1]), plain_code(student, ids[place:])
            sums, products = (front[:WIDTH], end[:WIDTH]), (front[WIDTH : 2 * WIDTH], end[2 * WIDTH :])
            torch.testing.assert_close(
                states[row, place], torch.cat([*sums, *products]), rtol=1e-4, atol=1e-5
            )


def test_a_masked_language_model_becomes_a_classifier_with_its_tables(tmp_path):
    torch.manual_seed(0)
    whole = CMOWForMaskedLM(config(pairs="diffcat")).eval()
    whole.save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    loaded, has_head = load_masked_lm(ModelSource(str(tmp_path)))
    assert has_head
    batch = inputs()
    labels = torch.full((3, 9), IGNORE_INDEX)
    labels[0, 3], labels[2, 1] = 7, 8
    masked = (labels >= 0).flatten().nonzero()[:, 0]
    given = Batch(batch, labels, torch.ones(3), torch.arange(3), padded=True, masked=masked)
    found = read(loaded.eval(), given, CaptureSpec(vocabulary=True)).vocabulary_NV
    plain = whole(batch["input_ids"], batch["attention_mask"]).logits
    torch.testing.assert_close(found, torch.stack([plain[0, 3], plain[2, 1]]))
    classifier = load_classifier(ModelSource(str(tmp_path)), Classes(("a", "b"))).eval()
    assert classifier.config.pairs == "diffcat" and classifier.hidden.in_features == 3 * 3 * WIDTH
    for part, table in whole.encoder.tables.items():
        assert torch.equal(classifier.encoder.tables[part].weight, table.weight)


@pytest.mark.parametrize("pairs", ["joint", "diffcat"])
def test_what_is_saved_loads_and_onnx_answers_the_same_at_any_length(pairs, tmp_path):
    from pipeline.deploy.onnx_model import OnnxClassifier, write_onnx

    student, batch = a_student(pairs=pairs), inputs()
    student.save_pretrained(tmp_path / "m")
    make_tokenizer(tmp_path / "m")
    loaded = load_classifier(ModelSource(str(tmp_path / "m")), capturing=False).eval()
    assert tuple(loaded.config.parts) == cmow.PARTS and loaded.config.pairs == pairs
    with torch.no_grad():
        expected = student(**batch).logits
        assert torch.equal(loaded(**batch).logits, expected)
    write_onnx(loaded, list(batch), tmp_path / "m.onnx")
    onnx = OnnxClassifier(tmp_path / "m.onnx", loaded.config)
    torch.testing.assert_close(onnx(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    one = {name: x[1:2, :3] for name, x in batch.items()}
    torch.testing.assert_close(onnx(**one).logits[0], expected[1], rtol=1e-4, atol=1e-5)


def test_in_bf16_the_products_stay_in_fp32():
    student, batch = a_student(), inputs()
    code = student.encoder.code(batch["input_ids"], batch["attention_mask"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(student.encoder.code(batch["input_ids"], batch["attention_mask"]), code)


def test_a_new_students_matrices_are_near_the_identity():
    torch.manual_seed(0)
    student = new_classifier(config(), Classes(("a", "b")))
    for table in student.encoder.tables.values():
        assert table.weight.std().item() == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(
    "width, settings, words",
    [
        (10, {}, "width: 10 must be a square"),
        (9, {"parts": []}, r"settings.parts: \[\] must be a list of some of vectors, forwards, backwards"),
        (9, {"parts": "vectors"}, "settings.parts: 'vectors' must be a list"),
        (9, {"parts": ["vectors", "vectors"]}, "settings.parts: .* must be a list"),
        (9, {"pairs": "cosine"}, "settings.pairs: 'cosine' must be one of joint, diffcat"),
        (9, {"pair": "joint"}, "settings: 'pair' is not a setting of a cmow; it has parts, pairs"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_line(width, settings, words):
    with pytest.raises(UserError, match=words) as error:
        student_config(tiny_config(), 0, kind="cmow", width=width, feed_forward=7, settings=settings)
    assert "\n" not in str(error.value)


def test_kinds_without_settings_refuse_them():
    with pytest.raises(UserError, match="settings: 'pairs' is not a setting of a bilstm; it has none"):
        student_config(tiny_config(), 1, kind="bilstm", width=8, settings={"pairs": "joint"})
    with pytest.raises(
        UserError, match=re.escape("settings: {'pairs': 'joint'} are for a student with a kind")
    ):
        student_config(tiny_config(), 1, settings={"pairs": "joint"})


def test_diffcat_needs_a_tokenizer_with_token_types(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    models = Models(tokenizer, tiny_config(), tiny_config())
    plans = {
        pairs: StageToCheck(
            "student", "task", 32, 1, 8, layer_map="uniform", losses=["gold_labels"],
            student={"layers": 0, "kind": "cmow", "width": 9, "feed_forward": 7, "settings": {"pairs": pairs}},
        )
        for pairs in ("joint", "diffcat")
    }  # fmt: skip
    check_plan(plans["diffcat"], models, None)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    check_plan(plans["joint"], models, None)
    with pytest.raises(UserError, match="settings.pairs: 'diffcat' tells two texts apart .* give joint"):
        check_plan(plans["diffcat"], models, None)
