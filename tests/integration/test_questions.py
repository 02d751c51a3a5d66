"""Questions through both stages: made, killed, augmented in the question alone, reported, asked, exported."""

import csv
import json
import random

import pytest

from tests.conftest import GOOD, WORDS

GIVEN = ("task=asked", "data=asked", "student=teacher-layers", "augment=true", "augmentation.variants=2",
         "augmentation.vectors=none", "masked_lm.tokens=600", "masked_lm.epochs=1", "masked_lm.max_length=32",
         "text_columns=", "label_column=", "tuning.learning_rate=1e-2", "tuning.epochs=8",
         "prediction.learning_rate=1e-2")  # fmt: skip
OTHERS = [word for word in WORDS if word not in GOOD]


def asked(count: int, seed: int) -> dict:
    """Questions in SQuAD's layout: the answer is the one good word of a context, if there is one."""
    draw, paragraphs = random.Random(seed), []
    for number in range(count):
        words = draw.choices(OTHERS, k=draw.choice((12, 40)))
        place, word = draw.randrange(len(words)), draw.choice(GOOD)
        answers = []
        if number % 4:
            words[place] = word
            answers = [{"text": word, "answer_start": len(" ".join([*words[:place], ""]))}]
        question = f"the {draw.choice(['film', 'story', 'plot'])} was ?"
        entry = {"id": str(number), "question": question, "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": " ".join(words), "qas": [entry]})
    return {"version": "v2.0", "data": [{"title": "films", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def run(place):
    """A run on questions, some of whose contexts are read in several windows."""
    (place.path / "asked").mkdir()
    for name, count, seed in (("train", 60, 1), ("dev", 24, 2), ("test", 24, 3)):
        (place.path / "asked" / f"{name}.json").write_text(json.dumps(asked(count, seed)))
    status, output = place.run("task-distill", *GIVEN, "run=asked", "reuse=false")
    assert status == 0 and "27 of 108 questions have no answer" in output, output
    return place.path / "runs" / "asked"


def test_killed_in_both_task_stages_it_ends_in_the_same_weights(place, run):
    place.resumes("asked", ("intermediate", "prediction"), *GIVEN, "reuse=false")


def test_variants_replace_words_of_the_question_alone(run):
    from data_aug.variants import read_shard

    questions, contexts, labels, rows, variants = read_shard(run / "augment/model/rows-00000000.arrow")
    first = {
        row: i
        for i, (row, variant) in reversed(list(enumerate(zip(rows, variants, strict=True))))
        if not variant
    }
    for i, row in enumerate(rows):
        assert (contexts[i], labels[i]) == (contexts[first[row]], labels[first[row]])
        assert not variants[i] or questions[i] != questions[first[row]]
    assert any(variants)


def test_reported_predicted_and_exported_answers_are_those_of_the_model_card(place, run, tmp_path, capsys):
    results = json.loads((run / "results.json").read_text())
    assert set(results["teacher"]["scores"]) == {"f1", "exact_match"}
    about = json.loads((run / "evaluate/finished.json").read_text())["scores"]
    assert results["teacher"]["metric"] > about["constant"] == 0.25, results["teacher"]["scores"]
    for command in ("report", "evaluate"):
        status, output = place.run(command, "run=asked", tiny=False)
        assert status == 0, output
    assert "same answer" in output
    status, output = place.run("export", "run=asked", "to=asked-export", tiny=False)
    assert status == 0 and "ONNX int8" in output and "AutoModelForQuestionAnswering" in output, output

    with open(run / "test_predictions.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert {"", *GOOD} & {row["distilled"] for row in table}
    (place.path / "ask.jsonl").write_text(
        "\n".join(json.dumps({"question": row["text"], "context": row["text_b"]}) for row in table)
    )
    for model in ("run=asked", "model=asked-export"):
        status, output = place.run("predict", model, "file=ask.jsonl", "to=answered.jsonl", tiny=False)
        assert status == 0, output
        answered = [json.loads(line) for line in (place.path / "answered.jsonl").read_text().splitlines()]
        assert [row["answer"] for row in answered] == [row["distilled"] for row in table]
        assert all(0 < row["score"] <= 1 for row in answered)

    card = (place.path / "asked-export" / "README.md").read_text()
    code = (
        card.split("```python\n")[1]
        .split("```")[0]
        .replace("path/to/this/directory", str(place.path / "asked-export"))
    )
    for row in table[:8]:
        own = code.replace('"a question?"', repr(row["text"])).replace(
            '"a text with the answer"', repr(row["text_b"])
        )
        exec(own, {})
        assert capsys.readouterr().out.strip() == (row["distilled"] or "no answer")

    one = table[0]
    answer = place.served("asked", one["text"], one["text_b"])["student"]
    assert answer["said"] == (one["distilled"] or "no answer") and 0 < answer["values"][0] <= 1
    status, output = place.run(
        "predict", "run=asked", f"text={one['text']}", f"text_b={one['text_b']}", tiny=False
    )
    assert status == 0 and output.split("\t")[0] == (one["distilled"] or "no answer")
    for question, words in (
        (" ".join(["film"] * 30), "the question has 30 tokens, at most "),
        ("日本 語", ""),
    ):
        given = (f"text={question}", f"text_b={one['text_b']}")
        status, output = place.run("predict", "run=asked", *given, tiny=False)
        assert (status == 2) == bool(words) and words in output and "Traceback" not in output, output
    status, output = place.run("predict", "run=asked", f"text={one['text']}", tiny=False)
    assert status == 2 and "a question and the text that answers it" in output and "Traceback" not in output
