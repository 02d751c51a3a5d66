"""The user's own task: a CSV, TSV or JSONL file, a directory of them, or a task file that names them.

A task file is YAML with the keys train, dev, test (paths relative to it), text (one column or a list of two), label,
type (classification or regression), labels (the class names in order) and metric. Only train, text and label are
required.

Without `type` the metric decides, and without a metric the training labels: a task is a regression if all of them are
numbers and at least one is not whole. Class names are sorted (as numbers if all are), so that the order of the rows
does not matter. Without dev a tenth of train is held out by a hash of the text, so that equal texts stay together.
Rows of train that are also in dev or test, and rows of dev that are also in test, are dropped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import NamedTuple

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.tables import SUFFIXES, read_rows
from stages.tasks.text import check_text, folded, parse_yaml, slug
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

KEYS = ("train", "dev", "test", "text", "label", "type", "labels", "metric")
ROLES = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One labelled row and the line on which it starts."""

    line: int
    texts: tuple[str, ...]
    label: str

    @property
    def key(self) -> str:
        """Equal for rows whose texts count as the same."""
        return "\t".join(folded(text) for text in self.texts)


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the user's own task, None if the request has neither a task file nor data.

    Raises:
        UserError: a file or column is missing, or the task file cannot be understood.
    """
    path, options = Path(request.task), {}
    if path.suffix in (".yaml", ".yml"):
        if request.data or request.text_columns or request.label_column:
            raise UserError(
                f"the task file {path} names its own data and columns; leave data, text_columns and label_column out",
                argument="task",
            )
        options = _read_task_file(path)
        files = {role: path.parent / str(options[role]) for role in ROLES if options.get(role)}
        text, label = _text_columns(options["text"]), str(options["label"])
    elif request.data:
        files = data_files(Path(request.data))
        text, label = list(request.text_columns), request.label_column
    else:
        return None
    for file in files.values():
        if not file.is_file():
            what = "task" if options else "data"
            raise UserError(f"no file {file}; give the path of a {', '.join(SUFFIXES)} file", argument=what)
        _check_columns(file, text, label, ("text", "label") if options else ("text_columns", "label_column"))
    metric = request.metric or str(options.get("metric") or "")
    return TaskSource(
        slug(path.stem if options else request.task or Path(request.data).stem), "files",
        files={role: str(file.resolve()) for role, file in files.items()}, text=text, label=label, metric=metric,
        type=_type(str(options.get("type") or ""), metric), labels=_class_names(options.get("labels")),
    )  # fmt: skip


def _read_task_file(path: Path) -> dict:
    try:
        options = parse_yaml(path.read_text(encoding="utf-8-sig"), f"the task file {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the task file {path} cannot be read: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"the task file {path} must hold keys and values: {', '.join(KEYS)}")
    for key in options:
        if key not in KEYS:
            raise UserError(f"the task file {path} has the unknown key {key!r}; known are {', '.join(KEYS)}")
    for key in ("train", "text", "label"):
        if not options.get(key):
            raise UserError(f"the task file {path} lacks the key {key!r}; add it")
    return options


def _text_columns(value: object) -> list[str]:
    return [str(column) for column in value] if isinstance(value, list) else [str(value)]


def _class_names(labels: object) -> list[str]:
    if labels is None:
        return []
    if not isinstance(labels, list) or any(isinstance(label, bool) for label in labels):
        raise UserError(
            f"{labels!r} is not a list of names; give one, and put yes, no, true and false in quotes",
            argument="labels",
        )
    names = [str(label) for label in labels]
    if len(set(names)) != len(names) or len(names) < 2:
        raise UserError(f"{names} are not two or more different names; give those", argument="labels")
    return names


def _type(type: str, metric: str) -> str:
    """Return "classification", "regression", or "" if the labels decide."""
    known = {"classification": metrics.CLASSIFICATION, "regression": metrics.REGRESSION}
    if type and type not in known:
        raise UserError(f"{type!r} is unknown; choose classification or regression", argument="type")
    allowed = known[type] if type else metrics.CLASSIFICATION + metrics.REGRESSION
    metrics.select(metric, allowed, allowed)
    if metric and not type:
        return "regression" if metric in metrics.REGRESSION else "classification"
    return type


def data_files(data: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """Return role -> file: a file is train's; a directory holds train.* and optionally dev.* and test.*.

    Raises:
        UserError: the directory has no file for train, or two for one role.
    """
    if not data.is_dir():
        return {"train": data}
    files = {}
    for role, stems in ROLES.items():
        found = [data / (stem + suffix) for stem in stems for suffix in suffixes]
        found = [path for path in found if path.is_file()]
        if len(found) > 1:
            raise UserError(
                f"{data} holds both {found[0].name} and {found[1].name}; keep one", argument="data"
            )
        if found:
            files[role] = found[0]
    if "train" not in files:
        raise UserError(
            f"{data} holds no train file; name it train{' or train'.join(suffixes)}", argument="data"
        )
    return files


def _check_columns(path: Path, text: list[str], label: str, names: tuple[str, str]) -> None:
    """Raise a UserError unless a file has the columns; `names` are the arguments that name text and label."""
    _, first = next(read_rows(path), (0, None))
    if first is None:
        raise UserError(f"{path}: no rows; give a file with a header and rows", argument="data")
    there = f"the columns of {path} are {', '.join(map(repr, first))}"
    if not 1 <= len(text) <= 2:
        raise UserError(f"{len(text)} text columns; name 1 or 2: {there}", argument=names[0])
    if not label:
        raise UserError(f"no label column; name it: {there}", argument=names[1])
    for column in (*text, label):
        if column not in first:
            raise UserError(f"no column {column!r}; {there}", argument=names[column not in text])
    if label in text:
        raise UserError(f"column {label!r} cannot be text and label at once; {there}", argument=names[1])


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the user's rows.

    Raises:
        UserError: a row cannot be used (the error names file and line); there is a single class; train lacks a class.
    """
    paths = {role: Path(path) for role, path in source.files.items()}
    rows = {role: _read(path, source.text, source.label) for role, path in paths.items()}
    regression = source.type == "regression"
    if not source.type:
        regression = not source.labels and _looks_like_regression(rows["train"])
    labels = None if regression else source.labels or _sorted_classes(rows["train"])
    values = {role: _values(rows[role], labels, path) for role, path in paths.items()}
    pairs = {role: list(zip(rows[role], values[role], strict=True)) for role in paths}
    if "dev" not in pairs:
        pairs = hold_out(pairs, paths["train"])
    pairs = drop_repeats(pairs)
    _check_spread([value for _, value in pairs["train"]], labels, paths["train"])
    splits = {role: _split(pairs[role]) for role in ROLES if role in pairs}
    known = (metrics.REGRESSION, metrics.REGRESSION) if regression else ()
    names = None if labels is None else tuple(labels)
    return Task(source.name, names, splits, *metrics.select(source.metric, *known))


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
    numbers = [number for row in rows if (number := _number(row.label)) is not None]
    return len(numbers) == len(rows) and any(not number.is_integer() for number in numbers)


def _sorted_classes(rows: list[Row]) -> list[str]:
    names = sorted({row.label for row in rows})
    return names if None in map(_number, names) else sorted(names, key=float)


def _values(rows: list[Row], labels: list[str] | None, path: Path) -> list[int] | list[float]:
    classes = {name: index for index, name in enumerate(labels or ())}
    values = []
    for row in rows:
        value = _number(row.label) if labels is None else classes.get(row.label)
        if value is None:
            known = "a finite number" if labels is None else f"one of train's labels {', '.join(labels)}"
            raise UserError(f"{path}, line {row.line}: label {row.label!r} is not {known:.200}; fix it")
        values.append(value)
    return values


def _check_spread(values: list[int] | list[float], labels: list[str] | None, path: Path) -> None:
    if len(set(values)) < 2:
        only = labels[int(values[0])] if labels else values[0]
        raise UserError(
            f"{path}: every label is {only!r} (without dev and test); give rows with two labels or more"
        )


def hold_out(pairs: dict[str, list], path: Path) -> dict[str, list]:
    """Move a tenth of train to dev, by a hash of the text."""
    splits: dict[str, list] = {"train": [], "dev": []}
    for pair in pairs["train"]:
        tenth = int(hashlib.sha256(("dev" + pair[0].key).encode()).hexdigest(), 16) % 10
        splits["train" if tenth else "dev"].append(pair)
    if not splits["dev"] or not splits["train"]:
        count = len(pairs["train"])
        raise UserError(
            f"{path}: {count} rows are too few to hold out a tenth of them as dev; give a dev file"
        )
    return pairs | splits


def drop_repeats(pairs: dict[str, list]) -> dict[str, list]:
    """Drop rows of train that are also in dev or test, and rows of dev that are also in test."""
    kept: dict[str, list] = {}
    seen: set[str] = set()
    for role in ("test", "dev", "train"):
        if role not in pairs:
            continue
        kept[role] = [pair for pair in pairs[role] if pair[0].key not in seen]
        dropped = len(pairs[role]) - len(kept[role])
        if dropped:
            logger.warning("%d rows of %s dropped: their texts are also in dev or test", dropped, role)
        if not kept[role]:
            raise UserError(f"every row of {role} is also in dev or test; give other rows")
        seen |= {pair[0].key for pair in kept[role]}
    return kept


def _split(pairs: list[tuple[Row, int | float]]) -> Split:
    texts = [list(column) for column in zip(*(row.texts for row, _ in pairs), strict=True)]
    return Split(texts[0], texts[1] if len(texts) == 2 else None, [value for _, value in pairs])
