"""The CMOW/CBOW hybrid through the real command, on pairs: from text to a task, killed, resumed, shown, exported, asked."""

import csv
import json
import re

import pytest

from tests.conftest import make_corpus, sentences

TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 32}
STUDENT = {"kind": "cmow", "width": 9, "feed_forward": 8, "settings": {"pairs": "diffcat"}}
RECIPE = {
    "about": "a test",
    "seeds": [1],
    "masked_lm": {"epochs": 1, "batch_size": 8, "max_length": 32},
    "baseline": "cbow",
    "main": "hybrid",
    "base": {"training": TRAINING, "losses": ["gold_labels", "soft_labels"], "student": STUDENT},
    "stages": {"general-text": {"data": "pairs.txt", "losses": ["masked_words", "masked_soft_labels"]}},
    "students": {
        "cbow": {"student": {"settings": {"parts": ["vectors"], "pairs": "joint"}}},
        "hybrid": {"student": {"init": "general-text"}},
    },
}
GIVEN = ("name=cmow-test.yaml", "task=pairs", "data=pairs", "text_columns=one,other", "label_column=alike",
         "reuse=false")  # fmt: skip


@pytest.fixture(scope="module")
def run(place):
    """The run of the recipe, on pairs of texts that are alike if they share three words."""
    make_corpus(place.path / "pairs.txt", 60)
    texts = [text for text, _ in sentences(61, 3)]
    pairs = [(a, b, len({*a.split()} & {*b.split()}) > 2) for a, b in zip(texts, texts[1:], strict=False)]
    (place.path / "pairs").mkdir()
    for part, rows in (("train", pairs[:40]), ("dev", pairs[40:50]), ("test", pairs[50:])):
        with open(place.path / f"pairs/{part}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("one", "other", "alike"), *rows])
    (place.path / "cmow-test.yaml").write_text(json.dumps(RECIPE))
    status, output = place.run("recipe", *GIVEN, "run=cmow")
    assert status == 0, output
    return place.path / "runs/cmow-seed1"


def test_the_hybrid_begins_as_what_it_was_on_text_and_reads_pairs_apart(run):
    configs = [json.loads((run / name / "model/config.json").read_text()) for name in ("cbow", "hybrid")]
    assert [(c["parts"], c["pairs"]) for c in configs] == [
        (["vectors"], "joint"), (["vectors", "forwards", "backwards"], "diffcat")]  # fmt: skip
    assert "accuracy" in json.loads((run / "general-text/finished.json").read_text())["scores"]


def test_it_is_shown_exported_and_asked_as_any_student(place, run):
    status, output = place.run("export", "run=cmow-seed1", "to=exported-cmow", tiny=False)
    assert status == 0 and "import stages.distillation.students" in output and "ONNX fp32" in output, output
    texts = ("text=a good film of great warm actor", "text_b=a warm film")
    answers = [
        place.run("predict", of, *texts, tiny=False) for of in ("run=cmow-seed1", "model=exported-cmow")
    ]
    assert answers[0] == answers[1] and answers[0][0] == 0, answers
    for command in (("report", "run=cmow-seed1"), ("pareto",)):
        status, output = place.run(*command, tiny=False)
        assert status == 0, output
    assert "hybrid" in output


@pytest.mark.slow
def test_killed_on_text_and_on_the_task_it_ends_in_the_same_weights(place, run):
    place.resumes("cmow-seed1", ("general-text", "hybrid"), *GIVEN, command="recipe")


@pytest.mark.parametrize(
    "change, words",
    [
        ("base.student.width=10", "width: 10 must be a square"),
        ("students.cbow.student.settings={pairs: cosine}", "cbow.settings.pairs: 'cosine' must be one of joint, diffcat"),
        ("students.hybrid.student.settings={pairs: joint}", "hybrid: settings=.* are not those of general-text"),
        ("base.losses=[hidden_states]", "cbow.losses.hidden_states: a cmow has no layers"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line_before_anything_is_trained(place, run, change, words):
    status, output = place.run("recipe", *GIVEN, "run=wrong-cmow", change)
    said = " ".join(output.split())
    assert status == 2 and re.search(words, said) and "Traceback" not in output, output
    assert "[teacher] starts" not in output
