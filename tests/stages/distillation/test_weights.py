"""Weights that do not arrive are named in one line, and prefixes of wrappers are taken off."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.errors import UserError
from stages.distillation.models import (
    ModelSource,
    load_classifier,
    load_config,
    load_encoder,
    load_masked_lm,
    new_classifier,
)
from stages.distillation.task_heads import head_of, kind_of
from stages.tasks.kinds import Classes, Words
from tests.conftest import make_tokenizer, tiny_config

LABELS = ("bad", "fair", "good")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A classifier of rows with three labels."""
    return classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def classifier(directory, kind="bert", token_level=False):
    torch.manual_seed(0)
    new_classifier(tiny_config(kind, layers=2), (Words if token_level else Classes)(LABELS)).save_pretrained(
        directory
    )
    make_tokenizer(directory)
    return directory


def rename(directory, new_name):
    """Save the weights under other names, without those of which the new name is empty."""
    weights = load_file(directory / "model.safetensors")
    weights = {new_name(name): tensor for name, tensor in weights.items() if new_name(name)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def configure(directory, **settings):
    path = directory / "config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def own(directory, **how):
    return load_classifier(ModelSource(str(directory), **how))


def same(one, other) -> bool:
    return all(torch.equal(a, other.state_dict()[name]) for name, a in one.state_dict().items())


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_buffers_that_an_older_transformers_wrote_are_no_weights(saved, directory, wrapper):
    buffers = {"position_ids": torch.arange(64)[None], "token_type_ids": torch.zeros(1, 64, dtype=torch.long)}
    weights = load_file(directory / "model.safetensors")
    weights |= {f"bert.embeddings.{name}": of for name, of in buffers.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    rename(directory, lambda name: wrapper + name)
    assert same(own(saved), own(directory))


@pytest.mark.parametrize(
    "prefix, new_name",
    [
        ("_orig_mod.", "_orig_mod.{}".format),
        ("module.", "module.{}".format),
        ("_orig_mod.module.", "_orig_mod.module.{}".format),
        ("model.", "model.{}".format),
        ("encoder.", lambda name: name.replace("bert.", "encoder.")),
    ],
)
def test_a_wrappers_prefix_is_taken_off_and_said(saved, directory, prefix, new_name):
    rename(directory, new_name)
    said = []
    loaded = load_classifier(ModelSource(str(directory)), say=said.append)
    assert same(loaded, own(saved))
    assert said == [f"{directory}: {prefix!r} is taken off the names of its weights"]
    assert same(load_encoder(ModelSource(str(directory))), load_encoder(ModelSource(str(saved))))


def sharded(directory):
    torch.manual_seed(0)
    own(directory).save_pretrained(directory, max_shard_size="5KB")
    (directory / "model.safetensors").unlink()
    assert len(list(directory.glob("model-*.safetensors"))) > 1


def as_bin(directory):
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize("form", [None, sharded, as_bin])
@pytest.mark.parametrize(
    "settings, fault",
    [
        ({"num_hidden_layers": 4}, r"32 missing \(bert.encoder.layer.2.attention.output.LayerNorm.bias, .*\.\.\.\)"),
        ({"num_hidden_layers": 1}, r"16 that the model has no place for \(bert.encoder.layer.1"),
        ({"vocab_size": 99}, r"1 of another shape \(bert.embeddings.word_embeddings.weight \(28, 16\) instead of \(99, 16\)\)"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, r"2 of another shape \(classifier.bias \(3,\) instead of \(2,\), classifier.weight"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_the_weights_is_one_line(directory, form, settings, fault):
    if form:
        form(directory)
    configure(directory, **settings)
    with pytest.raises(UserError, match=fault) as caught:
        own(directory, allow_bin=form is as_bin)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_classifier_without_its_head_is_refused_but_an_encoder_to_tune(tmp_path, kind):
    directory = classifier(tmp_path / "m", kind)
    rename(directory, lambda name: "" if "classifier" in name else name)
    with pytest.raises(UserError, match=r"missing \((pre_)?classifier.*remove \"architectures\""):
        own(directory)
    configure(directory, architectures=None)
    assert head_of(load_config(ModelSource(str(directory)))) is None
    tuned = load_classifier(ModelSource(str(directory)), Classes(("yes", "no")))
    assert tuned.config.num_labels == 2


@pytest.mark.parametrize("token_level", [False, True])
@pytest.mark.parametrize("architectures", [None, ["MyOwnBert"]])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_classifier_whose_config_does_not_say_so_is_one(tmp_path, kind, token_level, architectures):
    directory = classifier(tmp_path / "m", kind, token_level)
    configure(directory, architectures=architectures)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert head_of(load_config(ModelSource(str(directory)))) == (Words if token_level else Classes).head
    assert torch.equal(torch.rand(3), expected)  # a head that is drawn after it stays the same
    assert own(directory).config.id2label == dict(enumerate(LABELS))


def test_a_head_for_other_labels_is_dropped_and_said(saved, directory):
    said = []
    loaded = load_classifier(ModelSource(str(directory)), Classes(("yes", "no")), say=said.append)
    assert loaded.config.num_labels == 2 and loaded.classifier.weight.shape == (2, 16)
    assert same(loaded.bert, own(saved).bert)
    (line,) = said
    assert "classifier.weight (3, 16) instead of (2, 16)" in line and "dropped" in line


def test_encoders_and_masked_language_models_may_lack_heads_alone(directory):
    source, said = ModelSource(str(directory)), []
    load_encoder(source, said.append)
    assert not load_masked_lm(source)[1] and not said
    rename(directory, lambda name: "" if "pooler" in name or "layer.1.output.dense.bias" in name else name)
    with pytest.raises(UserError, match=r"1 missing \(encoder.layer.1.output.dense.bias\)"):
        load_encoder(source)
    with pytest.raises(UserError, match=r"1 missing \(bert.encoder.layer.1.output.dense.bias\)"):
        load_masked_lm(source)


def test_a_head_for_as_many_other_labels_is_dropped_too(tmp_path):
    first, same, other = (Classes(names) for names in (("yes", "no"), ("yes", "no"), ("no", "yes")))
    directory = save(tmp_path / "m", tiny_config(layers=2), first)
    source, said = ModelSource(str(directory)), []
    theirs = load_classifier(source).classifier.weight
    assert torch.equal(load_classifier(source, same, say=said.append).classifier.weight, theirs) and not said
    torch.manual_seed(0)
    drawn = load_classifier(source, other, say=said.append)
    assert (
        not torch.equal(drawn.classifier.weight, theirs)
        and "of another task (yes, no); it is dropped" in said[0]
    )
    torch.manual_seed(0)
    assert torch.equal(load_classifier(source, other).classifier.weight, drawn.classifier.weight)
    encoder = load_classifier(source).base_model.state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in drawn.base_model.state_dict().items())


def save(directory, config, kind):
    new_classifier(config, kind).save_pretrained(directory)
    make_tokenizer(directory)
    return directory


@pytest.mark.parametrize(
    "labels", [{"1": "bad", "2": "fair", "3": "good"}, {"0": "bad", "2": "good"}, ["bad", "good"]]
)
def test_labels_are_numbered_from_0(directory, labels):
    configure(directory, id2label=labels, label2id=None)
    with pytest.raises(UserError, match='"id2label" in its config.json is .*number the labels'):
        own(directory)


def test_how_a_model_was_called_does_not_matter_and_numbers_are_names(saved, directory):
    plain = own(saved)
    configure(
        directory,
        return_dict=False,
        _attn_implementation="flash_attention_2",
        id2label={"0": 0, "1": 1, "2": 2},
    )
    loaded = load_classifier(ModelSource(str(directory)), capturing=False)
    assert kind_of(loaded.config).labels == ("0", "1", "2")
    ids = torch.tensor([[2, 7, 8, 3]])
    assert torch.equal(loaded.eval()(ids).logits, plain.eval()(ids).logits)


def test_files_that_hold_no_weights_are_named(directory):
    weights = directory / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    with pytest.raises(UserError, match="pointer of git-lfs.*git lfs pull"):
        own(directory)
    weights.rename(directory / "model-00001-of-00002.safetensors").write_bytes(kept)
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    with pytest.raises(UserError, match="names model-00002-of-00002.safetensors, which is not there"):
        own(directory)
    index.unlink()
    (directory / "model-00001-of-00002.safetensors").rename(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapter of PEFT.*merge"):
        own(directory)


def test_a_head_of_another_kind_is_said(directory):
    rename(directory, lambda name: name.replace("classifier.", "lstm."))
    configure(directory, architectures=["BertLSTMClassifier"])
    said = []
    load_encoder(ModelSource(str(directory)), say=said.append)
    assert len(said) == 1 and "its lstm.* have no place in a BertModel; they are left out" in said[0]
