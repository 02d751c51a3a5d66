"""The stage `evaluate` logs its progress where there is no terminal, and resumes."""

import json
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from stages import evaluate
from stages.evaluation import costs
from stages.tasks.task import find_task
from stages.training import progress
from stages.training.options import Job
from stages.training.stage import Stage
from tests.conftest import make_task, make_tokenizer, tiny_config


@pytest.fixture
def stage(tmp_path, world) -> Stage:
    """An evaluation of two models on the rows of dev."""
    inputs = {"task": find_task("tiny", str(make_task(tmp_path / "data")), ("text",), "label").entry}
    for name in ("teacher", "distilled"):
        config = tiny_config(layers=1)
        config.id2label, config.label2id = {0: "fresh", 1: "rotten"}, {"fresh": 0, "rotten": 1}
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / name)
        make_tokenizer(tmp_path / name)
        inputs[name] = {"path": str(tmp_path / name)}
    names = ["teacher", "distilled"]
    options = {"student": "distilled", "models": names, "max_length": dict.fromkeys(names, 32)}
    directory = tmp_path / "runs" / "r" / "evaluate"
    directory.mkdir(parents=True)
    return Stage(
        "evaluate", "evaluate", directory, options, inputs, "", Job(precision="fp32"), torch.device("cpu")
    )


def test_predicting_and_timing_tell_their_rows(stage, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 0)
    monkeypatch.setattr(progress, "NEXT_LINE", 0)
    lines: list[str] = []
    monkeypatch.setattr(stage, "log", lines.append)
    evaluate.run(stage)
    rows = len(stage.task().splits["dev"])
    predicted = [line for line in lines if line.startswith("row ")]
    assert predicted == [f"row {n * rows} of {2 * rows}, 0.0 minutes left" for n in (1, 2)]
    timed = [line for line in lines if line.startswith("timing: ")]
    passes = 2 * (
        costs.WARM + rows + costs.WARM + costs.BATCHES
    )  # of two models, in each of up to three attempts
    assert len(timed) in (passes, 2 * passes, 3 * passes) and "rows, " in timed[-1]
    results = json.loads((stage.directory / "model" / "results.json").read_text())
    assert [*results] == ["teacher", "distilled"]


def test_an_evaluation_that_was_stopped_goes_on_with_the_next_model(stage, monkeypatch):
    whole = {name: e.logits["dev"] for name, e in evaluate.examine(stage, stage.task(), "dev").items()}
    shutil.rmtree(stage.directory / "logits" / "distilled")
    monkeypatch.setattr(evaluate, "predict", Mock(side_effect=evaluate.predict))
    again = evaluate.examine(stage, stage.task(), "dev")
    assert evaluate.predict.call_count == 1
    assert all(np.array_equal(again[name].logits["dev"], logits) for name, logits in whole.items())
    evaluate.run(stage)
    assert evaluate.predict.call_count == 1 and not (stage.directory / "logits").exists()
