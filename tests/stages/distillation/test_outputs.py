"""The tap reads what the model computes: hidden states, queries and keys, of four kinds of models."""

import copy
import shlex

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from checkpoints.errors import UserError
from pipeline.config.run_options import load
from stages.distillation.device import has_fast_bf16
from stages.distillation.model_surgery import PackedLinear, pack
from stages.distillation.models import ModelSource, load_classifier, load_encoder, load_tokenizer
from stages.distillation.outputs import CaptureSpec, read
from stages.distillation.students.architecture import (
    random_student,
    student_config,
    student_from_teacher_layers,
)
from stages.distillation.teachers import FrozenTeacher, class_order
from stages.tasks.kinds import Classes
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import Split
from tests.conftest import make_encoder, sentences

KINDS = ["bert", "roberta", "electra", "distilbert"]


def a_batch(tmp_path, source):
    texts = [text for text, _ in sentences(6)]
    split = Split(texts, list(reversed(texts)), [0] * 6)
    rows = write_task_rows([split], load_tokenizer(source), 40, tmp_path / "rows")
    return rows.collate(np.arange(6), np.ones(6))


@pytest.mark.parametrize("kind", KINDS)
def test_views_are_what_the_stock_model_computes(tmp_path, kind):
    source = ModelSource(str(make_encoder(tmp_path / "m", kind)))
    tapped, stock = load_encoder(source).eval(), AutoModel.from_pretrained(source.name).eval()
    batch = a_batch(tmp_path, source)
    view = read(tapped, batch, CaptureSpec(hidden=frozenset({0, 2, 4}), queries_keys=frozenset({2, 4})))
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if getattr(stock.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = batch.inputs["token_type_ids"]
    expected = stock(**inputs, output_hidden_states=True).hidden_states
    mask = batch.attention_mask.bool()
    assert view.hidden_BLW.keys() == {0, 2, 4} and view.queries_BHLD.keys() == view.keys_BHLD.keys() == {2, 4}
    for layer, hidden in view.hidden_BLW.items():
        torch.testing.assert_close(hidden[mask], expected[layer][mask])
    for name, found in (("query", view.queries_BHLD), ("key", view.keys_BHLD)):
        layers = [m for n, m in stock.named_modules() if n.endswith(("." + name, f".{name[0]}_lin"))]
        for layer, q_BHLD in found.items():
            flat = layers[layer - 1](expected[layer - 1])
            split = flat.view(*flat.shape[:2], 4, 4).transpose(1, 2)
            torch.testing.assert_close(q_BHLD, split)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_the_same_kind_reads_the_same_batches(tmp_path, kind):
    source = ModelSource(str(make_encoder(tmp_path / "m", kind)))
    teacher = load_encoder(source)
    student = random_student(student_config(teacher.config, 2, 8, 12, 2, 0.0), seed=3)
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
    view = read(
        student,
        a_batch(tmp_path, source),
        CaptureSpec(hidden=frozenset({0, 1, 2}), queries_keys=frozenset({1, 2})),
    )
    assert view.hidden_BLW[2].shape[-1] == 8 and view.queries_BHLD[2].shape[1] == 2
    again = random_student(student_config(teacher.config, 2, 8, 12, 2, 0.0), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_from_teacher_layers_is_every_kth_layer(tmp_path, kind):
    teacher = load_encoder(ModelSource(str(make_encoder(tmp_path / "m", kind))))
    student = student_from_teacher_layers(teacher, 2, 0.0)
    theirs, mine = teacher.state_dict(), student.state_dict()
    layer = "transformer.layer" if kind == "distilbert" else "encoder.layer"
    for name, tensor in mine.items():
        source = name.replace(f"{layer}.1.", f"{layer}.3.").replace(f"{layer}.0.", f"{layer}.1.")
        assert torch.equal(tensor, theirs[source]), name
    with pytest.raises(UserError, match="divide"):
        student_from_teacher_layers(teacher, 3, 0.0)


@pytest.mark.parametrize("kind", ["modernbert", "nomic_bert", "eurobert", "gte"])
def test_a_student_begins_as_layers_of_the_teacher_under_other_names(kind):
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    tokens = {
        "vocab_size": 50,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "cls_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 2,
    }
    teacher = AutoModel.from_config(AutoConfig.for_model(kind, **sizes, **tokens))
    theirs, mine = teacher.state_dict(), student_from_teacher_layers(teacher, 2, 0.0).state_dict()
    for name, tensor in mine.items():
        assert torch.equal(
            tensor, theirs[name.replace("layers.1.", "layers.3.").replace("layers.0.", "layers.1.")]
        ), name
    assert sum("layers.1." in name for name in mine) == sum("layers.3." in name for name in theirs) > 0


def test_albert_whose_layers_are_one_gives_no_student_some_of_them():
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    with pytest.raises(UserError, match="not found by name"):
        student_from_teacher_layers(AutoModel.from_config(AutoConfig.for_model("albert", **sizes)), 2, 0.0)


def test_a_frozen_teacher_is_still_free_of_dropout_and_gradients_and_answers_in_the_tasks_order(tmp_path):
    source = ModelSource(str(make_encoder(tmp_path / "m")))
    model = load_classifier(source, Classes(("b", "a", "c"))).train()
    batch = a_batch(tmp_path, source)
    needs = CaptureSpec(logits=True, hidden=frozenset({4}), queries_keys=frozenset({4}))
    order = class_order(model.config, ("a", "b", "c"), [])
    assert order == [1, 0, 2]
    teacher = FrozenTeacher(model, needs, torch.device("cpu"), class_order=order)
    first, second = teacher(batch), teacher(batch)
    assert torch.equal(first.logits_BC, second.logits_BC)
    assert not first.logits_BC.requires_grad and not first.queries_BHLD[4].requires_grad
    plain = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.inputs["token_type_ids"],
    )
    torch.testing.assert_close(first.logits_BC, plain.logits[:, [1, 0, 2]])


def test_a_bf16_teacher_is_as_near_to_fp32_as_bf16_allows(tmp_path):
    source = ModelSource(str(make_encoder(tmp_path / "m", width=32)))
    batch, needs = (
        a_batch(tmp_path, source),
        CaptureSpec(hidden=frozenset({0, 4}), queries_keys=frozenset({4})),
    )
    exact, low = (
        FrozenTeacher(load_encoder(source), needs, torch.device("cpu"), precision)(batch)
        for precision in (torch.float32, torch.bfloat16)
    )
    pairs = [(exact.hidden_BLW[layer], low.hidden_BLW[layer]) for layer in (0, 4)]
    pairs += [(exact.queries_BHLD[4], low.queries_BHLD[4]), (exact.keys_BHLD[4], low.keys_BHLD[4])]
    for expected, got in pairs:
        assert (got.float() - expected).norm() < 0.02 * expected.norm()


def test_packed_weights_change_no_bit():
    if not has_fast_bf16("cpu"):
        pytest.skip("this processor has no fast bf16 products")
    config = BertConfig(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=200, num_labels=3
    )
    plain = BertForSequenceClassification(config).eval().requires_grad_(False).bfloat16()
    packed = copy.deepcopy(plain)
    pack(packed)
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 2 * 6 + 2
    for shape in ((1, 1), (3, 17), (32, 53)):
        ids = torch.randint(1000, 30000, shape)
        assert torch.equal(plain(ids).logits, packed(ids).logits)


def test_weights_in_fp32_are_not_packed():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    pack(model)
    assert type(model[0]) is torch.nn.Linear


def test_class_names_decide_and_unnamed_or_foreign_classes_are_refused(tmp_path):
    source = ModelSource(str(make_encoder(tmp_path / "m")))
    config = load_classifier(source, Classes(("ENTAILMENT", "Not Entailment"))).config
    assert class_order(config, ("entailment", "not_entailment"), []) == [0, 1]
    assert class_order(config, ("not_entailment", "entailment"), []) == [1, 0]
    unnamed = AutoModelForSequenceClassification.from_pretrained(source.name, num_labels=2).config
    with pytest.raises(UserError, match="teacher_labels: .*no,yes"):
        class_order(unnamed, ("no", "yes"), [])
    assert class_order(unnamed, ("no", "yes"), ["yes", "no"]) == [1, 0]
    assert class_order(config, ("entailment", "not_entailment"), ["Entailment", "not entailment"]) == [0, 1]
    assert class_order(config, ("no", "yes"), ["yes", "no"]) == [1, 0], "names of another language"
    with pytest.raises(
        UserError, match="config.json has the order ENTAILMENT, Not Entailment; leave this out"
    ):
        class_order(config, ("entailment", "not_entailment"), ["not_entailment", "entailment"])
    with pytest.raises(UserError, match="2 classes .*, the task 3"):  # names would not help
        class_order(unnamed, ("no", "yes", "perhaps"), [])
    for labels in (("a", "b"), ("entailment", "not_entailment", "neutral")):
        with pytest.raises(UserError, match="are not the task's|give a teacher of this task"):
            class_order(config, labels, [])
    with pytest.raises(UserError, match="regression"):
        class_order(config, None, [])


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (("LABEL_0", "LABEL_1"), ("LABEL_1", "LABEL_0"), [1, 0]),
        (("Yes", "yes"), ("yes", "Yes"), [1, 0]),
        (("no-show", "no show"), ("no show", "no-show"), [1, 0]),
        (("a, b", '"c"'), ('"c"', "a, b"), [1, 0]),
        (("No-Show", "CAME"), ("came", "no show"), [1, 0]),
        (("Straße", "gas_se"), ("gas-se", "STRASSE"), [1, 0]),
        (("C", "C++", "C#"), ("c#", "c", "c++"), [2, 0, 1]),
    ],
)
def test_any_distinct_names_are_found_exactly_then_forgiving(tmp_path, names, labels, order):
    config = load_classifier(ModelSource(str(make_encoder(tmp_path / "m"))), Classes(names)).config
    assert class_order(config, labels, []) == order


@pytest.mark.parametrize(
    ("names", "labels"),
    [(("Yes", "yes"), ("YES", "no")), (("+1", "0"), ("-1", "0")), (("+", "-"), ("_", "-"))],
)
def test_names_that_only_look_alike_are_refused(tmp_path, names, labels):
    config = load_classifier(ModelSource(str(make_encoder(tmp_path / "m"))), Classes(names)).config
    with pytest.raises(UserError, match="are not the task's|give a teacher of this task"):
        class_order(config, labels, [])


@pytest.mark.parametrize(
    "labels", [("no", "yes"), ("a, b", "c"), ("it's", '"x"'), ("[1]", "2 3"), (" a", "a"), ("é", "\u0085")]
)
def test_the_hint_of_an_unnamed_teacher_works_when_pasted(tmp_path, labels):
    config = load_classifier(
        ModelSource(str(make_encoder(tmp_path / "m"))), Classes(("LABEL_0", "LABEL_1"))
    ).config
    with pytest.raises(UserError, match="unnamed") as caught:
        class_order(config, labels, [])
    pasted = shlex.split(str(caught.value)[str(caught.value).index("example ") + 8 :])
    assert class_order(config, labels, load("small", pasted).teacher_labels) == [0, 1]


def test_weights_without_a_model_type_are_bert_and_bin_weights_need_leave(tmp_path):
    import json

    directory = make_encoder(tmp_path / "TinyOne")
    config = json.loads((directory / "config.json").read_text())
    del config["model_type"], config["architectures"]
    (directory / "config.json").write_text(json.dumps(config))
    model = load_encoder(ModelSource(str(directory)))
    assert type(model).__name__ == "BertModel"
    (directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="allow_bin: .*set it to true"):
        load_encoder(ModelSource(str(directory)))
    loaded = load_encoder(ModelSource(str(directory), allow_bin=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
