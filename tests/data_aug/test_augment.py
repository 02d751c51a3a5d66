"""The augmenter from Python, on a tiny masked LM made on the spot."""

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pandas import DataFrame, Series
from transformers import GPT2Config, GPT2LMHeadModel

import data_aug
from data_aug import augment
from data_aug.variants import Candidates, Settings, augment_rows
from data_aug.word_prediction import MaskedLM
from data_aug.word_vectors import WordVectors
from tests.data_aug.conftest import TEXTS

ROWS = [(text, None) for text in TEXTS]


@pytest.fixture(scope="module")
def directory(bert, tmp_path_factory) -> Path:
    model, tokenizer = bert
    path = tmp_path_factory.mktemp("place") / "path" / "or" / "hub" / "name"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "vectors.txt").write_text("unforgettable 1 0\nmemorable 1 0.1\nforgettable 1 0.2\n")
    return path


def test_the_docstrings_example_runs(directory, monkeypatch) -> None:
    monkeypatch.chdir(directory.parents[3])
    assert doctest.testmod(data_aug, raise_on_error=True).attempted == 3


def test_texts_and_pairs_are_varied_as_their_parts_do(directory, bert) -> None:
    file = directory / "vectors.txt"
    candidates = Candidates(MaskedLM(*bert), WordVectors.from_text(file), k=4)
    expected, counts = augment_rows(ROWS, candidates, Settings(p=0.7, variants=6), seed=3)
    assert counts.by_masked_lm and counts.by_vectors
    options = {"variants": 6, "p": 0.7, "seed": 3, "vectors": file, "candidates": 4}
    rows = augment(TEXTS, directory, **options)
    assert rows == [[text for text, _ in row] for row in expected]
    assert [row[0] for row in rows] == TEXTS
    assert augment(TEXTS, bert, progress=True, **options) == rows
    assert augment(TEXTS, bert, **options | {"seed": 4}) != rows
    assert augment(TEXTS, bert, **options | {"vectors": None}) != rows
    pairs = list(zip(TEXTS, TEXTS[1:], strict=False))
    expected, _ = augment_rows(pairs, candidates, Settings(p=0.7, variants=6, repredict=True), seed=3)
    assert augment(pairs, bert, repredict=True, **options) == expected
    assert augment([], bert) == []


def test_refusals(bert, directory, tmp_path) -> None:
    model, tokenizer = bert
    model.base_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 1}
    causal = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    causal.save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    for texts, how, message in (
        ("a film", {}, "texts: 'a film' is not a list; give a list of texts"),
        (None, {}, "texts: None is not a list; give a list of texts"),
        ({"text": ["a film"]}, {}, "texts: a whole dict is not a list"),
        (DataFrame({"text": ["a film"]}), {}, "texts: a whole DataFrame is not a list"),
        ([("a", "b", "c")], {}, "texts: row 0 has 3 texts; give one or a pair"),
        (["a film", 7], {}, "texts: row 1 is not a string"),
        (["a film", " "], {}, "row 1, text_a is empty"),
        (["a film"], {"p": 2}, "p: 2 is not a probability"),
        (["a film"], {"p": "0.4"}, "p: '0.4' is not a probability"),
        (["a film"], {"variants": 1.5}, "variants: 1.5 is not a whole number of 0 or more"),
        (["a film"], {"seed": -1}, "seed: -1 is not a whole number of 0 or more"),
        (["a film"], {"candidates": 0}, "candidates: 0 is not a whole number of 1 or more"),
        (["a film"], {"model": (tokenizer, model)}, "model: tuple is not a model; give a directory"),
        (["a film"], {"model": None}, "model: NoneType is not a model; give a directory"),
        (["a film"], {"model": (causal, tokenizer)}, "model: GPT2LMHeadModel has no masked-LM head"),
        (["a film"], {"model": tmp_path / "causal"}, "model: .*causal: gpt2 has no masked-LM head; give a"),
        (["a film"], {"model": Path(__file__).parent}, "model: .*data_aug: has no config.json; give a"),
        (["film " * 40], {"long_texts": "refuse"}, "long_texts: row 0, text_a takes 83 tokens"),
        (["a film"], {"model": tmp_path}, "model: .* has no masked-LM head; give a masked language model"),
        (["a film"], {"model": "./none"}, "model: ./none cannot be loaded"),
        (["a film"], {"vectors": "none.txt"}, "vectors: none.txt: no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            augment(texts, **{"model": bert, **how})
    assert augment(["film " * 40], bert) == [["film " * 40]]


def test_any_column_of_texts_will_do_and_a_given_model_stays_in_training(bert) -> None:
    model, tokenizer = bert
    rows = augment(TEXTS, bert)
    model.train()
    for texts in (tuple(TEXTS), iter(TEXTS), Series(TEXTS, index=range(5, 5 + len(TEXTS))), np.array(TEXTS)):
        assert augment(texts, bert, variants=np.int64(20)) == rows
    assert model.training and model.base_model.training
    model.eval()


def test_importing_the_augmenter_imports_no_torch() -> None:
    code = "import sys, data_aug; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
