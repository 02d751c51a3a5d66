"""Questions are read from SQuAD's layouts; what does not fit is refused in one line, or left out."""

import copy
import json

import datasets
import pandas as pd
import pytest

from checkpoints.errors import UserError
from stages.tasks.kinds import Questions
from stages.tasks.task import find_task, load_task
from stages.tasks.types import GoldAnswers

COUNT = 40
FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("id", "title", "context", "question")}
    | {
        "answers": datasets.Sequence(
            {"text": datasets.Value("string"), "answer_start": datasets.Value("int32")}
        )
    }
)
"""Those of SQuAD on the hub."""


def squad(second: bool = False) -> dict:
    """Questions in SQuAD's own layout, two to a context."""
    paragraphs = []
    for n in range(COUNT // 2):
        qas = []
        for m, word in enumerate(("warm", "dull")):
            text = {"text": word, "answer_start": f"film {n} is warm and plot {n} is dull".index(word)}
            qas.append({"id": f"{n}-{m}", "question": f"what is {word} {m} ?", "answers": [text, text]})
            if second:
                impossible = m == 1 and n % 2 == 0
                qas[-1] |= {"is_impossible": impossible, "answers": [] if impossible else [text]}
        paragraphs.append({"context": f"film {n} is warm and plot {n} is dull", "qas": qas})
    half = len(paragraphs) // 2
    articles = [
        {"title": "a", "paragraphs": paragraphs[:half]},
        {"title": "b", "paragraphs": paragraphs[half:]},
    ]
    return {"version": "v2.0" if second else "1.1", "data": articles}


def table(data: dict) -> list[dict]:
    """The same, as `datasets` has it."""
    return [
        {"id": q["id"], "title": article["title"], "context": p["context"], "question": q["question"],
         "answers": {name: [a[name] for a in q["answers"]] for name in ("text", "answer_start")}}
        for article in data["data"] for p in article["paragraphs"] for q in p["qas"]
    ]  # fmt: skip


def read(path, **how):
    return load_task(find_task("asked", str(path), **how))


def rows(task) -> set:
    return {
        (role, q, c, a) for role, split in task.splits.items()
        for q, c, a in zip(split.text_a, split.text_b, split.labels, strict=True)
    }  # fmt: skip


@pytest.mark.parametrize("second", [False, True])
def test_all_layouts_give_the_same_questions(tmp_path, second):
    data = squad(second)
    (tmp_path / "one.json").write_text(json.dumps(data, indent=1))
    (tmp_path / "two.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in table(data)))
    pd.DataFrame(table(data)).to_parquet(tmp_path / "three.parquet")
    pd.DataFrame([row | {"answers": json.dumps(row["answers"])} for row in table(data)]).to_csv(
        tmp_path / "four.csv"
    )
    listed = [
        row
        | {
            "answers": [
                dict(zip(("text", "answer_start"), of, strict=True))
                for of in zip(*row["answers"].values(), strict=True)
            ]
        }
        for row in table(data)
    ]
    pd.DataFrame(listed).to_parquet(tmp_path / "five.parquet")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(table(data), FEATURES)}).save_to_disk(
        tmp_path / "six"
    )
    names = ("one.json", "two.jsonl", "three.parquet", "four.csv", "five.parquet", "six")
    tasks = [read(tmp_path / name) for name in names]
    assert all(rows(task) == rows(tasks[0]) for task in tasks) and len(rows(tasks[0])) == COUNT
    task = tasks[0]
    assert task.kind == Questions(threshold=0.0 if second else None) and task.metrics == ("f1", "exact_match")
    empty = [answers for *_, answers in rows(task) if not answers.texts]
    assert len(empty) == (COUNT // 4 if second else 0)
    assert any("10 of 40 questions have no answer" in note for note in task.notes) == second
    contexts = [set(task.splits[role].text_b) for role in ("train", "dev")]
    assert not contexts[0] & contexts[1]  # both questions of a context are on one side
    given = GoldAnswers(("warm",) * (1 if second else 2), (10,) * (1 if second else 2))
    assert task.splits["train"].gold[0].context and given in {a for *_, a in rows(task)} or second


def test_squad_on_the_hub_is_the_same_questions(tmp_path, monkeypatch):
    data, asked = squad(), []
    train, dev = table(data)[:30], table(data)[30:]
    sets = {
        "train": datasets.Dataset.from_list(train, FEATURES),
        "validation": datasets.Dataset.from_list(dev, FEATURES),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **_: asked.append(given) or sets)
    for name, of in (("train", train), ("dev", dev)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in of))
    source = find_task("SQuAD")
    assert rows(load_task(source)) == rows(read(tmp_path)) and asked == [("rajpurkar/squad", "plain_text")]
    assert find_task("squad_v2").hub == "rajpurkar/squad_v2" and find_task("squad", str(tmp_path)).hub == ""

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="rajpurkar/squad.*Couldn't reach it.*directory of SQuAD's files"):
        load_task(source)


def test_a_directory_with_splits_a_metric_and_a_test_file_without_answers(tmp_path):
    rows_of_table = table(squad())
    blank = [row | {"answers": {"text": [], "answer_start": []}} for row in rows_of_table]
    for name, of in (("train", rows_of_table), ("dev", rows_of_table[:10]), ("test", blank)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in of))
    task = read(tmp_path, metric="exact_match")
    assert task.selection == "exact_match" and set(task.splits) == {"train", "dev"}
    assert len(task.splits["train"]) == COUNT - 10  # the others are dev's
    assert any("test file is not used" in note for note in task.notes)


def change(data: dict, **changed) -> dict:
    """The data with something about its third question changed."""
    data = copy.deepcopy(data)
    paragraph = data["data"][0]["paragraphs"][1]
    paragraph["qas"][0] |= {key: value for key, value in changed.items() if key != "context"}
    paragraph |= {key: value for key, value in changed.items() if key == "context"}
    return data


BAD = {
    "elsewhere": (change(squad(), answers=[{"text": "warm", "answer_start": 11}]),
                  r"line 3: an answer is not in its context at its place \(id '1-0': 'warm' at 11, where 'arm ' is\)"),
    "beyond": (change(squad(), answers=[{"text": "warm", "answer_start": 999}]), "not in its context"),
    "no place": (change(squad(), answers=[{"text": "warm"}]), "not a text and a place"),
    "empty answer": (change(squad(), answers=[{"text": " ", "answer_start": 4}]), "not a text and a place"),
    "none in version 1": (change(squad(), answers=[]), r"it has no answers \(id '1-0': only a question with is_imp"),
    "none, but possible": (change(squad(True), answers=[], is_impossible=False), "it has no answers"),
    "both": (change(squad(True), is_impossible=True), "it is_impossible and has answers"),
    "twice": (change(squad(), id="0-1"), r"its id is an earlier question's \(id \"0-1\"\)"),
    "no question": (change(squad(), question=" "), "'question' is empty"),
    "no context": (change(squad(), context=""), "'context' is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_one_line_or_left_out(tmp_path, name):
    data, message = BAD[name]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as refused:
        read(path)
    assert "\n" not in str(refused.value) and "unfit_rows=leave_out" in str(refused.value)
    task = read(path, unfit_rows="leave_out")
    lost = 2 if name == "no context" else 1
    assert len(rows(task)) == COUNT - lost and any(f"{lost} rows left out" in note for note in task.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', "not SQuAD's layout"),
        ('{"data": [{"paragraphs": [3]}]}', "not SQuAD's layout"),
        ('{"data": [{"paragraphs": [}', "not JSON"),
        ('{"data": [{"paragraphs": [{"context": "a", "qas": [3]}]}]}', "not SQuAD's layout|is not an object"),
        (
            '{"data": [{"paragraphs": [{"context": "a", "qas": [{"question": 3, "answers": []}]}]}]}',
            "not a string",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b", "answers": 3}]}]}]}',
            "list of objects",
        ),
    ],
)
def test_other_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        read(path)
    assert "\n" not in str(refused.value)


def test_answers_of_a_table_that_are_none(tmp_path):
    path = tmp_path / "a.jsonl"
    for cell in (3, "warm", {"text": ["warm"]}, {"text": ["warm"], "answer_start": []}):
        path.write_text(json.dumps({"question": "a", "context": "b", "answers": cell}) + "\n")
        with pytest.raises(UserError, match="line 1: .* are not answers; write"):
            read(path)
    path.write_text(
        json.dumps({"question": "a", "context": "b", "answers": {"text": ["b"], "answer_start": [0]}}) + "\n"
    )
    with pytest.raises(UserError, match="1 questions of one text leave nothing to hold out"):
        read(path)
    with pytest.raises(UserError, match="'accuracy' does not fit this task; choose one of f1, exact_match"):
        read(path, metric="accuracy")
