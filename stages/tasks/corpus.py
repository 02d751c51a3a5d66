"""Unlabelled corpora, found cheaply and streamed document by document."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks.hub_datasets import load_hub
from stages.tasks.packages import packaged_corpus
from stages.tasks.readers import newsgroups
from stages.tasks.tables import read_json
from stages.tasks.text import check_text, slug, text_lines
from stages.tasks.types import Source

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
FIELD = "text"
MAX_CHARACTERS = 1_000_000  # of a document of a text file, so that a file without blank lines still streams


def find_corpus(corpus: str) -> Source:
    """Return where a corpus comes from, without reading it.

    Args:
        corpus: one of these.
            - "packaged": Wikipedia introductions.
            - "newsgroups-sci": 20 Newsgroups' science groups.
            - A file, directory or glob of .txt, .txt.gz, .jsonl, .jsonl.gz (field "text") or .parquet (column "text").
            - A hub data set, "owner/name" or "owner/name:config". A name of this form is a path if it exists, if
              `owner` exists here, or if it ends as one of the files above.

    Raises:
        UserError: there is no such corpus.
    """
    if corpus == "packaged":
        files = {"introductions": str(packaged_corpus())}
        return Source("wikipedia-introductions", "packaged", files=files)
    if corpus == newsgroups.CORPUS:
        return Source(corpus, "newsgroups", files=newsgroups.files())
    paths = _paths(corpus) if corpus else []
    name = slug(Path(corpus).name, empty="corpus")
    if paths:
        root = os.path.commonpath([path.parent for path in paths])
        return Source(name, "files", files={os.path.relpath(path, root): str(path) for path in paths})
    owner, _, rest = corpus.partition("/")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?", corpus) and not rest.endswith(SUFFIXES):
        if not Path(owner).exists():
            hub, _, config = corpus.partition(":")
            return Source(name, "hub", hub=hub, config=config)
    raise UserError(
        f"no corpus at {corpus!r}; give packaged, a file, directory or glob of {', '.join(SUFFIXES)}, "
        "or a hub data set as owner/name or owner/name:config",
        argument="corpus",
    )


def _paths(corpus: str) -> list[Path]:
    path = Path(os.path.expanduser(corpus))
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.name.endswith(SUFFIXES)]
        if not found:
            raise UserError(
                f"the directory {corpus!r} holds no file that ends in {', '.join(SUFFIXES)}; give one that does",
                argument="corpus",
            )
    else:
        found = [path] if path.is_file() else [Path(file) for file in glob.glob(str(path), recursive=True)]
    found = sorted(file.resolve() for file in found if file.is_file())
    for file in found:
        if not file.name.endswith(SUFFIXES):
            raise UserError(
                f"{file}: a corpus is read from {', '.join(SUFFIXES)}; convert or rename it",
                argument="corpus",
            )
    return found


def documents(source: Source, revision: str | None = None) -> Iterator[str]:
    """Yield the documents of a corpus in a fixed order, as a stream.

    Args:
        source: from `find_corpus`.
        revision: pins a hub data set.

    Raises:
        UserError: a file cannot be read, a field is missing, the corpus is empty, or the hub cannot be reached.
    """
    empty = True
    for document in _all_documents(source, revision):
        if document.strip():
            empty = False
            yield document
    if empty:
        where = ", ".join(source.files.values()) or source.name
        raise UserError(f"the corpus {where} is empty; give one with text", argument="corpus")


def _all_documents(source: Source, revision: str | None) -> Iterator[str]:
    if source.reader == "hub":
        yield from _hub_documents(source.hub, source.config, revision)
        return
    if source.reader == "newsgroups":
        yield from newsgroups.documents(source.files)
        return
    for path in map(Path, source.files.values()):
        if source.reader == "packaged":
            introductions = json.loads(path.read_text(encoding="utf-8"))
            yield from (page["extract"] for page in introductions.values())
        elif path.suffix == ".parquet":
            yield from _parquet_documents(path)
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            for line, row in read_json(path):
                yield _field(row, f"{path}, line {line}")
        else:
            yield from _text_documents(path)


def _text_documents(path: Path) -> Iterator[str]:
    """Yield the documents of a text file: one sentence a line, a blank line after each document."""
    lines: list[str] = []
    size = 0
    for number, line in text_lines(path):
        check_text(line, f"{path}, line {number}")
        if lines and (not line.strip() or size > MAX_CHARACTERS):
            yield " ".join(lines)
            lines, size = [], 0
        if line.strip():
            lines.append(line.strip())
            size += len(line)
    yield " ".join(lines)


def _parquet_documents(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if FIELD not in file.schema_arrow.names:
            raise UserError(f"{path}: no column {FIELD!r}; it has {', '.join(file.schema_arrow.names)}")
        batches = file.iter_batches(batch_size=1000, columns=[FIELD])
        texts = (text for batch in batches for text in batch.column(0).to_pylist())
        for number, text in enumerate(texts, start=1):
            yield check_text("" if text is None else text, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from error


def _hub_documents(hub: str, config: str, revision: str | None) -> Iterator[str]:
    instead = "give the packaged corpus, or files of your own"
    rows = load_hub(hub, config or None, revision, instead, "corpus", split="train", streaming=True)
    for row in rows:
        yield _field(row, f"the hub data set {hub}")


def _field(row: dict, where: str) -> str:
    if FIELD not in row:
        raise UserError(f"{where}: no field {FIELD!r}; it has {', '.join(map(repr, row))}")
    return check_text(row[FIELD], where)
