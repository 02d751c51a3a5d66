"""The user's own task: a table, a directory of tables or of saved `datasets`, or a task file that names them.

A task file is YAML with the keys train, dev, test (paths relative to it), text (one column or a list of two), label,
type (classification, multi_label, ranking or regression), labels (the class names in order), positive_label, metric,
encoding, delimiter, unfit_rows, label_columns, label_separator and columns. Only train, text and a label are
required.

Without `type` the metric decides, and without a metric the training labels: a task is a regression if nine of ten of
them are numbers and at least one is not whole. Class names are sorted (as numbers if all are), so that the order of
the rows does not matter. A row has several labels where the type or the metric says so, where there are label columns
or a separator, and without a type where every label is a list and one of them holds another number than one. Their
names may also be written as numbers from 0, their places among the given `labels`. Rows that do not fit are refused
or, with `unfit_rows`, left out: those without a text, whose label is missing (empty, NA, or a -1 that does not look
like a class of its own), is several labels, or is not a number where the others are. Without dev a tenth of train is
held out by a hash of the text, so that equal texts stay together; of a small file 30 rows, at most a quarter. Rows of
train that are also in dev or test, and rows of dev that are also in test, are dropped.

In a ranking the first text is a question and the second one of its candidates, right or wrong. Its rows are put together;
the candidates of a question are held out, or dropped, all or none. Questions without a right candidate are left out, and
in dev and test those without a wrong one.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.cells import (
    MISSING,
    NEARLY_ALL,
    SOME_CLASSES,
    are_scores,
    columns_of_ones,
    far_scores,
    is_no_score,
    is_stray,
    label_of,
    missing_among,
    number,
    way_of_writing,
)
from stages.tasks.kinds import Classes, Kind, LabelSets, Ranking, Scores
from stages.tasks.labelled_rows import (
    Row,
    checked_unfit_rows,
    counts_of_classes,
    fitting,
    notes_of_classes,
    parted,
    splits_of,
)
from stages.tasks.split_files import ROLES, data_files, shown, unread
from stages.tasks.tables import SUFFIXES, Table, open_table
from stages.tasks.text import as_argument, check_text, folded, parse_yaml, slug
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

VERSION = 5
KEYS = ("train", "dev", "test", "text", "label", "type", "metric", *TaskRequest.OF_TABLES)
TYPES: dict[str, type[Kind]] = {
    "classification": Classes,
    "multi_label": LabelSets,
    "ranking": Ranking,
    "regression": Scores,
}
MANY = 40  # columns that a message names


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the user's own task, None if the request has neither a task file nor data."""
    path, options = Path(request.task), {}
    if path.suffix in (".yaml", ".yml"):
        if request.data or request.text_columns or request.label_column:
            raise UserError(
                f"the task file {path} names its own data and columns; leave data, text_columns and label_column out",
                argument="task",
            )
        options = _read_task_file(path)
        files = {role: path.parent / str(options[role]) for role in ROLES if options.get(role)}
        named = options["text"] if isinstance(options["text"], list) else [options["text"]]
        text, label = [str(column) for column in named], str(options.get("label") or "")
    elif request.data:
        files = data_files(Path(request.data))
        text, label = list(request.text_columns), request.label_column
    else:
        return None
    given = {name: getattr(request, name) or options.get(name) or "" for name in TaskRequest.OF_TABLES}
    several = _column_names(given["label_columns"], "label_columns")
    metric = request.metric or str(options.get("metric") or "")
    separator = str(given["label_separator"])
    source = TaskSource(
        slug(path.stem if options else request.task or Path(request.data).stem), "files", VERSION,
        files={role: str(file.resolve()) for role, file in files.items()}, text=text, label=label, metric=metric,
        type=_type(str(options.get("type") or (several or separator) and "multi_label" or ""), metric),
        labels=several or _class_names(given["labels"] or None), label_columns=several, label_separator=separator,
        columns=_column_names(given["columns"], "columns"),
        positive_label=str(given["positive_label"]), encoding=str(given["encoding"]),
        delimiter=str(given["delimiter"]), unfit_rows=checked_unfit_rows(str(given["unfit_rows"])),
    )  # fmt: skip
    _check_labels_given(source, bool(given["labels"]))
    for role, file in files.items():
        if not (file.is_file() or (file / "state.json").is_file()):
            what = "task" if options else "data"
            raise UserError(f"no file {file}; give the path of a {', '.join(SUFFIXES)} file", argument=what)
        _check_columns(file, source, ("text", "label") if options else ("text_columns", "label_column"), role)
    return source


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
        if not options.get(key) and not (key == "label" and options.get("label_columns")):
            raise UserError(f"the task file {path} lacks the key {key!r}; add it")
    return options


def _column_names(value: object, argument: str) -> list[str]:
    if not value:
        return []
    names = [str(name) for name in value] if isinstance(value, (list, tuple)) else []
    if not names or len(set(names)) != len(names):
        raise UserError(f"{value!r} is not a list of different names of columns; give one", argument=argument)
    return names


def _check_labels_given(source: TaskSource, named: bool) -> None:
    """Raise a UserError where what is said of the labels does not go together."""
    several = source.type == "multi_label"
    if source.label_columns and (source.label or source.label_separator or named):
        raise UserError(
            f"{', '.join(source.label_columns):.200} are the labels; leave label_column, label_separator and labels out",
            argument="label_columns",
        )
    if len(source.label_columns) == 1:
        raise UserError(
            f"{source.label_columns[0]!r} is one column; name two or more, or give label_column for one label a row",
            argument="label_columns",
        )
    if not several and (source.label_columns or source.label_separator):
        raise UserError(
            f"{source.metric or source.type!r} is for one label a row; with label_columns or label_separator choose one of "
            f"{', '.join(metrics.LABEL_SETS)}",
            argument="metric",
        )
    if several and source.positive_label:
        raise UserError(
            f"{source.positive_label!r}: no label is the positive one where a row has several; leave it out",
            argument="positive_label",
        )
    _positive_last(source.labels, source.positive_label)


def _class_names(labels: object) -> list[str]:
    if labels is None:
        return []
    if not isinstance(labels, (list, tuple)) or any(isinstance(label, bool) for label in labels):
        raise UserError(
            f"{labels!r} is not a list of names; give one, and put yes, no, true and false in quotes",
            argument="labels",
        )
    names = [str(label) for label in labels]
    if len(set(names)) != len(names) or len(names) < 2:
        raise UserError(f"{names} are not two or more different names; give those", argument="labels")
    return names


def _positive_last(labels: list[str], positive: str) -> list[str]:
    """Two classes with the positive one second, of which F1 is."""
    if not positive or not labels:
        return labels
    if len(labels) != 2 or positive not in labels:
        raise UserError(
            f"{positive!r} is not one of two classes ({', '.join(labels):.200}); name one of two, or leave it out (with "
            "more classes F1 is the mean over all)",
            argument="positive_label",
        )
    return sorted(labels, key=lambda name: name == positive)


def _type(type: str, metric: str) -> str:
    """Return "classification", "multi_label", "ranking", "regression", or "" if the labels decide."""
    known = {kind: of.selectable for kind, of in TYPES.items()}
    if type and type not in known:
        raise UserError(f"{type!r} is unknown; choose one of {', '.join(known)}", argument="type")
    allowed = known[type] if type else tuple(chain.from_iterable(known.values()))
    metrics.select(metric, allowed, allowed)
    if metric and not type:
        return next(kind for kind, names in known.items() if metric in names)
    return type


def _check_columns(path: Path, source: TaskSource, names: tuple[str, str], role: str) -> None:
    """Raise a UserError unless a file has the columns; `names` are the arguments that name text and label."""
    text, labels = source.text, source.label_columns or [source.label]
    table = _open(path, source)
    columns = table.columns
    if next(table.rows, None) is None:
        raise UserError(f"{path}: no rows; give a file with a header and rows", argument="data")
    more = f", ... ({len(columns):,} in all)" if len(columns) > MANY else ""
    there = f"the columns of {path} are {', '.join(f'{name!r:.40}' for name in columns[:MANY])}{more}"
    if not 1 <= len(text) <= 2:
        raise UserError(f"{len(text)} text columns; name 1 or 2: {there}", argument=names[0])
    if len({*text}) < len(text):
        raise UserError(f"{text[0]!r} twice; name two different columns, or one: {there}", argument=names[0])
    if source.type == "ranking" and len(text) != 2:
        raise UserError(
            f"{text[0]!r} alone: a ranking reads a question and a candidate; name two: {there}",
            argument=names[0],
        )
    if not labels[0]:
        raise UserError(f"no label column; name it: {there}", argument=names[1])
    of_labels = "label_columns" if source.label_columns else names[1]
    for column in (*text, *labels):
        argument = names[0] if column in text else of_labels
        if columns.count(column) > 1:
            raise UserError(f"{path} names a column twice: {column!r}; rename one", argument=argument)
        if column not in columns and not (column in labels and role.startswith("test")):
            hint = (
                " (if its first line is a row already, add a header line, or name its columns with columns=)"
                if table.headed
                else ""
            )
            raise UserError(f"no column {column!r}; {there}{hint}", argument=argument)
    if both := set(labels) & set(text):
        raise UserError(f"column {min(both)!r} cannot be text and label at once; {there}", argument=of_labels)


def _open(path: Path, source: TaskSource) -> Table:
    wanted = (*source.text, *(source.label_columns or [source.label]))
    return open_table(path, source.encoding, source.delimiter, wanted, source.columns)


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the user's rows."""
    rows: dict[str, list[Row]] = {}
    notes: list[str] = []
    for key, name in source.files.items():
        role, path = key.partition(".")[0], Path(name)
        read, said = _read(path, source, notes)
        rows.setdefault(role, []).extend(read)
        notes.append(f"{role}: {shown(path)}, {len(read):,} rows{said and ', read ' + said}")
    notes += unread(source)
    if length := _length_of_vectors(rows):
        return _of_several_labels(*_named_places(source, rows, length, notes), notes)
    if source.type == "multi_label" or not source.type and _are_lists(rows["train"]):
        return _of_several_labels(source, rows, notes)
    if source.type not in ("classification", "ranking") and not source.labels:
        rows = _plain_numbers(rows, notes)
    regression = source.type == "regression"
    if not source.type:
        regression = not source.labels and are_scores([row.label for row in rows["train"] if not row.unfit])
    if regression and source.positive_label:
        raise UserError(
            f"{source.positive_label!r}: scores have no positive class; leave it out, or give metric=f1",
            argument="positive_label",
        )
    if not regression:
        rows = _same_numbers(rows, source.labels)
    known = Counter(row.label for row in rows["train"] if not row.unfit)
    rows = {role: _judged(of, regression, source, known) for role, of in rows.items()}
    if "test" in rows and all(row.unfit for row in rows["test"]):
        notes.append(f"the test file is not used: its rows have no labels in {source.label!r}")
        del rows["test"]
    rows = {role: fitting(of, source, role, notes) for role, of in rows.items()}
    labels = None if regression else source.labels or _sorted_classes(rows["train"], source)
    kind: Kind = Scores()
    if labels:
        labels = _positive_last(labels, source.positive_label)
        kind = Ranking(tuple(labels)) if source.type == "ranking" else Classes(tuple(labels))
    return _task(source, kind, {role: _with_values(of, labels) for role, of in rows.items()}, notes)


def _task(source: TaskSource, kind: Kind, rows: dict[str, list[Row]], notes: list[str]) -> Task:
    """The task of rows with their values."""
    train = Path(source.files["train"])
    ranks = isinstance(kind, Ranking)
    if ranks and len(kind.labels or ()) != 2:
        raise UserError(
            f"{train}: {len(kind.labels or ())} labels; a ranking has two, wrong and right: give such a column",
            argument="label_column",
        )
    rows = parted(rows, train, "rows", notes, text=0 if ranks else None)
    if ranks:
        rows = {role: _questions(of, role, notes) for role, of in rows.items()}
    splits = splits_of(rows)
    if len(found := {*splits["train"].labels}) < 2:
        raise UserError(
            f"{train}: every label is {kind.written(found.pop())!r} (without dev and test); give rows with two labels or more"
        )
    if not kind.labels:
        kind = Scores.of(splits["train"].labels)
        notes.append(f"scores in train: mean {kind.scale[0]:.4g}, standard deviation {kind.scale[1]:.4g}")
        for role, of in rows.items():
            scores = [(row.value, f"{shown(row.path)}, line {row.line}") for row in of]
            notes += far_scores(role, scores, splits["train"].labels)
    reported = metrics.select(source.metric, kind.reported, kind.selectable)
    if kind.labels:
        notes += _of_classes(kind, splits, "f1" in reported[0])
    return Task(source.name, kind, splits, *reported, notes=tuple(notes))


def _questions(rows: list[Row], role: str, notes: list[str]) -> list[Row]:
    """The rows of the questions that can be ranked, those of one question together."""
    questions: dict[str, list[Row]] = {}
    for row in rows:
        questions.setdefault(row.texts[0], []).append(row)
    enough = {1} if role == "train" else {0, 1}
    kept = [of for of in questions.values() if enough <= {row.value for row in of}]
    if not kept:
        raise UserError(
            f"{rows[0].path}: no question of {role} has a right{'' if role == 'train' else ' and a wrong'} "
            "candidate; add some, or name the label of right ones with positive_label="
        )
    total = sum(map(len, kept))
    note = f"{role}: {len(kept):,} questions with {total:,} candidates, {total / len(kept):.1f} each"
    if left := len(questions) - len(kept):
        note += (
            f"; {left:,} without {'a right' if role == 'train' else 'a right or a wrong'} candidate left out"
        )
    notes.append(note)
    return [row for of in kept for row in of]


def _are_lists(rows: list[Row]) -> bool:
    """Whether the labels are lists, some of another length than one."""
    labels = [row.names for row in rows if row.names is not None or row.label]
    return None not in labels and any(len(names or ()) != 1 for names in labels)


def _length_of_vectors(rows: dict[str, list[Row]]) -> int:
    """The length of nearly all labels, where these are lists of 0 and 1 of one length above 1; else 0."""
    usable = [row for of in rows.values() for row in of if row.names or row.label]
    lengths = Counter(len(row.names or ()) for row in usable if _is_vector(row.names))
    length, count = next(iter(lengths.most_common(1)), (0, 0))
    return length if count and count >= NEARLY_ALL * len(usable) else 0


def _is_vector(names: tuple[str, ...] | None) -> bool:
    return len(names or ()) > 1 and set(names or ()) <= {"0", "1", "0.0", "1.0"}


def _named_places(
    source: TaskSource, rows: dict[str, list[Row]], length: int, notes: list[str]
) -> tuple[TaskSource, dict[str, list[Row]]]:
    """The task and its rows, whose labels are the places of the ones in vectors."""
    if source.labels and len(source.labels) != length:
        raise UserError(
            f"{len(source.labels)} names for rows of {length} zeros and ones; give {length} names",
            argument="labels",
        )
    names = source.labels or [str(place) for place in range(length)]
    if not source.labels:
        notes.append(
            f"labels are vectors of {length} numbers, 0 or 1: their places are the names (labels= gives others)"
        )

    def named(row: Row) -> Row:
        if row.unfit and not row.names and not row.label:
            return row
        if not _is_vector(row.names) or len(row.names or ()) != length:
            return row._replace(names=None, label="", unfit=f"label is no list of {length} numbers, 0 or 1")
        return row._replace(
            names=tuple(n for n, one in zip(names, row.names or (), strict=True) if float(one))
        )

    return replace(source, labels=names), {role: list(map(named, of)) for role, of in rows.items()}


def _of_several_labels(source: TaskSource, rows: dict[str, list[Row]], notes: list[str]) -> Task:
    """The task of rows with several labels each."""
    rows = {role: [_with_names(row, source) for row in of] for role, of in rows.items()}
    counts = Counter(name for of in rows.values() for row in of for name in row.names or ())
    missing = set() if source.labels else missing_among(counts)
    rows = {role: [_without_missing(row, missing) for row in of] for role, of in rows.items()}
    if "test" in rows and all(row.names is None for row in rows["test"]):
        notes.append("the test file is not used: its rows have no labels")
        del rows["test"]
    rows = {role: fitting(of, source, role, notes) for role, of in rows.items()}
    labels = source.labels or sorted({name for row in rows["train"] for name in row.names or ()})
    if len(labels) < 2:
        raise UserError(
            f"{source.files['train']}: the only label is {', '.join(labels)!r}; give rows with two labels or more"
        )
    for row in (row for of in rows.values() for row in of):
        for name in set(row.names or ()) - set(labels):
            raise UserError(
                f"{row.where}: label {name!r} is not one of train's labels {_some(labels)}; fix it, add such rows to "
                f"train, or {_naming([*labels, name])}"
            )

    def valued(row: Row) -> Row:
        return row._replace(value=tuple(float(name in (row.names or ())) for name in labels))

    rows = {role: list(map(valued, of)) for role, of in rows.items()}
    each = sum(len(row.names or ()) for row in rows["train"]) / len(rows["train"])
    notes.append(f"several labels a row: {len(labels)} labels, {each:.2f} a row in train")
    return _task(source, LabelSets(tuple(labels)), rows, notes)


def _without_missing(row: Row, missing: set[str]) -> Row:
    """A row, unfit where one of its labels says that there is none."""
    found = next((name for name in row.names or () if name in missing), None)
    if found is None or row.unfit:
        return row
    return row._replace(unfit=f"label {found!r} looks like a missing one")


def _with_names(row: Row, source: TaskSource) -> Row:
    """A row with the names of its labels, where it can be used."""
    names, unfit = row.names, row.unfit
    if not source.labels and any(not (number(name) or 0.0).is_integer() for name in names or ()):
        return row._replace(
            names=None,
            label="",
            unfit="label is a list of numbers that are not whole (if they are names, labels= lists them)",
        )
    if len(set(names or ())) < len(names or ()):
        return row._replace(
            names=None, label="", unfit=f"label is a list with a name twice ({', '.join(names or ()):.60})"
        )
    if names is None and row.label:
        inside = re.fullmatch(r"\[([^\[\]]*)\]", row.label)  # beside [joy, anger] stands [joy]
        names = (inside[1] if inside and row.label not in source.labels else row.label,)
    elif names is not None and unfit.startswith("the label"):
        unfit = ""
    if names is None or unfit or not source.labels:
        return row._replace(names=names, unfit=unfit)
    places = {str(place): name for place, name in enumerate(source.labels)}
    if not set(source.labels) & set(places):  # else a number is a name
        names = tuple(places.get(name, name) for name in names)
    unknown = [name for name in names if name not in source.labels]
    if unknown:
        unfit = f"label {unknown[0]!r} is not one of labels, which are {', '.join(source.labels):.200}"
    return row._replace(names=names, unfit=unfit)


def _read(path: Path, source: TaskSource, notes: list[str]) -> tuple[list[Row], str]:
    """The rows of a file, and how it is read where that is unusual."""
    table, label_columns = _open(path, source), source.label_columns or [source.label]
    rows, answers = [], []
    for line, row in tqdm(
        table.rows, f"reading {path.name}", unit=" rows", delay=2, leave=False, disable=None
    ):
        where = f"{path}, line {line}"
        if all(
            str(row.get(c) or "").strip().casefold() == c.casefold() for c in (*source.text, *label_columns)
        ):
            raise UserError(
                f"{where}: this row is the header; remove it (columns= is for files without a header line)"
            )
        cells = [row.get(column) for column in source.text]
        cells = ["" if cell is None or cell != cell else cell for cell in cells]  # null, and pandas' NaN
        texts = tuple(
            check_text(cell, f"{where}: {column!r}") for column, cell in zip(source.text, cells, strict=True)
        )
        empty = next((c for c, text in zip(source.text, texts, strict=True) if not text.strip()), None)
        if source.label_columns:
            label, (names, unfit) = "", columns_of_ones({name: row.get(name) for name in label_columns})
        else:
            label, names, unfit = label_of(row.get(source.label), source.labels, source.label_separator)
            check_text(label, f"{where}: {source.label!r}")
            unfit = unfit and f"the label {source.label!r} {unfit}"
        unfit = f"{empty!r} is empty" if empty is not None else unfit
        rows.append(Row(line, texts, label, path, unfit, names))
        answers.append(row.get("answer"))
    own_column = "answer" in (*source.text, *label_columns)
    if {*map(str, answers)} <= {"accept", "reject", "ignore"} and not own_column:
        rows = [
            row
            if answer == "accept"
            else row._replace(unfit=f"its 'answer' is {answer!r}, as Prodigy writes it")
            for row, answer in zip(rows, answers, strict=True)
        ]
    if gone := [row for row in rows if any(text.strip().casefold() in MISSING for text in row.texts)]:
        notes.append(
            f"warning: {len(gone):,} texts of {path.name} look like missing ones, such as {gone[0].texts} in line "
            f"{gone[0].line}; if they are, remove these rows"
        )
    return rows, table.said


def _plain_numbers(rows: dict[str, list[Row]], notes: list[str]) -> dict[str, list[Row]]:
    """Rows whose labels are numbers as Python reads them."""
    labels = [row.label for row in rows["train"] if not row.unfit]
    try:
        plain = way_of_writing(labels)
    except UserError as error:
        first = next(row for row in rows["train"] if "," in row.label)
        raise UserError(f"{first.where}: {error}") from None
    if plain is None:
        return rows
    sample = max((label for label in labels if "," in label and number(plain(label)) is not None), key=len)
    notes.append(f"labels are numbers: {sample!r} is read as {plain(sample)}")
    return {role: [row._replace(label=plain(row.label)) for row in of] for role, of in rows.items()}


def _same_numbers(rows: dict[str, list[Row]], named: list[str]) -> dict[str, list[Row]]:
    """Rows whose labels "1" and "1.0" are one class, where nearly all labels are whole numbers.

    pandas writes "1.0" where a column of whole numbers has a gap. In a column of other names, such as "00", "0" and
    "0.0", they are two.
    """
    counts = Counter(row.label for of in rows.values() for row in of if not row.unfit)
    whole = {
        label: label.partition(".")[0] for label in counts if re.fullmatch(r"-?(0|[1-9]\d*)(\.0+)?", label)
    }
    if sum(counts[label] for label in whole) < NEARLY_ALL * counts.total():
        return rows
    names = named or counts
    twins = {label: plain for label, plain in whole.items() if plain in names and label not in named}
    return {
        role: [row._replace(label=twins.get(row.label, row.label)) for row in of] for role, of in rows.items()
    }


def _judged(rows: list[Row], regression: bool, source: TaskSource, known: Counter[str]) -> list[Row]:
    """The rows, with what is unfit about labels that only the whole column tells; `known` are train's labels."""
    counts = Counter(row.label for row in rows if not row.unfit)
    unfit, together = {}, known + counts
    missing = missing_among(counts, known)
    for label, count in counts.items():
        if regression and number(label) is None:
            numbers = sum(n for other, n in counts.items() if number(other) is not None)
            most = f", as {numbers:,} of {counts.total():,} are" if numbers else ""
            unfit[label] = f"label {label!r} is not a finite number{most}"
        elif source.labels and label not in source.labels:
            unfit[label] = f"label {label!r} is not one of labels, which are {', '.join(source.labels):.200}"
        elif not source.labels and (is_no_score(label, together) if regression else label in missing):
            others = sorted(together.keys() - {label})
            unfit[label] = (
                f"label {label!r} looks like a missing one ({count:,} of {counts.total():,} rows; others are "
                f"{', '.join(map(repr, others[:5])):.100})"
            )
        elif not source.labels and not regression and is_stray(label, known if label in known else together):
            odd = "not a number, as nearly all" if number(label) is None else "a number, as hardly any"
            unfit[label] = f"label {label!r} looks like a slip: {odd} of the others are"
    return [
        row if row.unfit or row.label not in unfit else row._replace(unfit=unfit[row.label]) for row in rows
    ]


def _sorted_classes(rows: list[Row], source: TaskSource) -> list[str]:
    names = sorted({row.label for row in rows})
    if len(names) > SOME_CLASSES and len(names) > len(rows) / 2 and not source.type:
        raise UserError(
            f"{rows[0].path}: {len(names):,} different labels in {len(rows):,} rows, such as {names[0]!r:.40} and "
            f"{names[-1]!r:.40}: name another column, or metric=pearson if they are scores, or metric=accuracy if they "
            "are classes",
            argument="label_column",
        )
    return names if None in map(number, names) else sorted(names, key=lambda name: number(name) or 0.0)


def _with_values(rows: list[Row], labels: list[str] | None) -> list[Row]:
    classes = {name: index for index, name in enumerate(labels or ())}
    found = []
    for row in rows:
        value = number(row.label) if labels is None else classes.get(row.label)
        if value is None:
            twins = [name for name in classes if folded(name) == folded(row.label)]
            fix = f"train writes {twins[0]!r}; write it so" if len(twins) == 1 else "fix it"
            if None not in map(number, (*classes, row.label)):
                fix = f"give metric=pearson if labels are scores; else {fix}"
            raise UserError(
                f"{row.where}: label {row.label!r} is not one of train's labels {_some(classes)}; {fix}, add such rows "
                f"to train, or {_naming([*classes, row.label])}"
            )
        found.append(row._replace(value=value))
    return found


def _some(names: Iterable[str]) -> str:
    """The names, or the first of them where they are many."""
    return textwrap.shorten(", ".join(names), 200, placeholder=" ...")


def _naming(names: list[str]) -> str:
    """The hint to name all classes, as an argument that can be pasted where it is short."""
    every = as_argument("labels", names)
    return f"name all: {every}" if len(every) <= 300 else f"name all {len(names)} with labels="


def _of_classes(kind: Kind, splits: dict[str, Split], f1: bool) -> list[str]:
    """Notes on the classes: how often they are, which some split lacks, and which F1 calls positive."""
    labels: Any = kind.labels
    notes = notes_of_classes(labels, counts_of_classes(kind, splits))
    for name, separator in product(() if isinstance(kind, LabelSets) else labels, ",;|"):
        parts = [part.strip() for part in name.split(separator)]
        if len(parts) > 1 and {*parts} <= {*labels}:
            notes.append(
                f"warning: the class {name!r} is made of other classes; if it means several labels, give "
                f"label_separator='{separator}'"
            )
            break
    if f1 and len(labels) == 2:
        notes.append(f"F1 is that of the class {labels[1]!r} (positive_label= chooses)")
    return notes
