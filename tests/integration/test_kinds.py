"""Recipes of students that are no stock models, on rows and on words: made, killed, shown, exported, asked."""

import ast
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import WORDS, sentences
from tests.integration.conftest import ROOT, read_by_recipes
from tests.test_docs import python

TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 32}
BILSTM, TEXTCNN = (
    {"kind": "bilstm", "layers": 1, "width": 8},
    {"kind": "textcnn", "width": 8, "feed_forward": 4},
)
RECIPE = {
    "about": "a test",
    "seeds": [1],
    "unlabelled": 0.5,
    "baseline": "bilstm",
    "main": "textcnn",
    "base": {"training": TRAINING},
    "students": {
        "bilstm": {"student": BILSTM | {"embeddings": "vectors"}, "losses": ["soft_labels"]},
        "bert": {"student": {"layers": 2}, "losses": ["gold_labels", "hidden_states"]},
        "token": {
            "student": {"kind": "bert_with_token", "layers": 1, "width": 8, "feed_forward": 16, "heads": 2},
            "method": "token_agreement",
            "losses": [{"distillation_token": {"kind": "soft"}}],
        },
        "textcnn": {
            "student": TEXTCNN,
            "losses": ["gold_labels", "matched_logits"],
            "with_unlabelled": True,
        },
    },
}
TAGS = ("NN", "VB", "JJ")


def without_the_project(lines: str, place: Path) -> str:
    """What lines of Python print that import nothing of this project."""
    assert "stages" not in lines and "pipeline" not in lines
    command = [sys.executable, "-c", lines]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def recipe(place):
    (place.path / "kinds.yaml").write_text(yaml.safe_dump(RECIPE))
    words = [f"{word} {' '.join(str((i * j) % 7 / 7) for j in range(4))}" for i, word in enumerate(WORDS)]
    (place.path / "vectors.txt").write_text("\n".join(words) + "\n")
    return ("name=kinds.yaml", "augmentation.vectors=vectors.txt")


@pytest.fixture(scope="module")
def tags(place):
    """Sentences whose words' tags are told by the words, where the package that has the real ones would be."""
    directory = place.path / "nlp_id" / "data"
    directory.mkdir(parents=True)
    (directory.parent / "__init__.py").write_text("")
    texts = [text.rsplit(" ", 1)[0].split() for text, _ in sentences(120)]
    lines = [
        "\n".join(f"{word}\t{TAGS[WORDS.index(word) % 3]}" for word in text if word in WORDS)
        for text in texts
    ]
    (directory / "dataset_postag.txt").write_text("\n\n".join(lines) + "\n")
    bilstm = RECIPE["students"]["bilstm"] | {"student": BILSTM}
    students = RECIPE["students"] | {"bilstm": bilstm}
    del students["token"]  # for one class a row
    (place.path / "tags.yaml").write_text(
        yaml.safe_dump(RECIPE | {"students": students, "task": "indonesian-tags"})
    )
    given = [text for text in place.given if not text.startswith(("task=", "data=", "text_c", "label_c"))]
    return ("name=tags.yaml", *read_by_recipes(given))


@pytest.fixture(scope="module")
def kinds(place, recipe):
    """The run of the recipe."""
    status, output = place.run("recipe", *recipe, "run=kinds", "reuse=false")
    assert status == 0 and "tokens begin as word vectors" in output, output
    assert "**textcnn**" in output
    return place.path / "runs" / "kinds-seed1"


def test_killed_in_each_student_a_recipe_ends_in_the_same_weights(place, recipe, kinds):
    assert set(place.weights("kinds-seed1")) == {"teacher", "bilstm", "bert", "token", "textcnn"}
    found = json.loads((kinds / "token/finished.json").read_text())["scores"]["found"]
    assert 0 <= found["distillation head = teacher"] <= 1 and found["cosine of the tokens, first layer"] < 1
    place.resumes("kinds-seed1", ("bilstm", "textcnn", "token"), *recipe, "reuse=false", command="recipe")


def test_labels_are_hidden_from_the_teacher_too_and_only_some_students_read_their_rows(kinds):
    run = kinds
    steps = {
        name: json.loads((run / name / "finished.json").read_text())["scores"]["steps"]
        for name in ("teacher", "bilstm", "textcnn")
    }
    assert steps["teacher"] == steps["bilstm"] < steps["textcnn"]
    spec = json.loads((run / "teacher" / "stage.json").read_text())
    assert spec["inputs"]["task"]["identity"]["unlabelled"] == [0.5, 1]


def test_other_vectors_make_their_student_again_and_no_other(place, recipe):
    assert place.run("recipe", *recipe, "run=vectors")[0] == 0
    path = place.path / "vectors.txt"
    words = path.read_text()
    path.write_text(words.replace("the 0.0", "the 0.5"))
    status, output = place.run("recipe", *recipe, "run=vectors")
    started = [line.split("]")[0].strip("[") for line in output.splitlines() if "starts" in line]
    assert status == 0 and started == ["bilstm", "evaluate"], output
    status, output = place.run("recipe", "name=kinds.yaml", "augmentation.vectors=none", "run=vectors")
    path.write_text(words)
    assert status == 2 and "augmentation.vectors, which is none" in output, output


@pytest.mark.parametrize(
    "change, words",
    [
        ("students.bilstm.losses=[attention_scores]", "bilstm.losses.attention_scores: a bilstm has no"),
        ("students.bilstm.student.kind=gru", "bilstm.kind: 'gru' is unknown; there are bert_with_token, bilstm"),
        ("students.bilstm.student.init=general", "init=general makes a student of the teacher's own kind"),
        ("students.bilstm.student.embeddings=glove", "embeddings='glove' must be 'random' or 'vectors'"),
        ("unlabelled=0", "no rows are unlabelled; give unlabelled=FRACTION"),
        ("unlabelled=1.5", "unlabelled=1.5 must be less than 1"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line(place, recipe, change, words):
    status, output = place.run("recipe", *recipe, "run=wrong", change)
    assert status == 2 and words in output and "Traceback" not in output, output


def test_an_exported_student_of_another_kind_says_what_loads_it(place, kinds):
    status, output = place.run("export", "run=kinds-seed1", "to=exported-kind", tiny=False)
    assert status == 0 and "import stages.distillation.students" in output and "ONNX int8" in output, output
    card = (place.path / "exported-kind" / "README.md").read_text()
    assert "transformers does not include the model type textcnn" in card and "library_name" not in card
    (lines,) = (text for text in python(ROOT / "docs" / "deploy.md") if "onnxruntime" in text)
    printed = without_the_project(lines.replace("my-student", "exported-kind"), place.path)
    assert set(ast.literal_eval(printed)) <= {"fresh", "rotten"}
    status, output = place.run("predict", "model=exported-kind", "text=a good film", tiny=False)
    assert status == 0 and output.split("\t")[0] in ("fresh", "rotten"), output
    for command in ("report", "evaluate"):
        status, output = place.run(command, "run=kinds-seed1", tiny=False)
        assert status == 0, output


def test_words_are_labelled_from_teacher_to_export(place, tags):
    longer = ("tuning.epochs=8", "tuning.learning_rate=1e-2", "base.training.epochs=8")
    status, output = place.run("recipe", *tags, "run=tags", *longer, tiny=False)
    assert status == 0 and "words of" in output, output
    run = place.path / "runs" / "tags-seed1"
    results = json.loads((run / "results.json").read_text())
    assert results["teacher"]["metric"] > 0.6 and results["textcnn"]["metric"] > 0.6, results
    with open(run / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(len(row["text"].split()) == len(row["textcnn"].split()) for row in rows)
    right = [
        a == b for row in rows for a, b in zip(row["label"].split(), row["textcnn"].split(), strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(results["textcnn"]["metric"])
    for command in ("report", "evaluate"):
        status, output = place.run(command, "run=tags-seed1", tiny=False)
        assert status == 0, output
    text = rows[0]["text"]
    status, output = place.run("predict", "run=tags-seed1", f"text={text}", tiny=False)
    lines = [line.split("\t") for line in output.splitlines() if line]
    assert status == 0 and " ".join(word for word, *_ in lines) == text, output
    assert " ".join(tag for _, tag, _ in lines) == rows[0]["textcnn"]
    status, output = place.run(
        "predict", "run=tags-seed1", "file=runs/tags-seed1/test_predictions.csv", "to=tagged.csv", tiny=False
    )
    with open(place.path / "tagged.csv", newline="") as file:
        assert [row["predicted_label"] for row in csv.DictReader(file)] == [row["textcnn"] for row in rows]
    status, output = place.run("export", "run=tags-seed1", "to=tagger", tiny=False)
    assert status == 0 and "AutoModelForTokenClassification" in output, output
    card = (place.path / "tagger" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card and "language: id" in card
    shown = card.split("With onnxruntime alone:")[1].split("```python")[1].split("```")[0]
    first, second = text.split()[:2]
    shown = shown.replace("path/to/this/directory", "tagger").replace(
        '"the", "words"', f'"{first}", "{second}"'
    )
    assert set(ast.literal_eval(without_the_project(shown, place.path))) == {0, 1}  # the words' numbers
    found = place.served("tags-seed1", text)
    marked = [(f"{word} ", tag) for word, tag, _ in lines]
    assert found["student"]["marked"] == marked and found["teacher"]["milliseconds"] > 0


def test_two_ranks_and_accumulation_learn_the_same_of_words(place, tags):
    """Dropout is off, so that only rounding may differ."""
    one = RECIPE | {"students": {"textcnn": RECIPE["students"]["textcnn"]}, "baseline": ""}
    (place.path / "one.yaml").write_text(yaml.safe_dump(one | {"task": "indonesian-tags"}))
    same = ("name=one.yaml", *tags[1:], "base.student.dropout=0.0", "tuning.dropout=0.0", "reuse=false")
    losses = []
    for arguments in ((), ("job.nproc=2", "job.micro_batch=3")):
        for stage in ("teacher", "textcnn"):  # made again, and what was checked is not checked again
            shutil.rmtree(place.path / "runs/words-seed1" / stage, ignore_errors=True)
        status, output = place.run("recipe", *same, "run=words", *arguments, tiny=False)
        assert status == 0 and "[textcnn] starts" in output, output
        lines = place.metrics("words-seed1")["textcnn"]
        losses.append(
            [line["gold_labels"] + line["matched_logits"] for line in lines if "gold_labels" in line]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_rows_whose_words_are_truncated_are_refused(place, tags):
    status, output = place.run("recipe", *tags, "run=short", "base.training.max_length=8", tiny=False)
    assert status == 2 and "max_length: 8 tokens truncate" in output, output
    longest = re.search(r"the longest has (\d+) tokens: raise it, and that of the other stages", output)[1]
    status, output = place.run(
        "recipe", *tags, "run=short", f"base.training.max_length={int(longest) - 1}", tiny=False
    )
    assert status == 2 and f"{int(longest) - 1} tokens truncate" in output, output


def test_each_shipped_recipe_is_read_and_its_grid_is_whole():
    from pipeline.config.recipe import read_recipe

    rows, tags = (read_recipe({"name": name})[0] for name in ("which-student", "which-student-tags"))
    assert len(rows.shown) == 2 * 5 + 5 + 5 + 1 and len(tags.shown) == 3 * 3
    for recipe in (rows, tags):
        learns = {name for name in recipe.shown if recipe.students[name].with_unlabelled}
        assert learns == {name for name in recipe.shown if name == "mini" or name.endswith("-all")}
