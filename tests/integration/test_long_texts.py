"""Texts longer than the stages read: windows through all stages, a kill, predict, serve, export, ONNX and the card's loop."""

import csv
import json

import pytest

from tests.conftest import sentences

GIVEN = ("task=long", "data=long", "windows=mean", "student=teacher-layers",
         *(f"{stage}.max_length=16" for stage in ("tuning", "intermediate", "prediction")),
         *(f"{stage}.learning_rate=0.01" for stage in ("tuning", "intermediate", "prediction")))  # fmt: skip


@pytest.fixture(scope="module")
def long(place):
    """A finished run on texts of three sentences, of which the last gives the label away."""
    directory = place.path / "long"
    directory.mkdir()
    for name, count, seed in (("train", 40, 1), ("dev", 12, 2), ("test", 12, 3)):
        with open(directory / f"{name}.csv", "w", newline="") as file:
            before = ["the film and a story of the plot was the scene", "it is of the movie and the actor"]
            rows = [(". ".join([*before, f"{text} {i}"]), "fresh" if label else "rotten")
                    for i, (text, label) in enumerate(sentences(count, seed))]  # fmt: skip
            csv.writer(file).writerows([("text", "label"), *rows])
    status, output = place.run("task-distill", *GIVEN, "run=long", "reuse=false")
    assert status == 0, output
    assert "40 texts in windows, " in output and "0.0% of rows truncated" in output, output
    return place.path / "runs/long"


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_in_the_same_weights(place, long):
    place.resumes("long", ("intermediate",), *GIVEN, "reuse=false")


def test_predict_serve_and_the_loop_of_the_card_answer_as_evaluated(place, long, capsys):
    with open(long / "test_predictions.csv", newline="") as file:
        table = list(csv.DictReader(file))
    status, output = place.run("export", "run=long", "to=long-export", tiny=False)
    assert status == 0 and "ONNX int8" in output, output
    for model in ("run=long", "model=long-export"):
        status, output = place.run(
            "predict", model, f"file={long / 'test_predictions.csv'}", "to=long.csv", tiny=False
        )
        assert status == 0, output
        with open(place.path / "long.csv", newline="") as file:
            found = list(csv.DictReader(file))
        assert [row["predicted_label"] for row in found] == [row["distilled"] for row in table]
    card = (place.path / "long-export/README.md").read_text()
    assert "longer texts are read in windows" in card and "the mean of the logits of its windows" in card
    code = card.split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/this/directory", str(place.path / "long-export"))
    whole = []
    for row in found[:4]:
        exec(code.replace('"the text"', repr(row["text"])), {})
        label, score = capsys.readouterr().out.split()
        assert (label, float(score)) == (
            row["predicted_label"],
            pytest.approx(float(row["predicted_score"]), abs=2e-4),
        )
        served = place.served("long", row["text"])["student"]
        assert max(served["values"]) == pytest.approx(float(score), abs=1e-4) and served["said"] == label
        whole.append(float(score))

    from transformers import pipeline

    stock = pipeline("text-classification", model=str(place.path / "long-export"))
    for row, score in zip(found, whole, strict=False):
        first = " ".join(row["text"].replace(".", " .").split(" ")[:14])  # tokens beside the two special ones
        assert (one := stock(row["text"], truncation=True)) == stock(first) and one[0][
            "score"
        ] != pytest.approx(score)
    assert json.loads((place.path / "long-export/config.json").read_text())["window_pooling"] == "mean"


def test_a_mistake_is_told_in_a_line(place):
    status, output = place.run("task-distill", *GIVEN, "run=long-wrong", "windows=sum")
    assert status == 2 and "windows" in output and "mean" in output and "Traceback" not in output, output
