"""What makes an exported directory load in transformers 4.57, which was tried by hand: docs/deploy.md says how."""

import json

import pytest
from tokenizers import AddedToken
from transformers import AutoConfig, AutoTokenizer

from pipeline.deploy.export import fit_settings, model_settings
from stages.distillation.models import ModelSource, load_tokenizer, new_classifier
from stages.tasks.kinds import Classes
from tests.conftest import make_tokenizer, tiny_config

FULL, SLIDING = "full_attention", "sliding_attention"


def test_names_in_tokenizer_config_are_those_of_transformers_4(tmp_path):
    new_classifier(tiny_config(), Classes(("a", "b"))).save_pretrained(tmp_path)
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken("[X]", special=True)]})
    tokenizer.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "TokenizersBackend" and written["extra_special_tokens"] == ["[X]"]
    fit_settings(tmp_path, 24, pairs=False)
    fitted = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert fitted["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert fitted["additional_special_tokens"] == ["[X]"] and "extra_special_tokens" not in fitted
    assert fitted["model_input_names"] == [
        "input_ids",
        "token_type_ids",
        "attention_mask",
    ]  # 4 and 5 have other defaults
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.extra_special_tokens == ["[X]"] and loaded.model_max_length == 24
    text = "the film [X] was good"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert load_tokenizer(ModelSource(str(tmp_path))).model_input_names == fitted["model_input_names"]


@pytest.mark.parametrize(
    "kinds, every",
    [
        ([FULL, SLIDING, SLIDING, FULL], 3),
        ([FULL, SLIDING, FULL], 2),
        ([FULL, FULL], 1),
        ([FULL, SLIDING, SLIDING], 3),
        ([SLIDING, FULL], 0),
        ([FULL, SLIDING, FULL, FULL], 0),
    ],
)
def test_modernberts_layers_are_named_as_in_transformers_4_or_it_refuses_them(kinds, every):
    rope = {FULL: {"rope_theta": 500.0}, SLIDING: {"rope_theta": 70.0}}
    sizes = {"num_hidden_layers": len(kinds), "hidden_size": 16, "num_attention_heads": 2}
    config = AutoConfig.for_model("modernbert", **sizes, layer_types=kinds, rope_parameters=rope)
    settings = model_settings(config.to_dict())
    names = "global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"
    assert [settings[name] for name in names] == [500.0, 70.0, every]
    again = AutoConfig.for_model(**settings)
    assert (again.layer_types, again.rope_parameters) == (config.layer_types, config.rope_parameters)


def test_other_models_settings_stay_as_they_are():
    settings = tiny_config().to_dict()
    assert model_settings(settings) == settings
