"""The user's own entities: a table with a text and the spans of its entities, as annotation tools write them.

A span is a start and an end in characters, the end not included, and a kind: {"start": 0, "end": 5, "label": "person"}
(the kind also under "entity_group", "entity" or "type"), or [0, 5, "person"]. A text is cut into words, which are runs of
letters and digits or single other characters, and also at the ends of spans.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.kinds.entities import METRICS, OUTSIDE
from stages.tasks.labelled_rows import Row
from stages.tasks.readers import conll
from stages.tasks.split_files import data_files
from stages.tasks.tables import open_table
from stages.tasks.text import check_text, literal, slug
from stages.tasks.types import Task, TaskRequest, TaskSource

VERSION = 3
KINDS = ("label", "entity_group", "entity", "type")


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of a task of texts with spans, None where no column of spans is named."""
    if not request.spans_column:
        return None
    if request.label_column or len(request.text_columns) != 1:
        raise UserError(
            f"{request.spans_column!r} has the entities of one text; name its column in text_columns, and leave "
            "label_column out",
            argument="spans_column",
        )
    metrics.select(request.metric, METRICS, METRICS)
    files = data_files(Path(request.data))
    for path in files.values():
        columns = open_table(path, request.encoding, request.delimiter).columns
        for column, argument in (
            (request.text_columns[0], "text_columns"),
            (request.spans_column, "spans_column"),
        ):
            if column not in columns:
                raise UserError(
                    f"no column {column!r}; the columns of {path} are {', '.join(map(repr, columns))}",
                    argument=argument,
                )
    return TaskSource(
        slug(request.task or Path(request.data).stem), "spans", VERSION, metric=request.metric, spans=request.spans_column,
        files={role: str(file.resolve()) for role, file in files.items()}, text=list(request.text_columns),
        encoding=request.encoding, delimiter=request.delimiter,
    )  # fmt: skip


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the texts and their entities."""
    rows: dict[str, list[Row]] = {}
    notes = []
    for key, name in source.files.items():
        path, read = Path(name), []
        for line, row in open_table(path, source.encoding, source.delimiter).rows:
            where = f"{path}, line {line}"
            text = check_text(row.get(source.text[0]), f"{where}: {source.text[0]!r}")
            if source.spans not in row:
                raise UserError(f"{where}: no {source.spans!r}; write [] where the text has no entity")
            words, tags = _words(text, _spans(row.get(source.spans), text, where))
            if not words:
                raise UserError(f"{where}: {source.text[0]!r} is empty; fill it or remove the row")
            read.append(Row(line, (" ".join(words),), "", path, value=tags))
        rows.setdefault(key.partition(".")[0], []).extend(read)
        notes.append(f"{key}: {path.name}, {len(read):,} texts")
    return conll.task(source, rows, notes)


def _spans(cell: Any, text: str, where: str) -> list[tuple[int, int, str]]:
    """The spans of a cell, in order."""
    if isinstance(cell, str) and cell.strip():
        cell = literal(cell)
    if cell is not None and not isinstance(cell, list):
        raise UserError(f"{where}: {cell!r:.60} is not a list of spans; write one")
    spans: list[tuple[int, int, str]] = []
    for span in cell or ():
        if isinstance(span, dict):
            kind = next((span[name] for name in KINDS if name in span), None)
            span = (span.get("start"), span.get("end"), kind)
        start, end, kind = span if isinstance(span, (list, tuple)) and len(span) == 3 else (-1, -1, "")
        fits = isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)
        if not fits or not isinstance(kind, str) or not kind.strip():
            raise UserError(
                f"{where}: {span!r:.80} is not a span of the text's {len(text)} characters; write a start, an end and a kind"
            )
        if not text[start:end].strip():
            raise UserError(f"{where}: the span {start} to {end} holds only white space; remove it")
        spans.append((start, end, "_".join(kind.split())))
    spans.sort()
    for (start, end, kind), (other, last, another) in zip(spans, spans[1:], strict=False):
        if other < end:
            raise UserError(
                f"{where}: the spans {start} to {end} ({kind}) and {other} to {last} ({another}) overlap; keep one of them"
            )
    return spans


def _words(text: str, spans: list[tuple[int, int, str]]) -> tuple[list[str], list[str]]:
    """The words of a text, and their IOB2 labels."""
    words, tags, at = [], [], 0
    for start, end, kind in (*spans, (len(text), len(text), "")):
        for word in re.findall(r"\w+|[^\w\s]", text[at:start]):
            words.append(word)
            tags.append(OUTSIDE)
        for place, word in enumerate(re.findall(r"\w+|[^\w\s]", text[start:end])):
            words.append(word)
            tags.append(f"{'I' if place else 'B'}-{kind}")
        at = end
    return words, tags
