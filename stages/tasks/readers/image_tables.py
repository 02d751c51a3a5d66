"""Images whose labels stand in a table: `datasets`' image sets, and a `labels.csv` beside image files.

- Parquet files, or what `save_to_disk` wrote, with a column of images as `datasets` writes them. `text_columns` names it,
  if there are several; `label_column` names the labels ("label", if left out).
- A directory `train` with images and a `labels.csv`, and `dev` and `test` beside it if there are some; or one directory
  with both. The first column holds file names, the second labels, unless `text_columns` and `label_column` name others.
- `mnist`, `cifar-10` and `cifar-100` on the hub.

With `metric` of `metrics.SEQUENCES` a label is the string that stands on the image, else its class.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.cells import missing_among
from stages.tasks.hub_datasets import load_hub
from stages.tasks.labelled_rows import Row, checked_unfit_rows, fitting
from stages.tasks.readers.images import check_roles, has_images, image_task, key_of, roles_of
from stages.tasks.split_files import data_files, unread
from stages.tasks.tables import Table, of_dataset, open_table
from stages.tasks.text import slug
from stages.tasks.types import TaskRequest, TaskSource

if TYPE_CHECKING:
    from stages.tasks.types import Task

LABELS = "labels.csv"
TASKS = {
    "mnist": ("ylecun/mnist", "image", "label"),
    "cifar-10": ("uoft-cs/cifar10", "img", "label"),
    "cifar-100": ("uoft-cs/cifar100", "img", "fine_label"),
}
"""Task -> its data set on the hub, its columns of images and labels."""
METRICS = (*metrics.CLASSIFICATION, *metrics.SEQUENCES)
MANY = 20


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of a table of images, None for other data."""
    task, data = request.task.lower().replace("_", "-"), Path(request.data)
    if not request.data and task in TASKS:
        hub, image, label = TASKS[task]
        request.packaged((task,))
        return TaskSource(task, "image_tables", hub=hub, text=[image], label=label, metric=request.metric)
    if not request.data or not data.exists():
        return None
    files = _labelled(data) or _with_images(data, request.text_columns)
    if not files:
        return None
    metrics.select(request.metric, METRICS, METRICS)
    source = TaskSource(
        slug(request.task or data.stem), "image_tables", metric=request.metric,
        files={role: str(file.resolve()) for role, file in files.items()}, text=list(request.text_columns),
        label=request.label_column, unfit_rows=checked_unfit_rows(request.unfit_rows),
    )  # fmt: skip
    for path in files.values():
        _columns(path, _open(path), source)
    return source


def _labelled(data: Path) -> dict[str, Path]:
    """Role -> its directory with images and `LABELS`; none where there is no such file."""
    if _is_labelled(data):
        return {"train": data}
    files = roles_of(data) if data.is_dir() else {}
    having = [path for path in files.values() if _is_labelled(path)]
    if not having:
        return {}
    check_roles(data, files if "train" in files else {"none/": having[0]})
    for path in files.values():
        if path not in having:
            raise UserError(f"{path} has no {LABELS}, but {having[0]} has one; add it", argument="data")
    return files


def _with_images(data: Path, named: tuple[str, ...]) -> dict[str, Path]:
    """Role -> its table, Parquet or saved by `datasets`; empty if the table lacks a column of images, or the named one."""
    try:
        files = data_files(data)
        if not files["train"].is_dir() and files["train"].suffix.lower() != ".parquet":
            return {}
        images = open_table(files["train"]).images
    except UserError:  # the reader whose data it is tells what is wrong with it
        return {}
    return files if images and (not named or set(named) & set(images)) else {}


def _is_labelled(path: Path) -> bool:
    """Whether it is a directory with `LABELS` and images, in it or in directories of it; not a text task's.

    Beside directories of images alone the table must name some of them: it may as well name their classes.
    """
    if not (path / LABELS).is_file() or has_images(path):
        return (path / LABELS).is_file()
    if not any(of.is_dir() and has_images(of) for of in path.iterdir()):
        return False
    first = list(islice(open_table(path / LABELS).rows, MANY))
    return not first or any(os.path.isfile(path / str(cell)) for _, row in first for cell in row.values())


def _open(path: Path) -> Table:
    return open_table(path / LABELS if _is_labelled(path) else path)


def _columns(path: Path, table: Table, source: TaskSource) -> tuple[str, str]:
    """The columns of the images, or of their files' names, and of the labels.

    Raises:
        UserError: they are not there, or which they are is not clear.
    """
    possible, label = list(table.images), "label"
    image = possible[0] if len(possible) == 1 else ""
    if not source.hub and _is_labelled(path):
        possible = table.columns
        image, second = (*possible, "", "")[:2]
        label = label if label in possible else second
        if not possible:
            raise UserError(
                f"{path / LABELS} is empty; write a line 'file,label', and a line an image", argument="data"
            )
        if not image and not source.text:
            raise UserError(
                f"the first column of {path / LABELS} has no name; give the column of file names with "
                "text_columns=, and that of labels with label_column=",
                argument="text_columns",
            )
    image, label = source.text[0] if source.text else image, source.label or label
    there = f"the columns of {path} are {', '.join(f'{name!r:.40}' for name in table.columns)}"
    if len(source.text) > 1 or not image or image not in possible:
        said = (
            f"{', '.join(source.text)!r} is not"
            if source.text
            else f"{len(table.images)} columns of images, not"
        )
        raise UserError(f"{said} one column of images; name one: {there}", argument="text_columns")
    if not label or label not in table.columns or label == image:
        raise UserError(f"no label column {label!r}; name it: {there}", argument="label_column")
    return image, label


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the rows, with the images as bytes or as paths of files."""
    if source.hub:
        instead = "give the Parquet files of an image set as data"
        sets = load_hub(source.hub, None, revision, instead, argument="data")
        named = {role: Path(source.hub, role) for role in ("train", "test")}
        tables = {role: of_dataset(path, sets[role]) for role, path in named.items()}
    else:
        named = {role: Path(path) for role, path in source.files.items()}
        tables = {role: _open(path) for role, path in named.items()}
    rows: dict[str, list[Row]] = {}
    notes: list[str] = []
    for key, path in named.items():
        image, label = _columns(path, tables[key], source)
        read = list(_rows(path, tables[key], image, label))
        rows.setdefault(key.partition(".")[0], []).extend(read)
        notes.append(f"{key}: {path.name}, {len(read):,} images in {image!r}, labels in {label!r}")
    notes += [] if source.hub or _is_labelled(named["train"]) else unread(source)
    if source.metric not in metrics.SEQUENCES:
        known = Counter(row.label for row in rows["train"] if row.label)
        rows = {role: _judged(of, known) for role, of in rows.items()}
    if "test" in rows and not any(row.label for row in rows["test"]):
        notes.append("the test images are not used: they have no labels")
        del rows["test"]
    rows = {role: list(map(_named, fitting(of, source, role, notes))) for role, of in rows.items()}
    labels = {row.label for row in rows["train"]}
    if source.metric in metrics.SEQUENCES:
        return image_task(source, rows, notes, sorted(set("".join(labels))))
    if len(labels) > MANY and 2 * len(labels) > len(rows["train"]):
        raise UserError(
            f"{len(labels):,} different labels of {len(rows['train']):,} images: name another column, or "
            "metric=character_accuracy if they are strings to be read",
            argument="label_column",
        )
    numbers = all(name.isdecimal() for name in labels)
    classes = sorted(labels, key=lambda name: (int(name) if numbers else 0, name))
    return image_task(source, rows, notes, classes)


def _judged(rows: list[Row], known: Counter[str]) -> list[Row]:
    """The rows, with no label where the whole column tells that there is none; `known` are train's labels."""
    counts = Counter(row.label for row in rows if row.label)
    gone = missing_among(counts, known)
    said = "the label {!r} says that there is none (rename it if it is a class)"
    return [
        row._replace(label="", unfit=said.format(row.label)) if row.label in gone else row for row in rows
    ]


def _named(row: Row) -> Row:
    """The row, by the name of its image's file if it has one of its own."""
    return row._replace(line=0, path=row.value) if isinstance(row.value, Path) else row


def _rows(path: Path, table: Table, image: str, label: str) -> Iterator[Row]:
    """The rows of a table with their images, empty where they are unfit."""
    seen: set[str] = set()
    for line, row in table.rows:
        cell, given = row[image], row[label]
        if isinstance(given, float) and given.is_integer():  # of a column that had a gap
            given = int(given)
        name = "" if given is None or given != given else str(given).strip()
        unfit = "" if isinstance(given, (str, int)) else f"label {given!r:.40} is not one name"
        unfit = unfit if name else "the label is empty"
        if table.images:
            content = cell.get("bytes") if isinstance(cell, dict) else None
            if not content:
                unfit = f"{image!r} holds no image" + (", but a path" if cell else "")
            yield Row(line, (key_of(content or b""),), name, path, unfit, value=content or b"")
            continue
        file = path / str(cell)
        if not str(cell).strip() or Path(str(cell)).is_absolute() or ".." in file.parts[len(path.parts) :]:
            unfit = f"{cell!r:.60} does not name a file in this directory"
        elif not os.path.isfile(file):  # Path's own raises for long names
            unfit = f"there is no file {str(file)!r}"
        elif str(file) in seen:
            unfit = f"{cell!r:.60} is there twice"
        seen.add(str(file))
        key = "" if unfit else key_of(file.read_bytes())
        yield Row(line, (key,), name, path / LABELS, unfit, value=b"" if unfit else file)
