"""Unlabelled corpora, found cheaply and streamed document by document."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks.hub_datasets import load_hub
from stages.tasks.packages import packaged_corpus
from stages.tasks.readers import newsgroups
from stages.tasks.tables import read_json
from stages.tasks.text import check_text, slug, text_lines
from stages.tasks.types import Source

Part = Callable[[], Iterator[str]]
"""Starts a stream of documents."""
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
FIELD = "text"
PART_BYTES = 64_000_000  # of files that are read one after the other; other ranks read other parts
MAX_PARTS = 1024  # of a hub data set
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


def corpus_parts(source: Source, revision: str | None = None) -> list[Part]:
    """Return streams of documents that make up a corpus, in order: groups of whole files, or of a hub data set's files.

    The parts depend on the corpus alone, so that several ranks can share them. Where there are several, one may be empty.

    Args:
        source: from `find_corpus`.
        revision: pins a hub data set.

    Raises:
        UserError: the hub cannot be reached; or in a stream that a file cannot be read, a field is missing, or the corpus
            is empty.
    """
    parts = _parts(source, revision)
    return parts if len(parts) > 1 else [lambda: _refuse_empty(source, parts[0])]


def _parts(source: Source, revision: str | None) -> list[Part]:
    if source.reader == "hub":
        return _hub_parts(source.hub, source.config, revision)
    if source.reader != "files":
        return [partial(_of_files, source)]
    groups = by_size({name: Path(path) for name, path in source.files.items()})
    return [
        partial(_of_files, replace(source, files={name: str(path) for name, path in group.items()}))
        for group in groups
    ]


def _refuse_empty(source: Source, part: Part) -> Iterator[str]:
    empty = True
    for document in part():
        empty = False
        yield document
    if empty:
        where = ", ".join(source.files.values()) or source.name
        raise UserError(f"the corpus {where} is empty; give one with text", argument="corpus")


def by_size(files: dict[str, Path]) -> list[dict[str, Path]]:
    """Return the files in groups of consecutive ones, each but the last of at least 64 MB."""
    groups: list[dict[str, Path]] = [{}]
    size = 0
    for name, path in files.items():
        if size >= PART_BYTES:
            groups.append({})
            size = 0
        groups[-1][name] = path
        size += path.stat().st_size
    return groups


def _with_text(documents: Iterable[str]) -> Iterator[str]:
    return (document for document in documents if document.strip())


def _of_files(source: Source) -> Iterator[str]:
    return _with_text(_documents_of_files(source))


def _documents_of_files(source: Source) -> Iterator[str]:
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
    """Yield the documents of a text file, which blank lines separate; their lines are joined, very long ones divided."""
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
        raise UserError(
            f"{path}: cannot be read as Parquet ({error}); write it again, or give another file"
        ) from error


def _hub_parts(hub: str, config: str, revision: str | None) -> list[Part]:
    instead = "give the packaged corpus, or files of your own"
    rows = load_hub(hub, config or None, revision, instead, "corpus", split="train", streaming=True)
    count = min(getattr(rows, "num_shards", 1), MAX_PARTS)

    def start(index: int) -> Iterator[str]:
        part = rows if count == 1 else rows.shard(num_shards=count, index=index)
        return _with_text(_field(row, f"the hub data set {hub}") for row in part)

    return [partial(start, index) for index in range(count)]


def _field(row: dict, where: str) -> str:
    if FIELD not in row:
        raise UserError(f"{where}: no field {FIELD!r}; it has {', '.join(map(repr, row))}")
    return check_text(row[FIELD], where)
