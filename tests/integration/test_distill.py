"""`distill`, from a script as users write them: no `if __name__ == "__main__"`, and from another thread."""

import json
import os
import subprocess
import sys

import pytest

import pipeline
from checkpoints.errors import UserError
from pipeline.config.schema import arguments
from pipeline.config.two_stage import StageSpec
from pipeline.plan import Planned
from pipeline.run import REFUSAL, StageFailed, StageRefused, _failure
from tests.integration.conftest import ROOT

SCRIPT = """
import csv, json, os, threading, time
from pipeline import distill, general_distill

options = json.load(open("options.json"))
rows = {split: list(csv.DictReader(open(f"data/{split}.csv"))) for split in ("train", "dev")}
given = dict(task="tiny", data=rows, text_columns="text", label_column="label", run="scripted", options=options)
thread = threading.Thread(target=distill, kwargs=given)
thread.start()
thread.join()
start = time.monotonic()
result = distill(**given)
os.chdir("data")  # what was returned does not depend on the working directory
model, tokenizer = result.student()
answer = {"seconds": time.monotonic() - start, "metrics": result.metrics, "type": type(model).__name__}
answer["weights"] = sum(p.double().sum().item() for p in model.parameters())
answer["path"], answer["tokens"] = str(result.path), tokenizer("a fine film")["input_ids"]
os.chdir("..")
for wrong in {"general.epochs": 0}, {"run": "refused-script", "prediction.max_length": 1000}:
    try:
        distill(**given | {"options": options | wrong})
    except ValueError as error:
        answer.setdefault("refused", []).append(str(error))
general = {name: value for name, value in options.items() if name not in ("corpus", "text_columns")}
answer["general"] = str(general_distill(options["corpus"], run="scripted-general", options=general))
json.dump(answer, open("answer.json", "w"))
"""


@pytest.mark.slow
def test_a_script_distils_twice_and_is_refused_as_the_command_is(place):
    options = {name: value for name, value in arguments(place.given).items() if name not in ("task", "data")}
    options |= {"text_columns": ["text"], "seed": 7}
    (place.path / "options.json").write_text(json.dumps(options))
    (place.path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=place.path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("run scripted\n") == 2 and done.stdout.count("[teacher] starts") == 1, (
        done.stdout
    )
    answer = json.loads((place.path / "answer.json").read_text())
    assert answer["metrics"] == json.loads((place.path / "runs/scripted/results.json").read_text())
    assert answer["metrics"].keys() == {"teacher", "distilled"} and answer["path"] == str(
        place.path / "runs/scripted"
    )

    from transformers import AutoModel, AutoModelForSequenceClassification

    AutoModel.from_pretrained(place.path / answer["general"])  # that of the first run, reused
    saved = AutoModelForSequenceClassification.from_pretrained(place.path / "runs/scripted/prediction/model")
    assert answer["weights"] == sum(p.double().sum().item() for p in saved.parameters())
    assert answer["type"] == type(saved).__name__ and len(answer["tokens"]) == 5
    option, stage = answer["refused"]
    assert option == "general.epochs=0 must be greater than 0"
    assert stage.startswith("check: ") and "1000" in stage and f"error: {stage}" in done.stderr


def test_what_is_refused_before_any_work_is_a_value_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, words in (
        ({"task": "mrcp"}, "did you mean mrpc"),
        ({"task": "mrpc", "options": {"genral.epochs": 1}}, "did you mean general.epochs"),
        ({"task": "mrpc", "options": {"seeds": [1, 2]}}, "a call makes one run"),
        ({"task": "mrpc", "options": ["general.epochs=1"]}, "is not a dict; give options such as"),
        ({"task": "mrpc", "options": {"teacher": tmp_path / "none"}}, "none"),
    ):
        with pytest.raises(ValueError, match=words):
            pipeline.distill(**given)
    assert not list(tmp_path.iterdir())


def test_how_a_stage_ended_is_an_exception(tmp_path):
    step = Planned(StageSpec("general", "general", {}), tmp_path, "", "run", tmp_path)
    assert _failure(step, 130).interrupted and "to resume" in str(_failure(step, 130))
    killed = _failure(step, 137)
    assert isinstance(killed, StageFailed) and "job.micro_batch=auto" in str(killed)
    (tmp_path / REFUSAL).write_text("no rows")
    refused = _failure(step, 2)
    assert isinstance(refused, StageRefused) and isinstance(refused, UserError)
    assert str(refused) == "general: no rows"
