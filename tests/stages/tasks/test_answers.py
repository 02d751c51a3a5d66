"""Tables of answers: their forms mean the same, they are matched by content, and what does not fit is refused in a line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from checkpoints.errors import UserError
from pipeline.label.answers import Answer as Labelled
from stages.tasks.kinds import Classes, LabelSets, Scores
from stages.tasks.task import find_task, load_task

TEXTS = ["a good film", "a dull plot", "warm and great", "poor story"]
LABELS = ["fresh", "rotten", "fresh", "rotten"]
FRESH = [0.9, 0.2, 0.7, 0.4]
"""Probabilities of `fresh`, the first label."""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write("data/train.jsonl", [{"text": t, "label": la} for t, la in zip(TEXTS, LABELS, strict=True)])
    for role in ("dev", "test"):
        write(
            f"data/{role}.jsonl", [{"text": f"{role} {la} {i}", "label": la} for i, la in enumerate(LABELS)]
        )
    return tmp_path


def write(path: str, rows: list[dict]) -> str:
    Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def answers(values: list, form: str = "probabilities", texts: list[str] = TEXTS) -> str:
    return write("answers.jsonl", [{"text": t, form: v} for t, v in zip(texts, values, strict=True)])


def matched(path: str, **more):
    given = {"text_columns": ("text",), "label_column": "label"} | more
    return load_task(find_task("mood", "data", answers=path, **given))


def alone(path: str, **more):
    return load_task(find_task("mood", answers=path, **more))


def csv_of_columns() -> str:
    lines = [f"{t},{p},{1 - p:.2f}" for t, p in zip(TEXTS, FRESH, strict=True)]
    Path("answers.csv").write_text("\n".join(["text,fresh,rotten", *lines]))
    return "answers.csv"


def csv_of_lists() -> str:
    lines = [f'{t},"[{p}, {1 - p:.2f}]"' for t, p in zip(TEXTS, FRESH, strict=True)]
    Path("answers.csv").write_text("\n".join(["text,probabilities", *lines]))
    return "answers.csv"


def parquet() -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"text": TEXTS, "probabilities": [[p, 1 - p] for p in FRESH]}
    pq.write_table(pa.table(columns), "answers.parquet")
    return "answers.parquet"


def made_by_label() -> str:
    lines = [
        Labelled(t, None, "fresh", {"rotten": 1 - p, "fresh": p}, None, 9).line("llm")
        for t, p in zip(TEXTS, FRESH, strict=True)
    ]
    Path("answers.jsonl").write_text("\n".join(lines) + "\n")
    return "answers.jsonl"


def tenth_votes() -> str:
    rows = [
        (t, "fresh" if i < round(10 * p) else "rotten")
        for t, p in zip(TEXTS, FRESH, strict=True)
        for i in range(10)
    ]
    return answers([label for _, label in rows], "label", [t for t, _ in rows])


@pytest.mark.parametrize(
    "form",
    [
        lambda: answers([{"fresh": p, "rotten": 1 - p} for p in FRESH]),
        lambda: answers([[float(np.log(p)) + 3, float(np.log(1 - p)) + 3] for p in FRESH], "logits"),
        csv_of_columns,
        csv_of_lists,
        parquet,
        made_by_label,
        tenth_votes,
    ],
)
def test_every_form_of_an_answer_says_the_same(place, form):
    train = matched(form()).splits["train"]
    assert train.text_a == TEXTS and train.labels == [0, 1, 0, 1]
    assert np.array(train.answers) == pytest.approx(np.array([[p, 1 - p] for p in FRESH]))


def test_texts_are_matched_whatever_their_case_and_white_space_and_gold_rows_stay(place):
    path = answers(["rotten"] * 4, "label", [f"  {text.upper()} " for text in TEXTS])
    task = matched(path)
    assert task.splits["train"].labels == [1] * 4 and task.splits["train"].text_a == TEXTS
    assert task.splits["dev"].labels == task.splits["test"].labels == [0, 1, 0, 1]
    assert task.gold and task.selection == "accuracy" and task.splits["dev"].answers is None
    assert "answers: 4 of 4 rows of train have one and learn it" in task.notes


def test_answers_to_dev_are_compared_with_its_labels_and_not_learned(place):
    dev = [f"dev {label} {i}" for i, label in enumerate(LABELS)]
    task = matched(answers(["fresh"] * 8, "label", [*TEXTS, *dev]))
    assert task.splits["dev"].labels == [0, 1, 0, 1] and len(task.splits["train"]) == 4
    assert "answers: 50.0% of 4 have the label of their row in dev" in task.notes


@pytest.mark.parametrize(
    "values, form, words",
    [
        (["fresh", "stale"] * 2, "label", "line 2: label 'stale' is not one of fresh, rotten; fix it"),
        ([[0.9, 0.4]] * 4, "probabilities", "line 1: probabilities that sum to 1.3, not to 1"),
        ([[2.0, -1.0]] * 4, "probabilities", "name the column logits if they are logits"),
        ([{"fresh": 0.5, "old": 0.5}] * 4, "probabilities", "label 'old' is not one of"),
        ([[0.2, 0.3, 0.5]] * 4, "probabilities", "[0.2, 0.3, 0.5] are not 2 numbers (give them in the order fresh, rotten"),
        ([{"fresh": 1.0}] * 4, "logits", "no logit of 'rotten'"),
        ([["a", "b"]] * 4, "logits", "of logits one is 'a', not a finite number"),
        (["fresh", None, "fresh", "fresh"], "label", "line 2: no answer; fix it, or unfit_rows=leave_out"),
        ([["fresh", "rotten"]] * 4, "label", "2 labels (fresh, rotten), but a row of the task has one"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_is_refused_with_its_line(place, values, form, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        matched(answers(values, form))
    assert "\n" not in str(error.value)


def test_rows_and_answers_must_fit_together_or_are_left_out_and_counted(place):
    with pytest.raises(UserError, match="line 5: no row of the task has the text 'who asked"):
        matched(answers(["fresh"] * 5, "label", [*TEXTS, "who asked for this?"]))
    with pytest.raises(UserError, match="1 of 4 rows of train have no answer, such as 'poor story'"):
        matched(answers(["fresh"] * 3, "label", TEXTS[:3]))
    with pytest.raises(UserError, match="none of its 1 texts is a row of the task's train"):
        matched(answers(["fresh"], "label", ["another"]), unfit_rows="leave_out")
    path = answers(["fresh", "rotten", "stale", "fresh"], "label", [*TEXTS[:3], "who asked?"])
    task = matched(path, unfit_rows="leave_out")
    assert task.splits["train"].text_a == TEXTS[:2] and task.splits["train"].labels == [0, 1]
    assert any("left out 2 rows without one, 1 answers to other texts" in note for note in task.notes)
    assert any("1 left out (1: label 'stale' is not one of" in note for note in task.notes)


@pytest.mark.parametrize(
    "lines, words",
    [
        ('{"words": "a", "label": "b"}', "no text column; its columns are 'words', 'label'; name it text"),
        ('{"text": "a", "said": "b"}', "no column of answers; its columns are 'text', 'said'; name it label"),
        ("", "answers.jsonl: no rows; give a table with an answer in each row"),
    ],
)
def test_a_table_that_holds_no_answers_is_refused(place, lines, words):
    Path("answers.jsonl").write_text(lines)
    with pytest.raises(UserError, match=re.escape(words)):
        matched("answers.jsonl")


def test_answers_for_words_are_refused(place):
    Path("tags.conll").write_text("".join(f"word{i} B-x\nof O\n\n" for i in range(60)))
    with pytest.raises(UserError, match="answers for words cannot be learned"):
        load_task(find_task("tags", "tags.conll", answers=answers(["x"] * 4, "label")))


def many(count: int = 80) -> list[str]:
    return [f"text number {i}" for i in range(count)]


def test_answers_alone_make_a_task_whose_metrics_are_agreement(place):
    texts = many()
    said = ["glad" if i % 3 else "sad" for i in range(80)]
    path = answers([*said, *said, "sad"], "label", [*texts, *texts, texts[1]])
    task = alone(path)
    assert not task.gold and task.kind == Classes(("glad", "sad"))
    assert task.metrics == ("agreement", "f1") and task.selection == "agreement"
    found = [text for split in task.splits.values() for text in split.text_a]
    assert sorted(found) == sorted(texts) and set(task.splits) == {"train", "dev", "test"}
    assert (2 / 3, 1 / 3) in task.splits["train"].answers, "three answers to text 1, which is in train"
    assert "accuracy" not in " ".join(task.notes)
    assert any(note.startswith("2 classes in train: 'glad'") for note in task.notes)


def test_answers_alone_whose_labels_look_alike_or_are_rare_are_warned_of(place):
    said = ["glad" if i % 2 else "sad" for i in range(80)]
    notes = alone(answers(["Glad", *said], "label", many(81))).notes
    assert "warning: 'Glad', 'glad' are different classes, though some seem to be the same" in notes
    assert any("has no row of 'Glad': it is not measured there" in note for note in notes)


def test_answers_alone_may_have_columns_of_other_names(place):
    rows = [
        {"post": f"{LABELS[i % 4]} text {i}", "said": LABELS[i % 4], "probabilities": "?"} for i in range(60)
    ]
    path = write("answers.jsonl", rows)
    task = alone(path, text_columns=("post",), label_column="said")
    train = task.splits["train"]
    assert task.labels == ("fresh", "rotten") and all(
        task.labels[label] in text for text, label in zip(train.text_a, train.labels, strict=True)
    )
    for given, words in (
        (
            {},
            "no text column; its columns are 'post', 'said', 'probabilities'; give text_columns=NAME, or name it text",
        ),
        (
            {"text_columns": ("post",), "label_column": "says"},
            "label_column: .*no column 'says'; its columns are 'post'",
        ),
    ):
        with pytest.raises(UserError, match=words):
            alone(path, **given)
    for row in rows:
        del row["probabilities"]
    with pytest.raises(UserError, match="no column of answers; .*; give label_column=NAME, or name it label"):
        alone(write("answers.jsonl", rows), text_columns=("post",))


def test_answers_alone_of_several_labels_and_of_scores(place):
    sets = [["a"], [], ["a", "b"], ["b"]] * 20
    task = alone(answers(sets, "label", many()))
    assert task.kind == LabelSets(("a", "b")) and "subset_agreement" in task.metrics
    assert set(task.splits["train"].labels) <= {(1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0)}
    task = alone(answers([i / 10 for i in range(80)], "label", many()))
    assert isinstance(task.kind, Scores) and task.selection == "pearson"
    assert [value for (value,) in task.splits["train"].answers] == task.splits["train"].labels
    assert not any("far from" in note for note in task.notes)
    task = alone(answers([999 if i == 7 else i / 10 for i in range(80)], "label", many()))
    assert any("1 scores of the answers are far from" in note and "999 in " in note for note in task.notes)


@pytest.mark.parametrize("said", [["glad", "sad"] * 40, [i / 10 for i in range(80)]])
@pytest.mark.parametrize("stray", ["NaN", "NA", "-1"])
def test_a_stray_cell_among_answers_alone_is_no_class_and_is_named(place, said, stray):
    path = answers([*said, stray], "label", many(81))
    if stray == "-1" and said[0] != "glad":
        return  # a score like any other
    with pytest.raises(UserError, match=f"line 81: .*{stray}.*; fix it, or unfit_rows=leave_out"):
        alone(path)
    task = alone(path, unfit_rows="leave_out")
    assert task.labels == (("glad", "sad") if said[0] == "glad" else None)
    assert sum(map(len, task.splits.values())) == 80 and any("1 left out" in note for note in task.notes)
    if said[0] == "glad":
        assert alone(path, labels=("glad", "sad", stray)).labels == ("glad", "sad", stray)


def test_answers_alone_need_names_and_two_labels(place):
    with pytest.raises(UserError, match="labels=positive,negative"):
        alone(answers([[0.5, 0.5]] * 80, texts=many()))
    assert alone(answers([[0.6, 0.4]] * 40 + [[0.1, 0.9]] * 40, texts=many()), labels=("b", "a")).labels == (
        "b",
        "a",
    )
    odd = alone(answers(["0", "1"] * 40 + ["NaN", '{["glad"]}'], "label", many(82)), unfit_rows="leave_out")
    assert isinstance(odd.kind, Classes) and {"0", "1"} < set(odd.labels)  # neither scores nor a traceback
    with pytest.raises(UserError, match="every answer is 'glad'"):
        alone(answers(["glad"] * 80, "label", many()))
    with pytest.raises(UserError, match="no such file; give a table of answers"):
        alone("nowhere.jsonl")
    with pytest.raises(UserError, match="no row has an answer .no answer in line 1.; give some"):
        alone(answers([None] * 80, "label", many()))


@pytest.mark.parametrize(
    "kind, values",
    [
        (Classes(("a", "b", "c")), [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]),
        (LabelSets(("a", "b")), [[0.2, 0.9], [1.0, 0.0]]),
        (Scores(scale=(3.0, 2.0)), [[4.5], [-1.0]]),
    ],
)
def test_logits_are_those_of_the_probabilities(kind, values):
    assert kind.probabilities(kind.logits(np.array(values))) == pytest.approx(np.array(values), abs=1e-5)


def test_a_label_column_may_name_the_column_of_probabilities(place):
    rows = [
        {
            "text": f"{LABELS[i % 4]} text {i}",
            "probabilities": {"fresh": 0.9 - 0.8 * (i % 2), "rotten": 0.1 + 0.8 * (i % 2)},
        }
        for i in range(60)
    ]
    path = write("probabilities.jsonl", rows)
    assert alone(path, label_column="probabilities").labels == alone(path).labels == ("fresh", "rotten")
