"""The packaged questions and answers, on files of the package's layout."""

import importlib.util

import pytest

from checkpoints.errors import UserError
from stages.tasks.kinds import Ranking
from stages.tasks.readers import chatterbot
from stages.tasks.task import find_task, load_task


@pytest.fixture
def topic(tmp_path, monkeypatch):
    """A topic of 60 questions, one of which has two answers; a text that is no list; and one question by itself."""
    lines = ["categories: [a]", "conversations:"]
    for i in range(60):
        lines += [f"- - question {i} ?", f"  - answer {i}", "  - a later turn"]
    lines += ["- - Question 0 ?", "  - another answer", "- a bare text"]
    (tmp_path / "one.yml").write_text("\n".join(lines))
    (tmp_path / "two.yml").write_text("conversations:\n- - alone ?\n  - here")
    monkeypatch.setattr(chatterbot, "inside", lambda package, path: tmp_path)
    return tmp_path / "one.yml"


def test_each_question_has_its_answers_and_nine_of_others(topic):
    task = load_task(find_task("chatterbot"))
    assert task.kind == Ranking(("wrong", "right")) and task.selection == "map"
    rows = [
        (split.text_a[i], split.text_b[i], split.labels[i]) for split in task.splits.values() for i in range(len(split))
    ]  # fmt: skip
    assert len({question for question, *_ in rows}) == 60  # "alone ?" has no other answer beside its own
    assert {size for name in task.splits for size in task.groups(name)} == {10, 11}
    for question, candidate, label in rows:
        own = {f"answer {question.split()[1]}"} | (
            {"another answer"} if question == "question 0 ?" else set()
        )
        assert label == (candidate in own)
    assert sum(label for *_, label in rows) == 61
    firsts = [label for split in task.splits.values() for label in [split.labels[0]]]
    assert sum(firsts) < 3  # right ones do not stand first


def test_what_is_wrong_is_told_in_a_line(topic, monkeypatch):
    topic.write_text("- no conversations")
    with pytest.raises(UserError, match="one.yml: no list of conversations; install the package again"):
        load_task(find_task("chatterbot"))
    with pytest.raises(
        UserError, match="metric: 'f1' does not fit this task; choose one of map, mrr, precision_at_1"
    ):
        find_task("chatterbot", metric="f1")
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package 'chatterbot_corpus' .* is not installed"):
        find_task("chatterbot")
