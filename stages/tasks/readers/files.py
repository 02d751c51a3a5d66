"""The user's own task: a CSV, TSV or JSONL file, a directory of them, or a task file that names them.

A task file is YAML with the keys train, dev, test (paths, relative to it), text (a column or two), label,
type (classification or regression), labels (the class names in order) and metric; all but train, text and
label may be left out.

Without `type` a metric decides, and without that the training labels: it is regression where all of them are
numbers and at least one is not whole. Class names are sorted (as numbers where all are), so that the order of
the rows does not matter. Without dev a tenth of train is held out by a hash of the text, so that equal texts
stay together. Rows of train that stand in dev or test, and rows of dev that stand in test, are dropped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from pathlib import Path
from typing import NamedTuple

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.readers.tables import SUFFIXES, read_rows
from stages.tasks.text import check_text, folded, parse_yaml
from stages.tasks.types import Split, Task, TaskSource

KEYS = ("train", "dev", "test", "text", "label", "type", "labels", "metric")
ROLES = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
VERSION = 1
logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One labelled row and the line it began at."""

    line: int
    texts: tuple[str, ...]
    label: str

    @property
    def key(self) -> str:
        """What two rows share when their texts are the same."""
        return "\t".join(folded(text) for text in self.texts)


def find(
    name: str, data: str, text_columns: tuple[str, ...], label_column: str, metric: str
) -> TaskSource | None:
    """Return the source of the user's own task, None where neither a task file nor `data` is given.

    Raises:
        UserError: missing files or columns, a task file that cannot be understood.
    """
    if name.endswith((".yaml", ".yml")):
        if data or text_columns or label_column:
            raise UserError(f"the task file {name} names its own data and columns; leave them out")
        options = _read_task_file(Path(name))
        files = {role: Path(name).parent / str(options[role]) for role in ROLES if options.get(role)}
        text_columns, label_column = _text_columns(options["text"]), str(options["label"])
        title, metric = Path(name).stem, metric or str(options.get("metric") or "")
    elif data:
        options, files, title = {}, data_files(Path(data)), name or Path(data).stem
    else:
        return None
    for path in files.values():
        if not path.is_file():
            raise UserError(f"no file {path}; give the path of a {', '.join(SUFFIXES)} file")
        _check_columns(path, text_columns, label_column)
    kind = _kind(str(options.get("type") or ""), metric)
    identity = {
        "reader": "files",
        "version": VERSION,
        "files": {role: str(path.resolve()) for role, path in files.items()},
        "text": list(text_columns),
        "label": label_column,
        "type": kind,
        "labels": _class_names(options.get("labels")),
        "metric": metric,
    }
    return TaskSource(re.sub("[^a-z0-9]+", "-", title.lower()).strip("-") or "task", identity)


def _read_task_file(path: Path) -> dict:
    try:
        options = parse_yaml(path.read_text(encoding="utf-8-sig"), f"the task file {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the task file {path} cannot be read: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"the task file {path} must hold keys and values: {', '.join(KEYS)}")
    for key in options:
        if key not in KEYS:
            raise UserError(f"the task file {path} has an unknown key {key!r}; known are {', '.join(KEYS)}")
    for key in ("train", "text", "label"):
        if not options.get(key):
            raise UserError(f"the task file {path} lacks the key {key!r}")
    return options


def _text_columns(value: object) -> tuple[str, ...]:
    return tuple(str(column) for column in value) if isinstance(value, list) else (str(value),)


def _class_names(labels: object) -> list[str] | None:
    if labels is None:
        return None
    if not isinstance(labels, list) or any(isinstance(label, bool) for label in labels):
        raise UserError(f"labels {labels!r} must be a list of names; put yes, no, true and false in quotes")
    names = [str(label) for label in labels]
    if len(set(names)) != len(names) or len(names) < 2:
        raise UserError(f"labels {names} must be two or more different names")
    return names


def _kind(kind: str, metric: str) -> str:
    """Return "classification", "regression", or "" where the labels have to tell."""
    known = {"classification": metrics.CLASSIFICATION, "regression": metrics.REGRESSION}
    if kind and kind not in known:
        raise UserError(f"type {kind!r} is unknown; choose classification or regression")
    allowed = known[kind] if kind else metrics.CLASSIFICATION + metrics.REGRESSION
    metrics.select(metric, allowed, allowed)
    if metric and not kind:
        kind = "regression" if metric in metrics.REGRESSION else "classification"
    return kind


def data_files(data: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """Role -> file of what the user gave: a file, or a directory with train.* and, if there are any, dev.* and test.*.

    Raises:
        UserError: the directory has none for train, or two for one role.
    """
    if not data.is_dir():
        return {"train": data}
    files = {}
    for role, stems in ROLES.items():
        found = [data / (stem + suffix) for stem in stems for suffix in suffixes]
        found = [path for path in found if path.is_file()]
        if len(found) > 1:
            raise UserError(f"{data} holds both {found[0].name} and {found[1].name}; keep one of them")
        if found:
            files[role] = found[0]
    if "train" not in files:
        raise UserError(f"{data} holds no train file; name it train{', train'.join(suffixes)}")
    return files


def _check_columns(path: Path, text_columns: tuple[str, ...], label_column: str) -> None:
    _, first = next(read_rows(path), (0, None))
    if first is None:
        raise UserError(f"{path}: no rows; give a file with a header and rows")
    there = f"the columns of {path} are {', '.join(map(repr, first))}"
    if not text_columns or not label_column:
        raise UserError(
            f"this is no GLUE or packaged task, so name its text columns (1 or 2) and label column; {there}"
        )
    if len(text_columns) > 2:
        raise UserError(f"{len(text_columns)} text columns {text_columns}, at most 2; {there}")
    for column in (*text_columns, label_column):
        if column not in first:
            raise UserError(f"no column {column!r}; {there}")
    if label_column in text_columns:
        raise UserError(f"column {label_column!r} cannot be text and label at once; {there}")


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the user's rows.

    Raises:
        UserError: a row that cannot be used, naming file and line; a single class; a class that train lacks.
    """
    options = source.identity
    paths = {role: Path(path) for role, path in options["files"].items()}
    rows = {role: _read(path, options["text"], options["label"]) for role, path in paths.items()}
    regression = options["type"] == "regression"
    if not options["type"]:
        regression = options["labels"] is None and _looks_like_regression(rows["train"])
    labels = None if regression else options["labels"] or _sorted_classes(rows["train"])
    values = {role: _values(rows[role], labels, path) for role, path in paths.items()}
    pairs = {role: list(zip(rows[role], values[role], strict=True)) for role in paths}
    if "dev" not in pairs:
        pairs = hold_out(pairs, paths["train"])
    pairs = drop_repeats(pairs)
    _check_spread([value for _, value in pairs["train"]], labels, paths["train"])
    splits = {role: _split(pairs[role]) for role in ROLES if role in pairs}
    defaults, allowed = ("accuracy", "f1"), metrics.CLASSIFICATION
    if regression:
        defaults = allowed = metrics.REGRESSION
    reported, selection = metrics.select(options["metric"], defaults, allowed)
    return Task(source.name, None if regression else tuple(labels), splits, reported, selection)


def _read(path: Path, text_columns: list[str], label_column: str) -> list[Row]:
    rows = []
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        for column in (*text_columns, label_column):
            if column not in row:
                raise UserError(f"{where}: no {column!r}; this row has {', '.join(map(repr, row))}")
        texts = tuple(check_text(row[column], f"{where}: {column!r}") for column in text_columns)
        for column, text in zip(text_columns, texts, strict=True):
            if not text.strip():
                raise UserError(f"{where}: {column!r} is empty; fill it or remove the row")
        label = row[label_column]
        label = "" if label is None else label if isinstance(label, str) else json.dumps(label)
        if not label.strip():
            raise UserError(f"{where}: the label {label_column!r} is empty; fill it or remove the row")
        rows.append(Row(line, texts, check_text(label, f"{where}: {label_column!r}").strip()))
    return rows


def _number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _looks_like_regression(rows: list[Row]) -> bool:
    numbers = [_number(row.label) for row in rows]
    return None not in numbers and any(not number.is_integer() for number in numbers)


def _sorted_classes(rows: list[Row]) -> list[str]:
    names = sorted({row.label for row in rows})
    return names if None in map(_number, names) else sorted(names, key=float)


def _values(rows: list[Row], labels: list[str] | None, path: Path) -> list[int] | list[float]:
    classes = {name: place for place, name in enumerate(labels or ())}
    values = []
    for row in rows:
        value = _number(row.label) if labels is None else classes.get(row.label)
        if value is None:
            known = "a finite number" if labels is None else f"one of train's labels {', '.join(labels)}"
            raise UserError(f"{path}, line {row.line}: label {row.label!r} is not {known:.200}; mend it")
        values.append(value)
    return values


def _check_spread(values: list[int] | list[float], labels: list[str] | None, path: Path) -> None:
    if len(set(values)) < 2:
        only = labels[values[0]] if labels else values[0]
        raise UserError(f"{path}: every label is {only!r} (without dev and test); give rows with two or more")


def hold_out(pairs: dict[str, list], path: Path) -> dict[str, list]:
    """Move a tenth of train to dev, by the hash of the text."""
    sides: dict[str, list] = {"train": [], "dev": []}
    for pair in pairs["train"]:
        tenth = int(hashlib.sha256(("dev" + pair[0].key).encode()).hexdigest(), 16) % 10
        sides["train" if tenth else "dev"].append(pair)
    if not sides["dev"] or not sides["train"]:
        count = len(pairs["train"])
        raise UserError(
            f"{path}: {count} rows are too few to hold out a tenth of them as dev; give a dev file"
        )
    return pairs | sides


def drop_repeats(pairs: dict[str, list]) -> dict[str, list]:
    """Drop from train what stands in dev or test, and from dev what stands in test."""
    kept, seen = {}, set()
    for role in ("test", "dev", "train"):
        if role not in pairs:
            continue
        kept[role] = [pair for pair in pairs[role] if pair[0].key not in seen]
        dropped = len(pairs[role]) - len(kept[role])
        if dropped:
            logger.warning("%d rows of %s dropped: their texts stand in dev or test too", dropped, role)
        if not kept[role]:
            raise UserError(f"every row of {role} stands in dev or test too; give other rows")
        seen |= {pair[0].key for pair in kept[role]}
    return kept


def _split(pairs: list[tuple[Row, int | float]]) -> Split:
    texts = [list(column) for column in zip(*(row.texts for row, _ in pairs), strict=True)]
    return Split(texts[0], texts[1] if len(texts) == 2 else None, [value for _, value in pairs])
