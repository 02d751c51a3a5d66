"""Rankings through the command: a stock cross-encoder, and CERBERUS's body with heads; killed, reported, asked, exported."""

import csv
import json
import random
import re

import pytest

from tests.conftest import GOOD, WORDS
from tests.stages.tasks.test_ranking import table

OTHERS = [word for word in WORDS if word not in GOOD]
LOSSES = ["gold_labels", {"soft_labels": {"temperature": 2.0}}]
HEADS = {"method": {"many_heads": {"heads": 2, "layers": 1}}, "losses": [{"each_head": {"losses": LOSSES}}]}
RECIPE = {
    "seeds": [1],
    "baseline": "averaged",
    "main": "two-teachers",
    "tuning": {"epochs": 4, "learning_rate": 1.0e-2},
    "base": {
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 32},
        "student": {"init": "cross-encoder"},
        "losses": LOSSES,
    },
    "students": {
        "cross-encoder": {"student": {"init": "teacher-layers", "layers": 2}, "losses": ["gold_labels"]},
        "bilstm": {"student": {"init": "random", "kind": "bilstm", "layers": 1, "width": 8}, "losses": ["gold_labels"]},
        "averaged": {"method": {"assistants": {"temperature": 2.0}}, "reads": ["teacher", "bilstm"]},
        "one-teacher": HEADS | {"reads": ["teacher"]},
        "two-teachers": HEADS | {"reads": ["teacher", "bilstm"]},
    },
}  # fmt: skip
GIVEN = ("name=cerberus.yaml", "task=ranked", "data=ranked", "metric=map", "text_columns=question,sentence",
         "label_column=label", "reuse=false")  # fmt: skip


def asked(count: int, seed: int) -> dict:
    """The right one of three candidates has the good word."""
    draw = random.Random(seed)

    def sentence(right: bool) -> str:
        words = draw.choices(OTHERS, k=5)
        return " ".join([*words, draw.choice(GOOD if right else OTHERS)])

    return {
        f"{draw.choice(OTHERS)} {draw.choice(OTHERS)} {seed} {i} ?": [(sentence(k == i % 3), int(k == i % 3)) for k in range(3)]
        for i in range(count)
    }  # fmt: skip


@pytest.fixture(scope="module")
def ranked(place):
    (place.path / "ranked").mkdir()
    for name, count, seed in (("train", 40, 1), ("dev", 12, 2), ("test", 16, 3)):
        table(place.path / "ranked" / f"{name}.tsv", asked(count, seed))
    (place.path / "cerberus.yaml").write_text(json.dumps(RECIPE))
    status, output = place.run("recipe", *GIVEN, "run=cerberus")
    assert status == 0, output
    return place.path / "runs/cerberus-seed1"


@pytest.mark.slow
def test_killed_it_ends_in_the_same_weights(place, ranked):
    place.resumes("cerberus-seed1", ("two-teachers",), *GIVEN, command="recipe")


def test_heads_of_two_teachers_learn_otherwise_than_heads_of_one(place, ranked):
    weights = place.weights("cerberus-seed1")
    assert len(set(weights.values())) == len(weights)
    results = json.loads((ranked / "results.json").read_text())
    about = json.loads((ranked / "evaluate/finished.json").read_text())["scores"]
    assert set(results["teacher"]["scores"]) == {"map", "mrr", "precision_at_1"}
    assert results["teacher"]["metric"] > about["constant"] + 0.1, results["teacher"]["scores"]
    assert about["constant"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert results["averaged"]["flops"] < results["two-teachers"]["flops"] < 2 * results["averaged"]["flops"]


def test_it_is_reported_predicted_and_exported_with_its_ranks(place, ranked):
    for command, given, words in (
        ("report", ("run=cerberus-seed1",), ""),
        ("evaluate", ("run=cerberus-seed1",), "a random order reaches"),
        ("pareto", ("task=ranked",), "cerberus: two-teachers"),
        ("export", ("run=cerberus-seed1", "to=heads-export"), "ONNX int8"),
    ):
        status, output = place.run(command, *given, tiny=False)
        assert status == 0 and words in output, output
    assert "same answer" in (place.path / "runs/cerberus.md").read_text()
    page = (ranked / "report.html").read_text()
    assert "first candidate" in page and "mean reciprocal rank" in page

    with open(ranked / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for model in ("run=cerberus-seed1", "model=heads-export"):
        given = ("file=ranked/test.tsv", "text_columns=question,sentence", "to=ranks.jsonl")
        status, output = place.run("predict", model, *given, tiny=False)
        assert status == 0, output
        found = [json.loads(line) for line in (place.path / "ranks.jsonl").read_text().splitlines()]
        ranks = {(row["question"], row["sentence"]): row["rank"] for row in found}
        assert {(row["text"], row["text_b"]): int(row["two-teachers"]) for row in rows} == ranks
        of_one = sorted(
            (row for row in found if row["question"] == found[0]["question"]), key=lambda r: r["rank"]
        )
        assert [row["score"] for row in of_one] == sorted((row["score"] for row in of_one), reverse=True)
    card = (place.path / "heads-export/README.md").read_text()
    assert "pipeline_tag: text-ranking" in card and "ranks the candidates of a question" in card
    status, output = place.run("predict", "model=heads-export", "text=only a question", tiny=False)
    assert status == 2 and "two texts" in output and "Traceback" not in output, output
    served = place.served("cerberus-seed1", rows[0]["text"], rows[0]["text_b"])["student"]
    assert re.fullmatch(r"right \d+%", served["said"])


def test_a_stock_student_is_a_stock_classifier_of_pairs(place, ranked):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(ranked / "averaged/model")
    assert model.config.model_type == "bert" and model.config.id2label == {0: "0", 1: "1"}


@pytest.mark.parametrize(
    "change, words",
    [
        ("students.two-teachers.reads=[teacher,bilstm,bilstm]", "reads: .* must name one teacher for all heads, or 2"),
        ("students.two-teachers.method={many_heads: {heads: 2, layers: 2}}", "2 layers a head leave no body of a student of 2"),
        ("students.two-teachers.losses=[soft_labels]", "losses: the heads have a teacher each, under each_head alone"),
        ("students.bilstm.method={many_heads: {heads: 1}} students.bilstm.reads=[teacher]", "a bilstm is not taken apart"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line_before_anything_is_trained(place, ranked, change, words):
    changes = change.split(" students.")
    changes = [changes[0], *(f"students.{more}" for more in changes[1:])]
    status, output = place.run("recipe", *GIVEN, "run=wrong-cerberus", *changes)
    said = " ".join(output.split())
    assert status == 2 and re.search(words, said) and "Traceback" not in output, output
    assert "[teacher] starts" not in output
