"""Scores in their own units, through both stages; and a student that begins as another run's."""

import csv
import json

import pytest

from tests.conftest import sentences

GIVEN = ("task=prices", "data=prices", "label_column=price", "student=teacher-layers", "baselines=true",
         "finetuning.epochs=1", "tuning.learning_rate=1e-2", "tuning.epochs=8")  # fmt: skip


@pytest.fixture(scope="module")
def prices(place):
    """Prices of 200,000 on average, which a word gives away."""
    directory = place.path / "prices"
    directory.mkdir()
    for name, count, seed in (("train", 60, 1), ("dev", 20, 2), ("test", 20, 3)):
        rows = [
            f"{text},{200_000.5 + 50_000 * (2 * label - 1) + len(text)}"
            for text, label in sentences(count, seed)
        ]
        (directory / f"{name}.csv").write_text("\n".join(["text,price", *dict.fromkeys(rows)]) + "\n")
    status, output = place.run("task-distill", *GIVEN, "run=prices")
    assert status == 0 and "scores in train: mean 2" in output, output
    return place.path / "runs" / "prices"


def test_the_teacher_learns_them_and_every_model_answers_in_their_units(place, prices):
    results = json.loads((prices / "results.json").read_text())
    assert set(results["teacher"]["scores"]) == {"pearson", "spearman", "mae", "rmse"}
    assert results["teacher"]["scores"]["pearson"] > 0.5
    for name in ("teacher", "distilled", "finetuned", "finetuned_layers"):
        scores = results[name]["scores"]
        assert 0 < scores["mae"] <= scores["rmse"] < 150_000, (name, scores)  # of raw scores: 200,000
    assert results["teacher"]["scores"]["mae"] < 45_000
    with open(prices / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["distilled"] for row in rows}) > len(rows) / 2, (
        "of a student whose pooler is saturated: one"
    )
    errors = [abs(float(row["label"]) - float(row["distilled"])) for row in rows]
    assert sum(errors) / len(errors) == pytest.approx(results["distilled"]["scores"]["mae"], rel=1e-5)
    shown = results["distilled"]["differ_most"][0]
    assert [float(rows[shown["row"]]["distilled"])] == pytest.approx(shown["student"], rel=1e-5)
    status, output = place.run("export", "run=prices", "to=prices-export", tiny=False)
    assert status == 0 and "ONNX int8" in output, output

    from transformers import pipeline

    score = pipeline("text-classification", model=str(place.path / "prices-export"))
    for row in rows[:5]:
        assert score(row["text"])[0]["score"] == pytest.approx(float(row["distilled"]), rel=1e-4)
    status, output = place.run("predict", "run=prices", f"text={rows[0]['text']}", tiny=False)
    assert status == 0 and float(output.split("\t")[0]) == pytest.approx(
        float(rows[0]["distilled"]), rel=1e-4
    )
    status, output = place.run("report", "run=prices", tiny=False)
    assert status == 0, output


def test_killed_in_the_prediction_stage_it_ends_in_the_same_weights(place, prices):
    place.resumes("prices", ("prediction",), *GIVEN, "reuse=false")


def test_a_task_begins_from_the_student_of_another(place, prices):
    given = ("student=run:prices", "run=after-prices")
    status, output = place.run("task-distill", *given)
    assert status == 0 and "its head is of another task (classifier.bias (1,) instead of (2,)" in output, (
        output
    )
    spec = json.loads((place.path / "runs/after-prices/intermediate/stage.json").read_text())
    assert spec["inputs"]["student"]["path"] == str((prices / "prediction/model").resolve())
    status, output = place.run("task-distill", *given)
    assert status == 0 and "pending" not in output, output  # finished: made from the same student


@pytest.mark.parametrize(
    "name, words",
    [
        ("run:none", "there is no run 'none' under runs/; finished are "),
        ("run:../x", "letters, digits"),
        ("run:no-student-yet", "run 'no-student-yet' has no student yet; run its own command again"),
    ],
)
def test_a_run_without_a_student_is_told_in_a_line(place, prices, name, words):
    (place.path / "runs/no-student-yet").mkdir(exist_ok=True)
    (place.path / "runs/no-student-yet/options.json").write_text("{}")
    status, output = place.run("task-distill", f"student={name}", "run=wrong")
    assert status == 2 and words in output and output.count("\n") == 1, output
