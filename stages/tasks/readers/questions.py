"""The user's own questions about contexts, in the layouts of SQuAD.

- SQuAD's own JSON: {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ...,
  "answers": [{"text": ..., "answer_start": ...}], "is_impossible": ...}]}]}]}. `is_impossible` is of version 2.0, in
  which a context may have no answer.
- A table (JSON lines, CSV, Parquet, a saved data set) with columns question, context and answers, {"text": [...],
  "answer_start": [...]}, as `datasets` has it, or [{"text": ..., "answer_start": ...}]; a column id is not required. A
  question without answers has none.
- SQuAD itself on the hub: the tasks `squad` and `squad-v2`, whose test rows nobody has.

`data` is a file, or a directory with train and optionally dev and test. Without dev some of train is held out, by a hash of
the context, so that the questions of a context stay together. Questions of train whose context is also in dev
or test stay, but the same question about it does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.hub_datasets import load_hub
from stages.tasks.kinds import Questions
from stages.tasks.kinds.questions import METRICS
from stages.tasks.labelled_rows import Row, checked_unfit_rows, fitting, parted, splits_of
from stages.tasks.split_files import data_files, unread
from stages.tasks.tables import open_table
from stages.tasks.text import check_text, literal, recognised, slug, text_lines
from stages.tasks.types import GoldAnswers, Task, TaskRequest, TaskSource

COLUMNS, ANSWERS = ("question", "context"), "answers"
HUB = {"squad": ("rajpurkar/squad", "plain_text"), "squad-v2": ("rajpurkar/squad_v2", "squad_v2")}
"""Task -> its data set on the hub, and the configuration."""
HEAD = 20_000
"""Characters of a file by which SQuAD's layout is recognised."""


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of a task of questions, None for other data."""
    named = request.text_columns in ((), COLUMNS) and request.label_column in ("", ANSWERS)
    if not named or request.label_columns or request.columns:
        return None
    task = request.task.lower().replace("_", "-").replace("squadv2", "squad-v2")
    if not request.data and task in HUB:
        metrics.select(request.metric, METRICS, METRICS)
        hub, config = HUB[task]
        unfit_rows = checked_unfit_rows(request.unfit_rows)
        return TaskSource(
            task, "questions", hub=hub, config=config, metric=request.metric, unfit_rows=unfit_rows
        )
    if not request.data:
        return None
    path = Path(request.data)
    if not path.exists():
        return None
    files = data_files(path)
    if not _is_squad(files["train"]):
        table = open_table(files["train"], request.encoding, request.delimiter)
        if not {*COLUMNS, ANSWERS} <= set(table.columns):
            return None
    metrics.select(request.metric, METRICS, METRICS)
    return TaskSource(
        slug(request.task or path.stem), "questions", metric=request.metric, encoding=request.encoding,
        files={role: str(file.resolve()) for role, file in files.items()},
        unfit_rows=checked_unfit_rows(request.unfit_rows),
    )  # fmt: skip


def _is_squad(path: Path) -> bool:
    """Whether a file is SQuAD's own JSON, by how it begins."""
    if not re.search(r"\.json(\.gz)?$", path.name.lower()) or not path.is_file():
        return False
    head = ""
    for _, line in text_lines(path, recognised(path)):
        head += line[:HEAD]
        if len(head) >= HEAD:
            break
    return bool(re.match(r"\s*\{", head) and re.search(r'"paragraphs"\s*:\s*\[', head))


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the questions, their contexts and their answers."""
    rows: dict[str, list[Row]] = {}
    notes: list[str] = []
    if source.hub:
        instead = "give the directory of SQuAD's files as data"
        sets = load_hub(source.hub, source.config, revision, instead, argument="data")
        for role, name in (("train", "train"), ("dev", "validation")):
            rows[role] = list(_rows(Path(source.hub, name), enumerate(sets[name], start=1)))
    for key, name in source.files.items():
        path, role = Path(name), key.partition(".")[0]
        read = list(
            _squad(path, source) if _is_squad(path) else _rows(path, open_table(path, source.encoding).rows)
        )
        rows.setdefault(role, []).extend(_without_repeated_ids(read))
        notes.append(f"{role}: {path.name}, {len(read):,} questions")
    notes += [] if source.hub else unread(source)
    if "test" in rows and not any(row.value.texts for row in rows["test"]):
        notes.append("the test file is not used: its questions have no answers")
        del rows["test"]
    rows = {role: fitting(of, source, role, notes) for role, of in rows.items()}
    rows = parted(rows, Path(source.files.get("train", "")), "questions", notes, held=1)
    splits = splits_of(rows)
    without = sum(not answers.texts for split in splits.values() for answers in split.labels)
    if without:
        total = sum(map(len, splits.values()))
        notes.append(f"{without:,} of {total:,} questions have no answer in their contexts")
    kind = Questions(threshold=0.0 if without else None)
    return Task(
        source.name, kind, splits, *metrics.select(source.metric, METRICS, METRICS), notes=tuple(notes)
    )


def _squad(path: Path, source: TaskSource) -> Iterator[Row]:
    """The questions of SQuAD's own JSON; their numbers stand for lines."""
    encoding = recognised(path, source.encoding)
    try:
        value = json.loads("".join(line for _, line in text_lines(path, encoding)))
        asked = [
            (paragraph["context"], asked)
            for article in value["data"]
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
        ]
        second = any("is_impossible" in asked for _, asked in asked)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); save it again as JSON") from error
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not SQuAD's layout ({type(error).__name__}: {error}); write data, paragraphs, context, qas, "
            "question and answers"
        ) from error
    for number, (context, entry) in enumerate(asked, start=1):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, question {number}: {entry!r:.60} is not an object; write one")
        answers = entry.get("answers") or []
        if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
            raise UserError(
                f"{path}, question {number}: {answers!r:.60} is not a list of objects; give each answer text and answer_start"
            )
        found = {name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")}
        impossible = bool(entry.get("is_impossible")) if second else False
        yield _row(path, number, entry.get("id"), entry.get("question"), context, found, impossible)


def _rows(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Row]:
    """The questions of a table, by their lines."""
    for line, row in rows:
        where = f"{path}, line {line}"
        for column in (*COLUMNS, ANSWERS):
            if column not in row:
                raise UserError(f"{where}: no {column!r}; this row has {', '.join(map(repr, row))}")
        cell: Any = row[ANSWERS]
        if isinstance(cell, str):
            cell = literal(cell)
        if isinstance(cell, list) and all(isinstance(answer, dict) for answer in cell):
            cell = {name: [answer.get(name) for answer in cell] for name in ("text", "answer_start")}
        fits = isinstance(cell, dict) and all(
            isinstance(cell.get(name), list) for name in ("text", "answer_start")
        )
        if not fits or len(cell["text"]) != len(cell["answer_start"]):
            raise UserError(
                f'{where}: {row[ANSWERS]!r:.60} are not answers; write {{"text": [...], "answer_start": [...]}}, '
                "equally long"
            )
        yield _row(path, line, row.get("id"), row["question"], row["context"], cell, not cell["text"])


def _row(
    path: Path, line: int, name: Any, question: Any, context: Any, answers: dict[str, list], impossible: bool
) -> Row:
    """A question with its answers, and what is unfit about it.

    Args:
        answers: "text" and "answer_start" of each.
        impossible: whether it is meant to have no answer.
    """
    where = f"{path}, line {line}"
    texts = [
        check_text("" if text is None else text, f"{where}: {column!r}")
        for column, text in zip(COLUMNS, (question, context), strict=True)
    ]
    unfit = next((f"{c!r} is empty" for c, text in zip(COLUMNS, texts, strict=True) if not text.strip()), "")
    about = "" if name is None else f"id {name!r:.40}: "
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int):
            unfit = unfit or f"an answer is not a text and a place ({about}{text!r:.40} at {start!r:.20})"
        elif start < 0 or texts[1][start : start + len(text)] != text:
            there = texts[1][max(start, 0) : max(start, 0) + len(text)]
            unfit = unfit or (
                f"an answer is not in its context at its place ({about}{text!r:.40} at {start}, where {there!r:.40} is)"
            )
    if not answers["text"] and not impossible:
        unfit = unfit or f"it has no answers ({about}only a question with is_impossible may have none)"
    elif answers["text"] and impossible:
        unfit = unfit or f"it is_impossible and has answers ({about}keep one of the two)"
    found = () if unfit else tuple(answers["answer_start"])
    gold = GoldAnswers(tuple(answers["text"]) if found else (), found)
    return Row(line, tuple(texts), json.dumps(name, default=str), path, unfit, value=gold)


def _without_repeated_ids(rows: list[Row]) -> list[Row]:
    """The questions of a file; those whose id an earlier one has are unfit."""
    first: dict[str, int] = {}
    kept = []
    for row in rows:
        if row.label != "null" and first.setdefault(row.label, row.line) != row.line and not row.unfit:
            row = row._replace(unfit=f"its id is an earlier question's (id {row.label:.40})")
        kept.append(row)
    return kept
