"""Tables row by row: CSV, TSV and JSONL."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks.text import check_text, text_lines

SUFFIXES = (".csv", ".tsv", ".jsonl")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, {column: value}) of each row; blank lines are skipped.

    A .csv file has quoted fields, which may hold commas and newlines. In a .tsv file quotes are literal, as in GLUE's
    files. A .jsonl file has one JSON object on each line.

    Raises:
        UserError: the file or a row cannot be read; the error names file and line.
    """
    readers = {".csv": _csv_rows, ".tsv": _tsv_rows, ".jsonl": read_json}
    if path.suffix not in readers:
        raise UserError(
            f"{path}: a table's name ends in {', '.join(SUFFIXES)}, not in {path.suffix!r}; convert or rename it"
        )
    return readers[path.suffix](path)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader((check_text(line, f"{path}, line {n}") for n, line in text_lines(path)), strict=True)
    header: list[str] = []
    start = 1
    try:
        for fields in reader:
            if fields and not header:
                header = fields
            elif fields:
                yield start, _row(header, fields, f"{path}, line {start}")
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {start}: not CSV ({error}); fix its quotes") from error


def _tsv_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    header: list[str] = []
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        fields = check_text(line, where).rstrip("\r\n").split("\t")
        if fields == [""]:
            continue
        if header:
            yield number, _row(header, fields, where)
        header = header or fields


def _row(header: list[str], fields: list[str], where: str) -> dict[str, object]:
    if len(fields) != len(header):
        raise UserError(f"{where}: {len(fields)} fields, the header has {len(header)}; fix the row")
    row: dict[str, object] = dict(zip(header, fields, strict=True))
    if len(row) < len(header):
        raise UserError(
            f"{where}: the header names a column twice: {', '.join(map(repr, header))}; rename one"
        )
    return row


def read_json(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, object) of a file with one JSON object on each line, plain or gzip."""
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({error}); write one object on each line"
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: {line.strip():.60} is not a JSON object; write one on each line"
            )
        yield number, row
