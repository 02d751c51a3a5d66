"""Unlabelled corpora, found cheaply and streamed document by document."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks.readers import newsgroups
from stages.tasks.readers.hub import load_hub
from stages.tasks.readers.packaged import packaged_corpus
from stages.tasks.readers.tables import read_json
from stages.tasks.text import check_text, text_lines

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
FIELD = "text"
LONGEST = 1_000_000  # characters of a text file's document, so that one without blank lines still streams
VERSION = 1


@dataclass(frozen=True)
class CorpusSource:
    """What planning knows of a corpus: its name, and everything that decides its text (see TaskSource)."""

    name: str
    identity: dict


def find_corpus(spec: str) -> CorpusSource:
    """Return where a corpus comes from, without reading it.

    Args:
        spec: "packaged" (Wikipedia introductions); "newsgroups-sci" (20 Newsgroups' science); a file, directory or glob of .txt, .jsonl (field "text"),
            either also with .gz, or .parquet (column "text"); or a hub data set "owner/name" or
            "owner/name:config". What is on disk comes first; a name of that form is a path when its owner
            is a directory here or its ending is one of the above.

    Raises:
        UserError: nothing there.
    """
    if spec == "packaged":
        files = {"introductions": str(packaged_corpus())}
        return CorpusSource("wikipedia-introductions", _identity("packaged", files=files))
    if spec == newsgroups.CORPUS:
        return CorpusSource(spec, newsgroups.identity())
    paths = _paths(spec) if spec else []
    name = re.sub("[^a-z0-9]+", "-", Path(spec).name.lower()).strip("-") or "corpus"
    if paths:
        root = os.path.commonpath([path.parent for path in paths])
        files = {os.path.relpath(path, root): str(path) for path in paths}
        return CorpusSource(name, _identity("files", files=files))
    owner, _, rest = spec.partition("/")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?", spec) and not rest.endswith(SUFFIXES):
        if not Path(owner).exists():
            hub, _, config = spec.partition(":")
            return CorpusSource(name, _identity("hub", hub=hub, config=config))
    raise UserError(
        f"no corpus at {spec!r}: give packaged, a file, directory or glob of {', '.join(SUFFIXES)}, "
        "or a hub data set as owner/name or owner/name:config"
    )


def _identity(reader: str, **rest) -> dict:
    return {"reader": reader, "version": VERSION, **rest}


def _paths(spec: str) -> list[Path]:
    path = Path(os.path.expanduser(spec))
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.name.endswith(SUFFIXES)]
        if not found:
            raise UserError(f"the directory {spec!r} holds no corpus file; known are {', '.join(SUFFIXES)}")
    else:
        found = [path] if path.is_file() else [Path(file) for file in glob.glob(str(path), recursive=True)]
    found = sorted(file.resolve() for file in found if file.is_file())
    for file in found:
        if not file.name.endswith(SUFFIXES):
            raise UserError(f"{file}: a corpus is read from {', '.join(SUFFIXES)}; convert or rename it")
    return found


def documents(source: CorpusSource, revision: str | None = None) -> Iterator[str]:
    """Yield the documents of a corpus, in a fixed order, never all in memory; `revision` pins a hub data set.

    Raises:
        UserError: a file that cannot be read, a missing field, no document at all, no hub in reach.
    """
    empty = True
    for document in _all_documents(source, revision):
        if document.strip():
            empty = False
            yield document
    if empty:
        where = ", ".join(source.identity.get("files", {}).values()) or source.name
        raise UserError(f"the corpus {where} is empty; give one with text")


def _all_documents(source: CorpusSource, revision: str | None) -> Iterator[str]:
    identity = source.identity
    if identity["reader"] == "hub":
        yield from _hub_documents(identity["hub"], identity["config"], revision)
        return
    if identity["reader"] == "newsgroups":
        yield from newsgroups.documents(identity["files"])
        return
    for path in map(Path, identity["files"].values()):
        if identity["reader"] == "packaged":
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
    """Yield the documents of a text file: a sentence on each line, a blank line ends a document."""
    lines, size = [], 0
    for number, line in text_lines(path):
        check_text(line, f"{path}, line {number}")
        if lines and (not line.strip() or size > LONGEST):
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
    instead = "give the corpus packaged, or files of your own"
    rows = load_hub(hub, config or None, revision, instead, split="train", streaming=True)
    for row in rows:
        yield _field(row, f"the hub data set {hub}")


def _field(row: dict, where: str) -> str:
    if FIELD not in row:
        raise UserError(f"{where}: no field {FIELD!r}; it has {', '.join(map(repr, row))}")
    return check_text(row[FIELD], where)
