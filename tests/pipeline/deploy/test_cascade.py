"""An export that promises agreement above a confidence, and what predict does with the rows below."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import commands as cli
from pipeline.deploy.cascade import forget_promise
from pipeline.deploy.classifier import Classifier
from pipeline.report.run_record import read_run_record
from tests.conftest import sentences
from tests.pipeline.deploy.test_export import make_finished

LABELS = ["good", "bad"]
TEXTS = list(dict.fromkeys(text for text, _ in sentences(260)))


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """A run whose student has its teacher's label where it is sure, and by chance elsewhere; gold is right everywhere."""
    path = tmp_path_factory.mktemp("cascade")
    run = make_finished(path / "runs" / "one", LABELS)
    student = Classifier.of_run(read_run_record(run), "distilled")
    values = student([[text] for text in TEXTS])
    said = [LABELS[i] for i in values.argmax(1)]
    sure = values.max(1) >= np.median(values.max(1))
    with open(run / "test_predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "teacher", "distilled"])
        for i, text in enumerate(TEXTS):
            teacher = said[i] if sure[i] or i % 2 else LABELS[1 - LABELS.index(said[i])]
            writer.writerow([text, said[i], teacher, said[i]])
    return path


@pytest.fixture
def place(there, monkeypatch, capsys) -> Path:
    monkeypatch.chdir(there)
    if not Path("export").exists():
        assert cli.main(["export", "run=one", "to=export", "onnx=false", "promise=0.9"]) == 0
        Path("said").write_text(capsys.readouterr().out)
    return there


def change(run: str, **values: object) -> None:
    """Change what `evaluate` reported of a run."""
    path = Path("runs", run, "evaluate", "finished.json")
    finished = json.loads(path.read_text())
    path.write_text(json.dumps(finished | {"scores": finished["scores"] | values}))


def test_the_export_keeps_the_threshold_and_says_what_it_promises(place):
    config = json.loads(Path("export/config.json").read_text())
    found = config["promise"]["found"]
    assert config["confidence_threshold"] == found["confidence"] and 0.45 <= found["share"] <= 0.6
    assert found["lower"] >= 0.9 and found["rows"] == len(TEXTS)
    said, card = Path("said").read_text(), Path("export/README.md").read_text()
    assert "the student gives the teacher's label to at least 90% of the rows (with 95% certainty)" in said
    assert "## When to ask the teacher" in card and f"{found['confidence']:.4f}" in card

    from transformers import pipeline

    assert pipeline("text-classification", model="export")(TEXTS[0])[0]["label"] in LABELS


def test_rows_below_are_marked_or_answered_by_the_teacher(place, capsys):
    Path("in.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    threshold = json.loads(Path("export/config.json").read_text())["confidence_threshold"]
    tables = {}
    for name, more in (("marked", ()), ("asked", ("ask_teacher=true", "run=one"))):
        assert cli.main(["predict", "model=export", "file=in.jsonl", f"to={name}.jsonl", *more]) == 0
        tables[name] = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
    assert {row["by"] for row in tables["marked"]} == {"student", "ask"}
    teacher = Classifier.of_run(read_run_record(Path("runs/one")), "teacher")
    for marked, asked in zip(tables["marked"], tables["asked"], strict=True):
        assert (marked["by"] == "student") == (marked["score"] >= round(threshold, 4))
        if marked["by"] == "student":
            assert asked == marked
        else:
            label, score = teacher.predict([[marked["text"]]])[0]
            assert (asked["by"], asked["label"]) == ("teacher", label)
            assert asked["score"] == pytest.approx(float(score), abs=2e-4)
    capsys.readouterr()
    unsure = next(row["text"] for row in tables["marked"] if row["by"] == "ask")
    assert cli.main(["predict", "model=export", f"text={unsure}"]) == 0
    assert capsys.readouterr().out.split("\t")[2] == "ask"


def test_a_promise_about_gold_labels(place):
    assert cli.main(["export", "run=one", "to=gold", "onnx=false", "promise=0.95", "agree_with=gold"]) == 0
    found = json.loads(Path("gold/config.json").read_text())["promise"]["found"]
    assert found["share"] == found["agreement"] == 1.0


@pytest.mark.parametrize(
    "reported, arguments, words",
    [
        ({}, ["promise=0.99"], "promise: 0.99: no confidence keeps it: of 260 held-out rows"),
        ({"split": "dev"}, ["promise=0.9"], "its checkpoint was chosen on dev: a promise needs rows on which nothing"),
        ({"gold": False}, ["promise=0.9", "agree_with=gold"], "agree_with: run one has no gold labels"),
        ({"kind": "words"}, ["promise=0.9"], "does not give one label a row"),
        ({"kind": "label sets"}, ["promise=0.9"], "does not give one label a row"),
        ({"answers": {"rows": 9, "entropy": 0.0, "differ": 0.1, "distance": 0.1}}, ["promise=0.9"], "give gold"),
        ({}, ["promise=1.5"], "promise"),
    ],
)  # fmt: skip
def test_what_cannot_be_promised_is_refused_in_a_line(place, capsys, reported, arguments, words):
    path = Path("runs/one/evaluate/finished.json")
    before = path.read_text()
    change("one", **reported)
    try:
        assert cli.main(["export", "run=one", "to=refused", "onnx=false", *arguments]) == 2
    finally:
        path.write_text(before)
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not Path("refused").exists(), said


def test_a_teacher_cannot_be_asked_without_a_threshold(place, capsys):
    assert cli.main(["export", "run=one", "to=plain", "onnx=false"]) == 0
    for given, words in (
        (["model=plain"], "ask_teacher: the model has no threshold; export it with promise=0.95"),
        ([], "ask_teacher: the student of a run has no threshold; give model=DIR"),
    ):
        assert cli.main(["predict", *given, "run=one", "ask_teacher=true", "text=a good film"]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["predict", "model=plain", "text=a good film"]) == 0
    assert len(capsys.readouterr().out.split("\t")) == 3


def test_a_promise_is_not_inherited(place):
    """By students of a run that began with an export that promises: they are exported without it."""
    copy = Path(shutil.copytree("export", "begun-from-it"))
    assert Classifier.of_directory(copy).threshold is not None
    forget_promise(copy)
    assert Classifier.of_directory(copy).threshold is None
    assert "promise" not in json.loads((copy / "config.json").read_text())
    run = read_run_record(Path("runs/one"))
    assert Classifier.of_run(run, "distilled").threshold is None
