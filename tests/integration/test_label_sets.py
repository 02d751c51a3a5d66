"""A task with several labels a row: made, reported, asked, exported, and answered by stock transformers."""

import csv
import json

import pytest

from tests.conftest import sentences

NAMES = ("joy", "anger", "calm")
GIVEN = ("task=feelings", "data=feelings", "student=teacher-layers", "augment=true", "augmentation.variants=2",
         "augmentation.vectors=none", "masked_lm.tokens=600", "masked_lm.epochs=1", "masked_lm.max_length=32")  # fmt: skip


def labels_of(text: str) -> list[str]:
    """A label that a word gives away, another that another does, and none of them."""
    words = set(text.split())
    joy, anger = words & {"good", "warm", "great", "laugh"}, words & {"movie", "film", "story"}
    return [*(["joy"] if joy else []), *(["anger"] if anger else []), *([] if joy or anger else ["calm"])]


@pytest.fixture(scope="module")
def feelings(place):
    directory = place.path / "feelings"
    directory.mkdir()
    for name, count, seed in (("train", 48, 1), ("dev", 16, 2), ("test", 20, 3)):
        lines = [
            json.dumps({"text": text, "label": labels_of(text)}, ensure_ascii=False)
            for text in dict.fromkeys(text for text, _ in sentences(count, seed))
        ]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    status, output = place.run("task-distill", *GIVEN, "run=feelings", "reuse=false")
    assert status == 0 and "several labels a row: 3 labels" in output, output
    return place.path / "runs" / "feelings"


def test_the_threshold_that_dev_chose_is_in_the_students_config(feelings):
    config = json.loads((feelings / "prediction/model/config.json").read_text())
    assert 0.05 <= config["label_threshold"] <= 0.95
    assert config["problem_type"] == "multi_label_classification"


def test_variants_keep_the_labels_of_their_row(feelings):
    from data_aug.variants import read_shard

    _, _, labels, rows, variants = read_shard(feelings / "augment/model/rows-00000000.arrow")
    original = {
        row: label for label, row, variant in zip(labels, rows, variants, strict=True) if variant == 0
    }
    assert any(variants) and len(set(original.values())) > 1
    assert all(label == original[row] for label, row in zip(labels, rows, strict=True))


def test_reported_predicted_and_exported_answers_are_those_of_stock_transformers(place, feelings):
    results = json.loads((feelings / "results.json").read_text())
    metrics = {"micro_f1", "macro_f1", "mean_average_precision", "subset_accuracy"}
    assert set(results["distilled"]["scores"]) == metrics and len(results["distilled"]["classes"]) == 3
    for command in ("report", "evaluate"):
        status, output = place.run(command, "run=feelings", tiny=False)
        assert status == 0, output
    table = feelings / "test_predictions.csv"
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    status, output = place.run("predict", "run=feelings", f"file={table}", "to=felt.jsonl", tiny=False)
    assert status == 0, output
    felt = [json.loads(line) for line in (place.path / "felt.jsonl").read_text().splitlines()]
    assert [json.loads(row["distilled"]) for row in rows] == [row["predicted_label"] for row in felt]
    status, output = place.run("export", "run=feelings", "to=feelings-export", tiny=False)
    assert status == 0 and "ONNX int8" in output, output

    from transformers import pipeline

    classify = pipeline("text-classification", model=str(place.path / "feelings-export"), top_k=None)
    threshold = classify.model.config.label_threshold
    for row, mine in zip(rows, felt, strict=True):
        stock = {found["label"]: found["score"] for found in classify([row["text"]], truncation=True)[0]}
        assert set(stock) == set(NAMES)
        held = {name: score for name, score in stock.items() if score >= threshold}
        assert held == pytest.approx(
            dict(zip(mine["predicted_label"], mine["predicted_score"], strict=True)), abs=1e-3
        )


@pytest.mark.parametrize(
    "change, words",
    [
        (("metric=pearson",), "is not a finite number"),
        (("label_column=", "label_columns=joy"), "label_columns: 'joy' is one column"),
        (("labels=joy,anger",), "label 'calm' is not one of labels, which are joy, anger"),
        (
            ("label_separator=;", "metric=accuracy"),
            "metric: 'accuracy' does not fit this task; choose one of micro_f1",
        ),
        (("positive_label=joy", "metric=micro_f1"), "positive_label: 'joy': no label is the positive one"),
    ],
)
def test_mistakes_are_told_in_a_line(place, feelings, change, words):
    status, output = place.run("task-distill", *GIVEN, "run=wrong-feelings", *change)
    assert status == 2 and words in output and "Traceback" not in output, output
