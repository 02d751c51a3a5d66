"""Find a task by its name, cheaply, and load its rows. `stages.tasks.readers` says how to add a reader."""

from __future__ import annotations

import difflib
import random
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError, check_file
from stages.tasks.answers import answered_by, read_answers, together
from stages.tasks.kinds import ImageClasses, Kind, Ranking, Scores, Similarity
from stages.tasks.readers import READERS, questions
from stages.tasks.tables import SUFFIXES
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

__all__ = ["Split", "Task", "TaskSource", "find_task", "load_task"]

KNOWN = (*(name for reader in READERS.values() for name in getattr(reader, "TASKS", ())), *questions.HUB)
"""The names of tasks that need no files of the user's own."""


def find_task(
    task: str,
    data: str = "",
    text_columns: tuple[str, ...] = (),
    label_column: str = "",
    metric: str = "",
    **of_tables: Any,
) -> TaskSource:
    """Return where a task comes from, without reading its rows.

    Args:
        task: a GLUE task, a packaged task, the path of a task file (.yaml), or with `data` any name for the user's own.
        data: a directory in GLUE's TSV layout, a file of the user's own (.conll if words have labels), or a directory
            with train.*, dev.*, test.*.
        text_columns: one or two columns of the user's file.
        label_column: the column of the labels.
        metric: selects on dev, instead of the task's own metric.
        **of_tables: the others of `TaskRequest`: for tables of the user's own, and for `answers`.

    Raises:
        UserError: the task is unknown, a file or column is missing, or arguments do not go together.
    """
    request = TaskRequest(task, data, tuple(text_columns), label_column, metric, **of_tables)
    if request.spans_column and not data:
        raise UserError(f"{request.spans_column!r} needs a file; give data", argument="spans_column")
    for reader in READERS.values():
        if source := reader.find(request):
            reads = {
                "files": TaskRequest.OF_TABLES,
                "spans": ("encoding", "delimiter"),
                "image_tables": ("unfit_rows",),
                "questions": ("unfit_rows", "encoding"),
            }.get(source.reader, ())
            if request.answers:
                reads = (*reads, "unfit_rows", *(["labels"] if source.reader == "answers" else []))
            for name in TaskRequest.OF_TABLES:
                if name not in reads and getattr(request, name) not in ("", (), "refuse"):
                    raise UserError(
                        f"{source.name!r} is not read as a table of texts and labels; leave this out",
                        argument=name,
                    )
            if request.tag_scheme and source.reader != "conll":
                raise UserError(
                    f"{source.name!r} is not in CoNLL files; leave this out", argument="tag_scheme"
                )
            source = replace(source, windows=request.windows)
            return _with_answers(source, request) if request.answers else source
    close = difflib.get_close_matches(task.lower(), KNOWN, n=1)
    hint = f"did you mean {close[0]}? Known" if close else "known"
    raise UserError(
        f"{task!r} is unknown: {hint} are {', '.join(KNOWN)}; for data of your own give a task file "
        "(NAME.yaml), or a file with its text and label columns",
        argument="task",
    )


def _with_answers(source: TaskSource, request: TaskRequest) -> TaskSource:
    path = Path(request.answers)
    check_file(path, "give a table of answers, or a model", "teacher")
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(
            f"{request.answers!r} is a file, but not a table: give a table of answers (CSV, TSV, JSON, JSONL or "
            "Parquet), or the directory of a model",
            argument="teacher",
        )
    unfit = source.unfit_rows or ("" if request.unfit_rows == "refuse" else request.unfit_rows)
    return replace(source, files=source.files | {"answers": str(path.resolve())}, unfit_rows=unfit)


def load_task(source: TaskSource, revision: str | None = None) -> Task:
    """Read the rows of a task.

    Args:
        source: from `find_task`.
        revision: pins a hub data set.

    Raises:
        UserError: a row cannot be used (the error names file and line), or the hub cannot be reached.
    """
    reader, answers = READERS[source.reader], source.files.get("answers", "")
    if answers and source.reader != "answers":
        files = {role: path for role, path in source.files.items() if role != "answers"}
        task = _answered(reader.load(replace(source, files=files), revision), source)
    else:
        task = reader.load(source, revision)
    if source.windows:
        task = _in_windows(task, source.windows)
    if source.image_augmentation:
        task = _change_images(task, source.image_augmentation)
    if source.sentence_vectors:
        task = _by_vectors(task)
    if source.rows:
        task = _some_rows(task, *source.rows)
    if source.fold:
        task = _without_fold(task, *source.fold)
    if source.held_out:
        task = _hold_out(task, *source.held_out)
    return _hide_labels(task, *source.unlabelled) if source.unlabelled else task


def _answered(task: Task, source: TaskSource) -> Task:
    """The task, its training rows with the labels that the table of answers has for them."""
    path, leave_out = Path(source.files["answers"]), bool(source.unfit_rows)
    pairs = task.splits["train"].text_b is not None
    usual = ("text", "text_b") if pairs else ("text",)
    choices = [tuple(source.text), usual] if source.text else [usual]
    rows = read_answers(path, choices, task.labels or ())
    return answered_by(task, together(path, rows, task.kind, leave_out), leave_out)


def _in_windows(task: Task, pooling: str) -> Task:
    """The task, whose long texts are read in windows."""
    if task.kind.head != Kind.head:
        raise UserError(
            f"{pooling!r} pools what is said of a whole text, and the task has {task.kind.name}; leave this out",
            argument="windows",
        )
    return replace(task, kind=replace(task.kind, pooling=pooling))


def _change_images(task: Task, strength: float) -> Task:
    """The task, whose training images are changed at random."""
    if not isinstance(task.kind, ImageClasses):
        raise UserError(
            f"{strength:g} changes images, and the task has {task.kind.name}; leave this out",
            argument="image_augmentation",
        )
    return replace(task, kind=replace(task.kind, augmentation=strength))


def _by_vectors(task: Task) -> Task:
    """The task, its pairs answered by the cosine of their texts' sentence vectors; scores go to 0 to 1."""
    train = task.splits["train"]
    if not isinstance(task.kind, Scores) or train.text_b is None:
        raise UserError(
            f"true needs pairs of texts with scores, and {task.name} has "
            f"{task.kind.name if train.text_b else 'single texts'}; leave this out, or give such a task (sts-b)",
            argument="sentence_vectors",
        )
    low, high = min(train.labels), max(train.labels)
    splits = {
        name: replace(split, labels=[(score - low) / (high - low) for score in split.labels])
        for name, split in task.splits.items()
    }
    return replace(task, kind=Similarity(pooling=task.kind.pooling), splits=splits)


def _some_rows(task: Task, count: int, seed: int) -> Task:
    """Keep at most `count` training rows, drawn from the seed; of questions with candidates only whole ones."""
    train, draw = task.splits["train"], random.Random(seed)
    kept: list[int] = []
    if isinstance(task.kind, Ranking):
        candidates = task.kind.groups(train)
        ends = list(accumulate(candidates))
        for question in draw.sample(range(len(ends)), len(ends)):
            if kept and len(kept) + candidates[question] > count:
                break
            kept += range(ends[question] - candidates[question], ends[question])
    else:
        kept = draw.sample(range(len(train)), min(count, len(train)))
    return replace(task, splits=task.splits | {"train": train.part(sorted(kept))})


def _without_fold(task: Task, fold: int, folds: int) -> Task:
    """Leave out one fold of the training rows."""
    train = task.splits["train"]
    check_folds(len(train), folds)
    left_out = set(fold_rows(len(train), fold, folds))
    kept = [i for i in range(len(train)) if i not in left_out]
    return replace(task, splits=task.splits | {"train": train.part(kept)})


def check_folds(rows: int, folds: int) -> None:
    """Raise a UserError where a fold of so many training rows would have fewer than two."""
    if rows < 2 * folds:
        raise UserError(
            f"{folds} folds of {rows} training rows; there must be two rows in each, lower it",
            argument="answers.folds",
        )


def fold_rows(rows: int, fold: int, folds: int) -> list[int]:
    """The numbers of the rows in a fold. Each row is in one fold, drawn at random.

    Example:
        >>> sorted(row for fold in range(3) for row in fold_rows(7, fold, 3))
        [0, 1, 2, 3, 4, 5, 6]
    """
    return sorted(random.Random(folds).sample(range(rows), rows)[fold::folds])


def _hold_out(task: Task, ratio: float, seed: int) -> Task:
    """Move a ratio of the training rows, drawn from the seed, to the split "held_out"."""
    train = task.splits["train"]
    chosen = set(random.Random(seed).sample(range(len(train)), round(ratio * len(train))))
    if not 0 < len(chosen) < len(train):
        raise UserError(
            f"{ratio} of {len(train)} training rows sets {len(chosen)} aside; at least one and not all must be: change it",
            argument="held_out",
        )
    kept = [i for i in range(len(train)) if i not in chosen]
    return replace(
        task, splits=task.splits | {"train": train.part(kept), "held_out": train.part(sorted(chosen))}
    )


def _hide_labels(task: Task, ratio: float, seed: int) -> Task:
    """Move a ratio of the training rows, drawn from the seed, to the split "unlabelled", without their labels."""
    train = task.splits["train"]
    hidden = sorted(random.Random(seed).sample(range(len(train)), round(ratio * len(train))))
    if len(hidden) == len(train):
        raise UserError(
            f"{ratio} of {len(train)} training rows hides all labels; lower it", argument="unlabelled"
        )
    shown = sorted(set(range(len(train))) - set(hidden))
    unknown = [task.kind.hidden(train.labels[i]) for i in hidden]
    parts = {"train": train.part(shown), "unlabelled": replace(train.part(hidden), labels=unknown)}
    return replace(task, splits=task.splits | parts)
