"""The evaluation tells how far it is, where no terminal is."""

import json

import torch
from transformers import AutoModelForSequenceClassification

from stages import evaluate
from stages.evaluation import costs
from stages.tasks.task import find_task
from stages.training import progress
from stages.training.options import Job
from stages.training.stage import Stage
from tests.conftest import make_task, make_tokenizer, tiny_config


def test_predicting_and_timing_tell_their_rows(tmp_path, world, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 0)
    monkeypatch.setattr(progress, "NEXT_LINE", 0)
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
    lines: list[str] = []
    stage = Stage(
        "evaluate", "evaluate", directory, options, inputs, "", Job(precision="fp32"), torch.device("cpu")
    )
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
    assert set(json.loads((directory / "model" / "results.json").read_text())) == set(names)
