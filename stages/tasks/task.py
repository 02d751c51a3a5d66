"""Find a task by its name, cheaply, and load its rows.

A reader is a module of this package with `find(name, data, text_columns, label_column, metric)`, which gives
a `TaskSource`, or None where the name is not its own, and `load(source, revision)`, which gives the `Task`.
"""

from __future__ import annotations

import difflib
import math
import random
from dataclasses import replace

from checkpoints.errors import UserError
from stages.tasks.readers import conll, files, glue, indonesian, newsgroups, packaged
from stages.tasks.types import UNLABELLED, Split, Task, TaskSource

__all__ = ["Split", "Task", "TaskSource", "find_task", "load_task"]

READERS = {
    "glue": glue,
    "packaged": packaged,
    "newsgroups": newsgroups,
    "indonesian": indonesian,
    "conll": conll,
    "files": files,
}
"""Asked in this order whether a task is theirs."""
KNOWN = (*glue.TASKS, *packaged.TASKS, *newsgroups.TASKS, *indonesian.TASKS)


def find_task(
    name: str,
    data: str = "",
    text_columns: tuple[str, ...] = (),
    label_column: str = "",
    metric: str = "",
) -> TaskSource:
    """Return where the task `name` comes from, without reading its rows.

    Args:
        name: one of GLUE's tasks, a packaged task, the path of a task file (.yaml), or with `data` any name
            for the user's own.
        data: a directory in GLUE's TSV layout, or the user's file (.conll where words have labels), or one with
            train.*, dev.*, test.*.
        text_columns: one or two columns of the user's file.
        label_column: the column of the labels.
        metric: what selection on dev uses, instead of the task's own.

    Raises:
        UserError: unknown task, missing files or columns, options that do not go together.
    """
    for reader in READERS.values():
        source = reader.find(name, data, tuple(text_columns), label_column, metric)
        if source:
            return source
    close = difflib.get_close_matches(name.lower(), KNOWN, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"unknown task {name!r}: {hint}Known are {', '.join(KNOWN)}; for data of your own give a task file "
        "(NAME.yaml), or a file with its text and label columns"
    )


def load_task(source: TaskSource, revision: str | None = None) -> Task:
    """Read the rows of a task; `revision` pins a hub data set.

    Raises:
        UserError: rows that cannot be used, naming file and line; no hub in reach.
    """
    identity = source.identity
    task = READERS[identity["reader"]].load(source, revision)
    if "rows" in identity:
        task = _some_rows(task, *identity["rows"])
    return _hide_labels(task, *identity["unlabelled"]) if "unlabelled" in identity else task


def _some_rows(task: Task, most: int, seed: int) -> Task:
    """At most so many of the training rows, drawn from the seed."""
    train = task.splits["train"]
    kept = sorted(random.Random(seed).sample(range(len(train)), min(most, len(train))))
    return replace(task, splits=task.splits | {"train": _part(train, kept)})


def _hide_labels(task: Task, share: float, seed: int) -> Task:
    """Move a share of the training rows, drawn from the seed, to "unlabelled". Their labels are gone from the task."""
    train = task.splits["train"]
    hidden = set(random.Random(seed).sample(range(len(train)), round(share * len(train))))
    if len(hidden) == len(train):
        raise UserError(f"unlabelled={share} of {len(train)} training rows hides all labels: lower it")
    shown, hidden = [i for i in range(len(train)) if i not in hidden], sorted(hidden)
    if task.token_level:
        unknown = [[UNLABELLED] * len(train.labels[i]) for i in hidden]
    else:
        unknown = [UNLABELLED if task.labels else math.nan] * len(hidden)
    parts = {"train": _part(train, shown), "unlabelled": replace(_part(train, hidden), labels=unknown)}
    return replace(task, splits=task.splits | parts)


def _part(split: Split, rows: list[int]) -> Split:
    """The rows of a split at some places."""
    second = split.text_b and [split.text_b[i] for i in rows]
    return Split([split.text_a[i] for i in rows], second, [split.labels[i] for i in rows])
