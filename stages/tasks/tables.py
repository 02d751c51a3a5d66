"""Tables row by row: CSV, TSV and other separated text, JSON, JSON lines, Parquet, and saved `datasets` directories.

Separator and quoting are recognised (`open_table`), the encoding by `stages.tasks.text.recognised`.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from stages.tasks.text import check_text, recognised, text_lines

SEPARATED, JSON = (".csv", ".tsv", ".tab", ".txt"), (".json", ".jsonl", ".ndjson")
SUFFIXES = (*SEPARATED, *JSON, *(suffix + ".gz" for suffix in (*SEPARATED, *JSON)), ".parquet")
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
BATCH = 1000
# A text may have any length; an unclosed quote is found at the end of the file.
csv.field_size_limit(sys.maxsize)

Rows = Iterator[tuple[int, dict[str, object]]]


@dataclass
class Table:
    """A table whose rows have not been read yet.

    Attributes:
        columns: names, as the header has them; two may be equal. For JSON lines, of the first 1,000 rows.
        rows: (number of the line, or of the row in Parquet, {column: value}) of each row. A column that the header
            names a second time is "NAME (2)", one without a name "column 3".
        said: how it is read, if recognised and unusual; else "".
        headed: whether the first line of the file names the columns.
        images: the columns of images, as `datasets` writes them: {"bytes": of a file, "path": its name}.
        delimiter: what separates the fields of a text; "" for other tables.
    """

    columns: list[str]
    rows: Rows
    said: str = ""
    headed: bool = False
    images: tuple[str, ...] = ()
    delimiter: str = ""


def read_rows(path: Path, encoding: str = "", delimiter: str = "") -> Rows:
    """Yield (line number, {column: value}) of each row; the arguments and errors are those of `open_table`."""
    yield from open_table(path, encoding, delimiter).rows


def open_table(
    path: Path,
    encoding: str = "",
    delimiter: str = "",
    wanted: Iterable[str] = (),
    names: Iterable[str] = (),
) -> Table:
    """Open a table. Blank lines and rows of empty fields are skipped.

    A .csv file is separated by commas, or by the semicolons, tabs or pipes that its header has instead, and a first
    line `sep=;` is understood. Fields may be quoted, and then hold separators and newlines. In files separated by tabs
    quotes are literal, as in GLUE's, unless every quote in the file is one that a CSV writer makes. A .jsonl file has an
    object on each line; a .json file that too, or a list of objects, or columns, as pandas writes them.

    Args:
        path: the file, also compressed (.gz), or a directory that `datasets` saved.
        encoding: the encoding of text; none: UTF-8, UTF-16 or Windows-1252, as recognised.
        delimiter: comma, semicolon, tab, pipe or a character; none: recognised.
        wanted: columns that the caller will read, by which a separator is recognised.
        names: the names of the columns of separated text whose first line is a row already, not a header.

    Raises:
        UserError: the file or a row cannot be read; the error names file and line.
    """
    if path.is_dir():
        return _saved_dataset(path)
    suffix = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix in (*SEPARATED, *JSON, ".parquet"):
        _check_start(path)
    if suffix == ".parquet":
        return _parquet(path)
    if suffix in SEPARATED:
        found, said = _encoding(path, encoding)
        return _separated(path, found, delimiter, suffix, tuple(wanted), list(names), said)
    if suffix in JSON:
        found, said = _encoding(path, encoding)
        return _json(path, found, said)
    raise UserError(
        f"{path}: a table's name ends in {', '.join((*SEPARATED, *JSON))} (or .gz after it) or .parquet, not in "
        f"{path.suffix!r}; convert it (from Excel: save as CSV UTF-8) or rename it"
    )


STARTS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it (from Excel: save as CSV UTF-8)",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save it as CSV UTF-8",
    b"\x1f\x8b": "compressed by gzip; let its name end in .gz",
    b"PAR1": "Parquet; let its name end in .parquet",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"version https://git-lfs": "a pointer of git-lfs, not the table; fetch that with `git lfs pull`",
    b"<!doctype html": "a web page, not a table; download the file itself",
    b"<html": "a web page, not a table; download the file itself",
}
"""How files of other forms begin, and what they are; those of words in any case."""


def _check_start(path: Path) -> None:
    """Raise a UserError where a file is not what its name says."""
    if not path.is_file():
        return  # whoever opens it says so
    with path.open("rb") as file:
        head = file.read(30)
    for start, what in STARTS.items():
        if (head.startswith(start) or head.lower().startswith(start)) and not what.endswith(
            f" {path.suffix.lower()}"
        ):
            raise UserError(f"{path}: this is {what}")


def rows_with(path: Path, columns: tuple[str, ...], encoding: str = "", delimiter: str = "") -> Rows:
    """Yield (line number, row) of a table that must have some columns.

    Raises:
        UserError: as of `open_table`; or a row lacks a column, or there are no rows.
    """
    line, table = 0, open_table(path, encoding, delimiter, wanted=columns)
    if twice := next((column for column in columns if table.columns.count(column) > 1), None):
        raise UserError(f"{path} names a column twice: {twice!r}; rename one", argument="text_columns")
    for line, row in table.rows:
        if missing := [column for column in columns if column not in row]:
            raise UserError(
                f"{path}, line {line}: no column {missing[0]!r} (there are {', '.join(map(repr, row))}); name the text "
                "columns",
                argument="text_columns",
            )
        yield line, row
    if not line:
        raise UserError(f"{path}: no rows; give a file with a header and rows")


def _encoding(path: Path, given: str) -> tuple[str, str]:
    """The encoding of a file, and a note where it is unusual."""
    found = recognised(path, given)
    return found, "" if given or found.startswith("utf-8") else f"as {found} (encoding= chooses)"


# Text with separators


@dataclass
class _Dialect:
    delimiter: str
    spaced: bool = False  # a space after each separator

    def reader(self, lines: Iterable[str], quoting: str = "double") -> Any:
        backslash = quoting == "backslash"
        return csv.reader(
            lines, delimiter=self.delimiter, skipinitialspace=self.spaced, strict=True,
            doublequote=not backslash, escapechar="\\" if backslash else None,
        )  # fmt: skip


def _separated(
    path: Path,
    encoding: str,
    delimiter: str,
    suffix: str,
    wanted: tuple[str, ...],
    names: list[str],
    said: str,
) -> Table:
    def lines() -> Iterator[str]:
        checked = (check_text(line, f"{path}, line {n}") for n, line in text_lines(path, encoding))
        first = next(checked, "")
        return chain([""] if _sep_line(first) else [first], checked)

    declared = _sep_line(next(text_lines(path, encoding), (0, ""))[1])
    usual = {".csv": ",", ".txt": ","}.get(suffix, "\t")
    chosen = _chosen_delimiter(lines, delimiter, declared, usual, wanted)
    header = _header(lines, _Dialect(chosen))
    spaced = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
    dialect = _Dialect(chosen, spaced)
    if spaced:
        header = _header(lines, dialect)
    columns = names or [name.strip() for name in header]
    if chosen != usual and not delimiter:
        name = next((name for name, char in DELIMITERS.items() if char == chosen), repr(chosen))
        said = f"{said or 'as text'}, separated by {name} (delimiter= chooses)"
    rows = _separated_rows(path, lines, dialect, columns, bool(names))
    return Table(columns, rows, said, headed=not names, delimiter=chosen)


def _sep_line(line: str) -> str:
    """The separator that a first line such as `sep=;` declares, as Excel writes and reads it; "" if there is none."""
    found = re.fullmatch(r'"?sep=(.)"?\s*', line, re.IGNORECASE)
    return found[1] if found else ""


def _chosen_delimiter(
    lines: Callable[[], Iterator[str]], given: str, declared: str, usual: str, wanted: tuple[str, ...]
) -> str:
    """The separator: as given or declared; else the usual one, or the first whose header has what is wanted."""
    if given:
        chosen = DELIMITERS.get(given, given.replace("\\t", "\t"))
        if len(chosen) != 1 or chosen in '"\r\n\\':
            raise UserError(
                f"{given!r} is not a separator; give {', '.join(DELIMITERS)}, or one character",
                argument="delimiter",
            )
        return chosen
    if declared:
        return declared
    headers = {char: _header(lines, _Dialect(char)) for char in (usual, *DELIMITERS.values())}
    names = {char: {name.strip() for name in header} for char, header in headers.items()}
    fits = [char for char in headers if wanted and names[char] >= set(wanted)]
    if fits or len(headers[usual]) > 1:
        return fits[0] if fits else usual
    return max(headers, key=lambda char: len(headers[char]))


def _header(lines: Callable[[], Iterator[str]], dialect: _Dialect) -> list[str]:
    readers: list[Any] = [dialect.reader(lines()), _Literal(lines(), dialect.delimiter)]
    for reader in readers if dialect.delimiter == "\t" else readers[:1]:
        try:
            return next((fields for fields in reader if any(fields)), [])
        except csv.Error:
            pass
    return []


class _Literal:
    """Reads lines whose quotes are literal, as `csv.reader` reads those with quoted fields."""

    def __init__(self, lines: Iterator[str], delimiter: str):
        self.lines, self.delimiter, self.line_num = lines, delimiter, 0

    def __iter__(self) -> Iterator[list[str]]:
        for line in self.lines:
            self.line_num += 1
            yield line.rstrip("\r\n").split(self.delimiter)


def _separated_rows(
    path: Path, lines: Callable[[], Iterator[str]], dialect: _Dialect, columns: list[str], named: bool
) -> Rows:
    quoting = _quoting(lines, dialect, len(columns))
    keys = _keys(columns)
    literal = quoting == "literal"
    reader = _Literal(lines(), dialect.delimiter) if literal else dialect.reader(lines(), quoting)
    start, headed = 1, named
    try:
        for fields in reader:
            if any(fields) and not headed:
                headed = True
            elif any(fields):
                if len(fields) != len(keys) and (len(fields) < len(keys) or any(fields[len(keys) :])):
                    raise UserError(
                        f"{path}, line {start}: {len(fields)} fields, {'but columns= names' if named else 'the header has'} "
                        f"{len(keys)}; fix the row"
                    )
                yield start, dict(zip(keys, fields, strict=False))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {start}: not CSV ({error}); fix its quotes") from error


def _keys(columns: list[str]) -> list[str]:
    """Column names that differ, so that no column hides another."""
    keys: list[str] = []
    for place, name in enumerate(columns, start=1):
        key, count = name or f"column {place}", 1
        while key in keys or key != name and key in columns:
            count += 1
            key = f"{name or f'column {place}'} ({count})"
        keys.append(key)
    return keys


def _quoting(lines: Callable[[], Iterator[str]], dialect: _Dialect, width: int) -> str:
    """How a file's fields are quoted: "double" (as CSV writers do), "literal" or "backslash" (as Spark does)."""
    if dialect.delimiter == "\t" and not _is_written_quoted(lines, dialect):
        return "literal"
    if _fits(dialect.reader(lines()), width) or any(re.search(r'\\[^"\\]', line) for line in lines()):
        return "double"
    return "backslash" if _fits(dialect.reader(lines(), "backslash"), width) else "double"


def _fits(reader: Iterator[list[str]], width: int) -> bool:
    try:
        return all(len(f) == width or len(f) > width and not any(f[width:]) for f in reader if any(f))
    except csv.Error:
        return False


def _is_written_quoted(lines: Callable[[], Iterator[str]], dialect: _Dialect) -> bool:
    """Whether a writer of CSV made the quotes of a file separated by tabs: it would write the same lines again."""
    quoted = [_is_quoted(line) for line in lines() if line.strip()]
    if quoted and (quoted[0] or quoted[1:] and sum(quoted[1:]) >= 0.9 * len(quoted[1:])):
        return True
    if not any('"' in line for line in lines()):
        return False
    raw: list[str] = []  # lines of the row at hand
    needs = [
        lambda field: re.search('[\t"\r\n]', field),
        lambda field: not re.fullmatch(r"-?[\d.]*", field),
        lambda field: re.search('[\t",\r\n]', field),  # Excel quotes commas, too
    ]
    try:
        for fields in dialect.reader(raw.append(line) or line for line in lines()):  # type: ignore[func-returns-value]
            given = "".join(raw).rstrip("\r\n")
            raw.clear()
            for need in list(needs):
                written = ('"' + f.replace('"', '""') + '"' if need(f) else f for f in fields)
                if "\t".join(written) != given:
                    needs.remove(need)
    except csv.Error:
        return False
    return bool(needs)


def _is_quoted(line: str) -> bool:
    return all(len(f) > 1 and f[0] == f[-1] == '"' for f in line.strip("\r\n").split("\t"))


# JSON


def _json(path: Path, encoding: str, said: str) -> Table:
    """A table of JSON: an object on each line, or one value for the whole file."""
    lines = text_lines(path, encoding)
    number, first = next(((n, line) for n, line in lines if line.strip()), (0, ""))
    try:
        first_is_object = isinstance(json.loads(first or "{}"), dict)
    except (ValueError, RecursionError):
        first_is_object = False
    alone = not any(line.strip() for _, line in lines)
    jsonl = "json" not in path.name.lower().replace("jsonl", "").replace("ndjson", "")
    if first_is_object and not (alone and not jsonl) or jsonl and first.lstrip()[:1] != "[":
        rows: Rows = read_json(path, encoding)
    else:
        rows = enumerate(_whole_json(path, encoding), start=1)
    head = list(islice(rows, BATCH))  # a row may lack what is null in it
    return Table(list(dict.fromkeys(key for _, row in head for key in row)), chain(head, rows), said)


def _whole_json(path: Path, encoding: str) -> list[dict[str, object]]:
    """The rows of a file that is one JSON value: objects in a list, or columns, as pandas writes them."""
    try:
        value = json.loads("".join(line for _, line in text_lines(path, encoding)))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not JSON ({error}); write a list of objects, or one on each line"
        ) from error
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        columns = {name: list(v.values()) if isinstance(v, dict) else v for name, v in value.items()}
        lengths = {len(v) if isinstance(v, list) else -1 for v in columns.values()}
        keys = {tuple(v) for v in value.values() if isinstance(v, dict)}
        if len(lists) == 1:  # such as {"version": 1, "data": [...]}
            value = lists[0]
        elif len(lengths) == 1 and -1 not in lengths and len(keys) <= 1:
            value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise UserError(f"{path}: neither a list of JSON objects nor one on each line; write one of these")
    return value


def read_json(path: Path, encoding: str = "utf-8") -> Rows:
    """Yield (line number, object) of a file with one JSON object on each line, plain or gzip."""
    for number, line in text_lines(path, encoding):
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


# Arrow


def _parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from error
    rows = _arrow_rows(path, file.iter_batches(batch_size=BATCH), schema)
    return Table(schema.names, rows, images=_image_columns(schema))


def _saved_dataset(path: Path) -> Table:
    """A directory that `Dataset.save_to_disk` wrote."""
    import datasets

    try:
        return of_dataset(path, datasets.load_from_disk(str(path)))
    except Exception as error:  # of files that anyone may have written
        raise UserError(
            f"{path}: cannot be read as a saved data set: {' '.join(str(error).split())}"
        ) from error


def of_dataset(path: Path, dataset: Any) -> Table:
    """The table of a split of `datasets`; `path` is its name in messages."""
    rows, schema = dataset.with_format("arrow"), dataset.features.arrow_schema
    batches = (batch for part in rows.iter(BATCH) for batch in part.to_batches())
    return Table(dataset.column_names, _arrow_rows(path, batches, schema), images=_image_columns(schema))


def _image_columns(schema) -> tuple[str, ...]:
    import pyarrow

    def is_image(type) -> bool:
        return pyarrow.types.is_struct(type) and {field.name for field in type} == {"bytes", "path"}

    return tuple(field.name for field in schema if is_image(field.type))


def _arrow_rows(path: Path, batches: Iterable, schema) -> Rows:
    """The rows of Arrow batches; classes by their names, as `datasets` notes them in the schema."""
    import pyarrow

    names = _class_names(schema)
    number = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                for column, classes in names.items():
                    value = row[column]
                    if isinstance(value, int):
                        row[column] = _class_name(classes, value)
                    elif isinstance(value, list):
                        row[column] = [_class_name(classes, one) for one in value]
                yield number, row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read after row {number}: {error}") from error


def _class_name(classes: list[str], value: Any) -> str | None:
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None


def _class_names(schema) -> dict[str, list[str]]:
    """The names of the classes in columns of classes, or of lists of classes."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        inner = {c: f[0] if isinstance(f, list) and f else f for c, f in features.items()}
        inner = {c: f.get("feature", f) for c, f in inner.items() if isinstance(f, dict)}
        classes = {c: f for c, f in inner.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
        found = {c: f["names"] for c, f in classes.items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}
    return {
        column: [str(name) for name in names] for column, names in found.items() if isinstance(names, list)
    }
