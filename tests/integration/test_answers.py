"""A teacher that is a table of answers: an encoder is tuned on them, and the student learns them; also without gold labels."""

import csv
import json
import shutil

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.deploy.classifier import Classifier
from pipeline.report.pareto import write_pareto
from pipeline.report.run_record import read_run_record
from pipeline.report.tables import seeds_table
from stages.tasks.task import load_task
from stages.tasks.types import TaskSource
from stages.teaching.given_answers import LOGITS_FILE
from tests.conftest import sentences

ALONE = ("teacher=alone.jsonl", "answers.encoder=teacher", "task=alone", "data=", "label_column=", "student=teacher-layers",
         "augment=true", "augmentation.variants=2", "augmentation.vectors=none", "masked_lm.tokens=600",
         "masked_lm.epochs=1", "masked_lm.max_length=32", "answers.leave_out=0.2", "reuse=false")  # fmt: skip


@pytest.fixture(scope="module")
def alone(place):
    """A run without any gold label."""
    lines = []
    for text, label in sentences(70, 7):
        fresh = 0.9 if label else 0.2
        lines.append(json.dumps({"text": text, "probabilities": {"fresh": fresh, "rotten": 1 - fresh}}))
    (place.path / "alone.jsonl").write_text("\n".join(lines) + "\n")
    status, output = place.run("task-distill", *ALONE, "run=alone")
    assert status == 0, output
    return place.path / "runs/alone", output


def test_without_gold_labels_nothing_says_accuracy(place, alone):
    run, output = alone
    said = [output]
    for command in ("evaluate", "report"):
        said.append(place.run(command, "run=alone", tiny=False)[1])
    status, output = place.run("export", "run=alone", "to=alone-export", "onnx=false", tiny=False)
    assert status == 0, output
    said += [path.read_text() for path in (run / "report.html", place.path / "alone-export/README.md")]
    results = json.loads((run / "results.json").read_text())
    assert set(results["distilled"]["scores"]) == {"agreement", "f1"}
    for text in said:
        assert "accuracy" not in text.lower() and "gold" not in text.replace("--gold", ""), text
    record = read_run_record(run)
    for table in (seeds_table([run]), write_pareto([record], run / "front")):
        assert "\nencoder " in table and "retained of encoder" in table and "teacher" not in table, table
    assert "the numbers are agreement with the teacher" in said[0] and "agreement with the teacher" in said[3]


def test_the_encoder_answers_for_variants_and_for_the_noisiest_rows(alone):
    run, output = alone
    results = json.loads((run / "results.json").read_text())
    info = json.loads((run / "evaluate/finished.json").read_text())["scores"]
    assert info["gold"] is False and 0.6 < info["answers"]["entropy"] < 0.7, "bits of 0.9 and of 0.2"
    assert len(results["teacher"]["differ_most"]) == 10
    with open(run / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == info["answers"]["rows"]
    distances = [float(row["distance"]) for row in rows]
    assert distances == sorted(distances, reverse=True)
    worst = results["teacher"]["differ_most"][0]
    assert worst["texts"] == [rows[0]["text"]] and sorted(np.round(worst["teacher"], 3)) in (
        [0.1, 0.9],
        [0.2, 0.8],
    )
    left_out = round(0.2 * len(rows))
    assert f"{left_out} of {len(rows)} answers are left out: there the encoder answers" in output


def test_killed_while_encoder_and_student_learn_the_answers_it_ends_in_the_same_weights(place, alone):
    run, _ = alone
    table = (run / "answers.csv").read_text()
    shutil.rmtree(run / "evaluate")
    (run / "answers.csv").unlink()
    place.resumes("alone", ("teacher", "prediction"), *ALONE)
    assert (run / "answers.csv").read_text() == table


def test_each_answer_is_judged_by_an_encoder_that_has_not_seen_it(place, alone):
    given = [option for option in ALONE if not option.startswith(("augment", "masked_lm", "answers.leave"))]
    status, output = place.run(
        "task-distill", *given, "run=judged", "answers.folds=2", "answers.weight=agreement", "answers.leave_out=0.1",
    )  # fmt: skip
    assert status == 0 and output.count("answers are mixed with the encoder's") == 2, "by encoder and student"
    run = place.path / "runs/judged"
    entries = [
        json.loads((run / name / "stage.json").read_text())["inputs"]["task"]
        for name in ("teacher", "fold-1", "fold-2")
    ]
    whole, *without = (load_task(TaskSource.of(entry)).splits["train"] for entry in entries)
    judged = np.load(run / "out_of_fold/model" / LOGITS_FILE)
    assert len(judged) == len(whole) and not set(whole.text_a) - {t for of in without for t in of.text_a}
    for number, split in enumerate(without, start=1):
        unseen = [i for i, text in enumerate(whole.text_a) if text not in set(split.text_a)]
        assert len(unseen) == len(whole) - len(split) > len(whole) / 3
        encoder = Classifier.of_directory(run / f"fold-{number}/model")
        encoder.max_length = 32
        said = encoder([[whole.text_a[i]] for i in unseen])
        assert np.allclose(softmax(judged[unseen], -1), said, atol=1e-4)
    note = place.run("evaluate", "run=judged", tiny=False)[1]
    assert "judged by 2 encoders tuned without them" in " ".join(note.split())
    scores = [json.dumps({"text": text, "label": i / 7}) for i, (text, _) in enumerate(sentences(70, 7))]
    (place.path / "scored.jsonl").write_text("\n".join(scores))
    status, output = place.run(
        "task-distill", *given, "run=scored", "teacher=scored.jsonl", "answers.weight=agreement"
    )
    assert status == 2 and "answers.weight: 'agreement' weighs answers by their labels" in output, output


def test_gold_rows_stay_for_dev_and_a_recipe_refuses_answers(place):
    with open(place.path / "data/train.csv", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    lines = [json.dumps({"text": text, "label": "fresh"}) for text in texts[1:]]
    (place.path / "given.jsonl").write_text("\n".join(lines) + "\n")
    given = ("teacher=given.jsonl", "answers.encoder=teacher", "student=teacher-layers")
    status, output = place.run("task-distill", *given, "run=given")
    assert status == 2 and "Traceback" not in output, output
    assert (
        f"1 of {len(texts)} rows of train have no answer, such as {texts[0]!r}; ask for the others" in output
    )
    status, output = place.run("task-distill", *given, "run=given", "unfit_rows=leave_out")
    assert status == 0 and f"{len(texts) - 1} of {len(texts)} rows of train have one" in output, output
    assert "accuracy on dev" in output and "encoder" in output
    status, output = place.run("recipe", "name=framework", "teacher=given.jsonl", "data=", tiny=False)
    assert status == 2 and "is a file, and a recipe's students learn from a model" in output, output
