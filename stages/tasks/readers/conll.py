"""The user's own labels of words: CoNLL files, a line for each word, an empty line after each sentence.

Columns are parted by tabs where a line has them, else by white space, as many in each line; the first is the word, the last
its label. Lines that begin with -DOCSTART- are left out. `data` is a file, or a directory with train.conll and, if there
are any, dev.conll and test.conll; without dev a tenth of train is held out, and what stands in dev or test is no part of train.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.readers.files import ROLES, Row, data_files, drop_repeats, hold_out
from stages.tasks.text import check_text, text_lines
from stages.tasks.types import Split, Task, TaskSource

SUFFIX = ".conll"
VERSION = 1


def find(
    name: str, data: str, text_columns: tuple[str, ...], label_column: str, metric: str
) -> TaskSource | None:
    """Return the source of a task of CoNLL files, None for other data.

    Raises:
        UserError: no train file, or options that only fit tables.
    """
    path = Path(data)
    if not data or not (path.suffix == SUFFIX or path.is_dir() and any(path.glob(f"*{SUFFIX}"))):
        return None
    if text_columns or label_column:
        raise UserError(
            f"a {SUFFIX} file has a word and its label a line: leave text_columns and label_column out"
        )
    files = data_files(path, (SUFFIX,))
    if not all(file.is_file() for file in files.values()):
        raise UserError(f"no file {path}")
    metrics.select(metric, metrics.CLASSIFICATION, metrics.CLASSIFICATION)
    identity = {
        "reader": "conll", "version": VERSION, "words": True, "metric": metric,
        "files": {role: str(file.resolve()) for role, file in files.items()},
    }  # fmt: skip
    return TaskSource(re.sub("[^a-z0-9]+", "-", (name or path.stem).lower()).strip("-") or "task", identity)


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the sentences.

    Raises:
        UserError: a line that cannot be used, naming it; fewer than two labels; a label that train lacks.
    """
    paths = {role: Path(path) for role, path in source.identity["files"].items()}
    pairs = {role: list(_labelled(path)) for role, path in paths.items()}
    for role, path in paths.items():
        if not pairs[role]:
            raise UserError(f"{path}: no sentences; give a word and its label a line")
    pairs = drop_repeats(pairs if "dev" in pairs else hold_out(pairs, paths["train"]))
    labels = sorted({label for _, tags in pairs["train"] for label in tags})
    if len(labels) < 2:
        raise UserError(f"{paths['train']}: every label is {labels[0]!r}; give words of two or more")
    splits = {}
    for role in (role for role in ROLES if role in pairs):
        for row, tags in pairs[role]:
            if unknown := set(tags) - set(labels):
                where = f"{paths.get(role, paths['train'])}, the sentence at line {row.line}"
                raise UserError(
                    f"{where}: label {min(unknown)!r} is none of train's: {', '.join(labels):.200}"
                )
        places = [[labels.index(label) for label in tags] for _, tags in pairs[role]]
        splits[role] = Split([row.texts[0] for row, _ in pairs[role]], None, places)
    reported, selection = metrics.select(
        source.identity["metric"], ("accuracy", "f1"), metrics.CLASSIFICATION
    )
    return Task(source.name, tuple(labels), splits, reported, selection, token_level=True)


def sentences(path: Path) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield (line it begins at, columns of each of its words) of every sentence.

    Raises:
        UserError: the file cannot be read, or a line has a word alone.
    """
    words: list[list[str]] = []
    start = 0
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        line = check_text(line, where).strip()
        columns = [column.strip() for column in line.split("\t")] if "\t" in line else line.split()
        if line.startswith("-DOCSTART-"):
            continue
        if columns:
            if len(columns) < 2 or not all(columns) or len(columns[0].split()) > 1:
                raise UserError(f"{where}: {line!r:.60} is no word and label; mend or remove it")
            start = start if words else number
            words.append(columns)
        elif words:
            yield start, words
            words = []
    if words:
        yield start, words


def _labelled(path: Path) -> Iterator[tuple[Row, list[str]]]:
    width = 0
    for line, words in sentences(path):
        width = width or len(words[0])
        for number, columns in enumerate(words, start=line):
            if len(columns) != width:
                raise UserError(
                    f"{path}, line {number}: {len(columns)} columns, the first sentence has {width}; mend the line"
                )
        yield Row(line, (" ".join(word for word, *_ in words),), ""), [columns[-1] for columns in words]
