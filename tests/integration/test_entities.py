"""Entities through both stages: made, killed, augmented, reported, asked, exported."""

import csv
import json

import pytest

from tests.conftest import sentences

GIVEN = ("task=names", "data=names", "student=teacher-layers", "augment=true", "augmentation.variants=3",
         "augmentation.vectors=none", "augmentation.entities=swap", "masked_lm.tokens=600", "masked_lm.epochs=1", "masked_lm.max_length=32",
         "text_columns=", "label_column=", "tuning.learning_rate=1e-2", "tuning.epochs=6")  # fmt: skip
KINDS = {"film": "work", "movie": "work", "actor": "person"}


@pytest.fixture(scope="module")
def names(place):
    """Sentences in which some words are entities."""
    directory = place.path / "names"
    directory.mkdir()
    for name, count, seed in (("train", 60, 1), ("dev", 20, 2), ("test", 20, 3)):
        lines = []
        for text in dict.fromkeys(text for text, _ in sentences(count, seed)):
            for word in text.split():
                lines.append(f"{word}\t{f'B-{KINDS[word]}' if word in KINDS else 'O'}")
            lines.append("")
        (directory / f"{name}.conll").write_text("\n".join(lines))
    status, output = place.run("task-distill", *GIVEN, "run=entities", "reuse=false")
    assert status == 0, output
    return place.path / "runs" / "entities"


def test_killed_while_it_records_logits_of_words_it_ends_in_the_same_weights(place, names):
    place.resumes("entities", ("intermediate",), *GIVEN, "reuse=false")


def test_variants_swap_entities_within_their_kind_and_keep_labels(names):
    from data_aug.variants import read_shard

    texts, _, labels, rows, variants = read_shard(names / "augment/model/rows-00000000.arrow")
    original, swapped = {}, set()
    for text, label, row in zip(texts, labels, rows, strict=True):
        original.setdefault(row, (text.split(" "), label))
        words, of = original[row]
        assert label == of and len(text.split(" ")) == len(label)
        pairs = [(a, b) for a, b in zip(words, text.split(" "), strict=True) if a in KINDS]
        assert all(KINDS[a] == KINDS.get(b) for a, b in pairs)
        swapped |= {(a, b) for a, b in pairs if a != b}
    assert any(variants) and swapped == {("film", "movie"), ("movie", "film")}


def test_reported_predicted_and_exported_entities_are_those_of_stock_transformers(place, names):
    results = json.loads((names / "results.json").read_text())
    assert set(results["teacher"]["scores"]) == {"entity_f1", "exact_match", "accuracy"}
    assert results["teacher"]["metric"] > 0.6 and len(results["distilled"]["classes"]) == 2
    for command in ("report", "evaluate"):
        status, output = place.run(command, "run=entities", tiny=False)
        assert status == 0, output
    table = names / "test_predictions.csv"
    status, output = place.run("export", "run=entities", "to=entities-export", tiny=False)
    assert status == 0 and "ONNX int8" in output, output
    status, output = place.run(
        "predict", "model=entities-export", f"file={table}", "to=named.jsonl", tiny=False
    )
    assert status == 0, output
    mine = [json.loads(line) for line in (place.path / "named.jsonl").read_text().splitlines()]

    from transformers import pipeline

    tag = pipeline(
        "token-classification", model=str(place.path / "entities-export"), aggregation_strategy="simple"
    )
    with open(table, newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    for text, row in zip(texts, mine, strict=True):
        stock = tag(text)
        assert [{"label": e["entity_group"], "start": e["start"], "end": e["end"]} for e in stock] == row[
            "predicted_label"
        ]
    answer = place.served("entities", texts[0])["student"]
    assert "".join(piece for piece, _ in answer["marked"]) == texts[0]
    stock = [(texts[0][e["start"] : e["end"]], e["entity_group"]) for e in tag(texts[0])]
    assert [(piece, label) for piece, label in answer["marked"] if label] == stock
    status, output = place.run("predict", "run=entities", f"text={texts[0]}", tiny=False)
    assert status == 0 and all(len(line.split("\t")) == 5 for line in output.split("\n") if line), output
    status, output = place.run(
        "predict", "model=entities-export", "text=a film", "text_b=an actor", tiny=False
    )
    assert status == 2 and "the number of texts is 2; give one text" in output, output
