"""The user's own labels of words: CoNLL files, one word a line, an empty line after each sentence.

Columns are separated by tabs if the line has one, else by white space. Every line has equally many; the first is the
word, the last its label. Lines that begin with -DOCSTART- are skipped. `data` is a file, or a directory with
train.conll and optionally dev.conll and test.conll. Without dev, some of train is held out, as of tables. Sentences of
dev or test are removed from train.

Where nearly all labels are O, B-kind or I-kind, they mark entities, and others are refused. In BIOES (BILOU) S- (U-) is a
whole entity and E- (L-) the end of one; they are read as B- and I-. In IOB2 B- begins each entity; in IOB1 it stands only between
two of one kind that touch. Both are read as IOB2.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.cells import NEARLY_ALL
from stages.tasks.kinds import Entities, Words
from stages.tasks.kinds.entities import METRICS, OUTSIDE
from stages.tasks.labelled_rows import Row, parted
from stages.tasks.split_files import data_files, unread
from stages.tasks.text import check_text, slug, text_lines
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

SUFFIX, VERSION = ".conll", 5
OTHER_PREFIXES = {"S-": "B-", "E-": "I-", "U-": "B-", "L-": "I-"}


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of a task of CoNLL files, None for other data."""
    path = Path(request.data)
    if not request.data or not (path.suffix == SUFFIX or path.is_dir() and any(path.glob(f"*{SUFFIX}"))):
        return None
    request.refuse_columns(f"a {SUFFIX} file has a word and its label on each line")
    files = data_files(path, (SUFFIX,))
    if not all(file.is_file() for file in files.values()):
        raise UserError(f"no file {path}; give a {SUFFIX} file or a directory of them", argument="data")
    if request.tag_scheme not in ("", "iob1", "iob2"):
        raise UserError(f"{request.tag_scheme!r} is unknown; choose iob2 or iob1", argument="tag_scheme")
    known = tuple(dict.fromkeys((*metrics.CLASSIFICATION, *METRICS)))
    metrics.select(request.metric, known, known)  # the labels decide which of them fit
    resolved = {role: str(file.resolve()) for role, file in files.items()}
    name = slug(request.task or path.stem)
    return TaskSource(
        name, "conll", VERSION, files=resolved, metric=request.metric, tag_scheme=request.tag_scheme
    )


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the sentences."""
    rows: dict[str, list[Row]] = {}
    notes = unread(source)
    for key, name in source.files.items():
        path, role = Path(name), key.partition(".")[0]
        read = list(_labelled(path))
        if not read:
            raise UserError(f"{path}: no sentences; give a word and its label on each line")
        rows.setdefault(role, []).extend(read)
        notes.append(f"{role}: {path.name}, {len(read):,} sentences")
    if _mark_entities(rows):
        rows = {role: list(map(_begun, of)) for role, of in rows.items()}
    if Entities.describes(label for of in rows.values() for row in of for label in row.value):
        as_iob2 = partial(_as_iob2, of_iob1=source.tag_scheme == "iob1")
        rows = {role: list(map(as_iob2, of)) for role, of in rows.items()}
    return task(source, rows, notes)


def _mark_entities(rows: dict[str, list[Row]]) -> bool:
    """Whether nearly all labels are O or a prefix and a kind.

    Raises:
        UserError: they are, and one is not.
    """
    tags = Counter(tag for of in rows.values() for row in of for tag in row.value)
    odd = {tag for tag in tags if tag != OUTSIDE and not re.match("[BIESUL]-.", tag)}
    others = tags.total() - tags[OUTSIDE]
    if not tags[OUTSIDE] or not others or sum(tags[tag] for tag in odd) > (1 - NEARLY_ALL) * others:
        return False
    for row in (row for of in rows.values() for row in of):
        for place, tag in enumerate(row.value):
            if tag in odd:
                raise UserError(
                    f"{row.path}, line {row.line + place}: label {tag!r} is neither O nor B- or I- and a kind, as nearly "
                    f"all labels are; correct it ({len(odd)} such labels)"
                )
    return True


def _begun(row: Row) -> Row:
    """A sentence with labels of BIOES or BILOU in the prefixes of IOB2."""
    return row._replace(value=[OTHER_PREFIXES.get(tag[:2], tag[:2]) + tag[2:] for tag in row.value])


def task(source: TaskSource, rows: dict[str, list[Row]], notes: list[str]) -> Task:
    """The task of sentences, their words parted by spaces, whose values are the labels of their words."""
    train = Path(source.files["train"])
    for role, of in rows.items():
        seen = [row for row in map(_seen, of) if row.value]
        if gone := sum(len(row.value) for row in of) - sum(len(row.value) for row in seen):
            notes.append(
                f"{role}: {gone:,} words without a visible character, which tokenizers drop, are left out"
            )
        rows = rows | {role: seen}
    rows = parted(rows, train, "sentences", notes)
    labels = sorted({label for row in rows["train"] for label in row.value})
    if len(labels) < 2:
        raise UserError(f"{train}: every label is {labels[0]!r}; give two labels or more")
    kind: Words = Entities.of(labels) if Entities.describes(labels) else Words(tuple(labels))
    notes.append(f"{kind.name}: {', '.join(kind.class_names[:20])}")
    splits = {}
    for role, of in rows.items():
        for row in of:
            if unknown := set(row.value) - set(kind.labels):
                where = f"{row.path}, the sentence at line {row.line}"
                raise UserError(
                    f"{where}: label {min(unknown)!r} is not one of train's: {', '.join(labels):.200}; fix it, or add such "
                    "sentences to train"
                )
        ids = [[kind.labels.index(label) for label in row.value] for row in of]
        splits[role] = Split([row.texts[0] for row in of], None, ids, kind.continued)
    chosen = metrics.select(source.metric, kind.reported, kind.selectable)
    return Task(source.name, kind, splits, *chosen, notes=tuple(notes))


def _seen(row: Row) -> Row:
    """A sentence without its words of control characters and marks alone, such as an emoji's variation selector."""
    words, kept, begun = [], [], ""
    for word, tag in zip(row.texts[0].split(" "), row.value, strict=True):
        if all(unicodedata.category(character)[0] in "CM" for character in word):
            begun = tag if tag.startswith("B-") else begun
            continue
        words.append(word)
        kept.append(begun if begun and tag == f"I-{begun[2:]}" else tag)
        begun = ""
    return row._replace(texts=(" ".join(words),), value=kept)


def _as_iob2(row: Row, of_iob1: bool) -> Row:
    """A sentence with labels in which B- begins each entity."""
    found = []
    for place, (tag, before) in enumerate(zip(row.value, ["O", *row.value], strict=False)):
        begins = tag[0] == "I" and (before == "O" or before[2:] != tag[2:])
        if begins and not of_iob1:
            raise UserError(
                f"{row.path}, line {row.line + place}: {tag!r} begins an entity, which B-{tag[2:]} does in IOB2; fix the "
                "label, or tag_scheme=iob1 reads it so",
                argument="tag_scheme",
            )
        found.append(f"B-{tag[2:]}" if begins else tag)
    return row._replace(value=found)


def sentences(path: Path) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield (first line, columns of each word) of every sentence.

    Raises:
        UserError: the file cannot be read, or a line has no label.
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
            if (
                len(columns) < 2
                or not all(columns)
                or any(len(c.split()) > 1 for c in (columns[0], columns[-1]))
            ):
                raise UserError(f"{where}: {line!r:.60} is not a word and its label; fix or remove the line")
            start = start if words else number
            words.append(columns)
        elif words:
            yield start, words
            words = []
    if words:
        yield start, words


def _labelled(path: Path) -> Iterator[Row]:
    width = 0
    for line, words in sentences(path):
        width = width or len(words[0])
        for number, columns in enumerate(words, start=line):
            if len(columns) != width:
                raise UserError(
                    f"{path}, line {number}: {len(columns)} columns, the first sentence has {width}; fix the line"
                )
        text = " ".join(word for word, *_ in words)
        yield Row(line, (text,), "", path, value=[columns[-1] for columns in words])
