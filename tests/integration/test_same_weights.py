"""The record of what is learned: the same twice, another from other models, and of every command, preset and recipe."""

import json

import pytest

from pipeline.cli.commands import COMMANDS
from pipeline.config.recipe import RECIPES
from pipeline.config.run_options import PRESETS
from tests.same_weights import LATER, MAKE, SHOW, compare, hashes, main, record

AUGMENTED, RECIPE = "given", "own-words"
TWO_STAGES = ("augment/rows-00000000.arrow", "intermediate/teacher_logits.npy",
              *(f"{stage}/model.safetensors" for stage in ("masked_lm", "teacher", "intermediate", "prediction")))  # fmt: skip


@pytest.mark.slow
def test_two_runs_have_the_same_hashes_and_other_models_have_others(tmp_path):
    first, again = (record(tmp_path / name, (AUGMENTED, RECIPE)) for name in ("first", "again"))
    assert first == hashes(tmp_path / "first") and compare(first, again) == []
    assert {f"{AUGMENTED}/{file}" for file in TWO_STAGES} <= first.keys()
    assert {
        f"{RECIPE}-seed3/{name}/model.safetensors" for name in ("teacher", "textcnn", "bert")
    } <= first.keys()
    assert any(name.startswith(".cache/tokens.bin/") for name in first)
    other = record(tmp_path / "other", (AUGMENTED,), seed=1)
    assert set(compare(first, other)) >= {f"differs  {AUGMENTED}/{file}" for file in TWO_STAGES}

    # What costs time or memory, and what keys and columns are called, is no part of it.
    results = tmp_path / "first/runs" / AUGMENTED / "results.json"
    scores = json.loads(results.read_text())
    renamed = {f"new {model}": {"score": of} | {"latency_ms": 1.0} for model, of in scores.items()}
    results.write_text(json.dumps(renamed))
    assert hashes(tmp_path / "first") == first
    renamed["new teacher"]["score"]["metric"] += 1e-6
    results.write_text(json.dumps(renamed))
    assert compare(first, hashes(tmp_path / "first")) == [f"differs  {AUGMENTED}/results.json"]


def test_every_command_preset_and_recipe_is_run():
    lines = [*MAKE.values(), *SHOW.values(), *LATER.values()]
    others = {"serve", "label", "submission"}  # does not end; asks a server; needs runs with test rows
    assert {line.split()[0] for line in lines} == COMMANDS.keys() - others
    used = {word for line in lines for word in line.split()}
    assert {f"name={path.stem}" for path in RECIPES.glob("*.yaml")} <= used
    assert {f"preset={path.stem}" for path in PRESETS.glob("*.yaml")} <= used | {
        "preset=small"
    }  # the default


def test_what_differs_is_missing_or_new_is_told(tmp_path, monkeypatch, capsys):
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text('{"same": "1", "changed": "2", "gone": "3"}')
    after.write_text('{"same": "1", "changed": "9", "come": "3"}')
    for given, status, words in (
        ((before, before), 0, "the same\n"),
        ((before, after), 1, "differs  changed\nmissing  gone\nnew      come\n"),
    ):
        monkeypatch.setattr("sys.argv", ["same_weights", "compare", *map(str, given)])
        assert main() == status and capsys.readouterr().out == words
