"""Answers to texts, in a table: what a language model, people or any other teacher said of them.

A row has a text in the task's text columns, or in `text` and for pairs `text_b`, and its answer in one of these columns:

- probabilities: {label: probability}, or a list in the order of the task's labels.
- logits: the same, of logits.
- a column for each label, with its probability.
- label: a label; a list of labels where a row has several; a number where it has a score.

The first that a row has counts. A list or an object may be JSON in a cell. Several answers to one text become their
mean. Texts are matched with the task's by content, whatever their case and white space.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.errors import UserError
from stages.tasks.cells import far_scores, number
from stages.tasks.kinds import Classes, Kind
from stages.tasks.numpy_when_used import np
from stages.tasks.tables import open_table
from stages.tasks.text import check_text, folded, literal
from stages.tasks.types import Task

FORMS = ("probabilities", "logits", "label")
SUM_MAY_DIFFER = 0.01
"""From 1, of the probabilities of classes: they are rounded when they are written. They are then divided by their sum."""


class Answer(NamedTuple):
    """One answer as it stands in the table: its line, the texts, its form, what is in the cell, and why it is unfit."""

    line: int
    texts: tuple[str, ...]
    form: str
    given: Any
    unfit: str = ""

    @property
    def key(self) -> str:
        """Equal for answers to texts that count as the same."""
        return key(self.texts)


def key(texts: Iterable[str]) -> str:
    """What texts must share to count as the same: all but case and white space."""
    return "\t".join(map(folded, texts))


@dataclass
class Answered:
    """What was answered to each text.

    Attributes:
        first: key of a text -> the first answer to it.
        values: key of a text -> probabilities of the labels, or the score: the mean of its answers.
    """

    path: Path
    first: dict[str, Answer]
    values: dict[str, tuple[float, ...]]
    notes: list[str]


def read_answers(
    path: Path, texts: Sequence[tuple[str, ...]], labels: Sequence[str] = (), label: str | None = None
) -> list[Answer]:
    """Read a table of answers.

    Args:
        path: CSV, TSV, JSON, JSONL or Parquet.
        texts: choices of the one or two text columns; the first that the table has is read.
        labels: the labels of the task, which may be columns.
        label: the column of answers. If empty or None, the first form that the table has; with None, errors suggest no name.

    Raises:
        UserError: the table cannot be read, or has no text or answer column.
    """
    table = open_table(path, wanted=texts[0])
    columns = next((names for names in texts if set(names) <= set(table.columns)), None)
    there = f"its columns are {', '.join(f'{name!r:.40}' for name in table.columns)}"
    if not table.columns:
        raise UserError(f"{path}: no rows; give a table with an answer in each row")
    if columns is None:
        wanted = " or ".join(" and ".join(names) for names in dict.fromkeys(texts))
        which = "" if label is None else "give text_columns=NAME, or "
        raise UserError(f"{path}: no text column; {there}; {which}name it {wanted}")
    if label and label not in table.columns:
        raise UserError(f"{path}: no column {label!r}; {there}; give one of these", argument="label_column")
    by_class = not label and bool(labels) and set(labels) <= set(table.columns)
    if not label and not by_class and not set(FORMS) & set(table.columns):
        which = "" if label is None else "give label_column=NAME, or "
        raise UserError(
            f"{path}: no column of answers; {there}; {which}name it label, probabilities or logits, or give a column of "
            "probabilities for each label"
        )
    answers = []
    for line, row in table.rows:
        found = tuple(check_text(row.get(name) or "", f"{path}, line {line}: {name!r}") for name in columns)
        if label:
            form, given = label if label in FORMS else "label", parsed(row.get(label))
        else:
            form, given = _given(row, labels if by_class else ())
        empty = next((n for n, text in zip(columns, found, strict=True) if not text.strip()), "")
        unfit = f"{empty!r} is empty" if empty else "no answer" if given is None else ""
        answers.append(Answer(line, found, form, given, unfit))
    if not answers:
        raise UserError(f"{path}: no rows; give a table with an answer in each row")
    return answers


def _given(row: dict[str, Any], columns: Sequence[str]) -> tuple[str, Any]:
    """The form of a row's answer, and the answer; None if it has none."""
    for form in FORMS[:2]:
        if (value := parsed(row.get(form))) is not None:
            return form, value
    by_class = {name: parsed(row.get(name)) for name in columns}
    if any(value is not None for value in by_class.values()):
        return "probabilities", by_class
    return "label", parsed(row.get("label"))


def parsed(cell: Any) -> Any:
    """The value of a cell: a list or an object also from JSON or Python's form of it; None for an empty one."""
    if isinstance(cell, str):
        text = cell.strip()
        if text[:1] + text[-1:] in ("[]", "{}"):
            return literal(text)
        return text or None
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def together(path: Path, answers: list[Answer], kind: Kind, leave_out: bool) -> Answered:
    """Join the answers to each text.

    Args:
        leave_out: leave out answers that cannot be used, and count them.

    Raises:
        UserError: one cannot be used, and is not to be left out; or none can be used.
    """
    if kind.head != Classes.head:
        what = "for words" if kind.token_level else "to questions about a text"
        raise UserError(
            f"{path}: answers {what} cannot be learned, only answers for whole rows; give a task with a label a row"
        )
    values: dict[str, list[tuple[float, ...]]] = {}
    first: dict[str, Answer] = {}
    unfit: Counter[str] = Counter()
    for answer in answers:
        try:
            if answer.unfit:
                raise ValueError(answer.unfit)
            value = _value(answer, kind)
        except ValueError as error:
            if not leave_out:
                raise UserError(
                    f"{path}, line {answer.line}: {error}; fix it, or unfit_rows=leave_out leaves such answers out"
                ) from None
            unfit[str(error).partition(" (")[0]] += 1
            continue
        first.setdefault(answer.key, answer)
        values.setdefault(answer.key, []).append(value)
    notes = [f"answers: {path.name}, {len(answers):,} answers to {len(values):,} texts"]
    if unfit:
        why = "; ".join(f"{count:,}: {reason:.80}" for reason, count in unfit.most_common(3))
        notes.append(f"answers: {unfit.total():,} left out ({why})")
    if not values:
        raise UserError(f"{path}: no answer can be used ({unfit.most_common(1)[0][0]}); give others")
    means = {k: tuple(sum(column) / len(of) for column in zip(*of, strict=True)) for k, of in values.items()}
    if not kind.labels:
        scores = [score for (score,) in means.values()]
        places = (f"{path.name}, line {answer.line}" for answer in first.values())
        notes += far_scores("the answers", list(zip(scores, places, strict=True)), scores)
    return Answered(path, first, means, notes)


def _value(answer: Answer, kind: Kind) -> tuple[float, ...]:
    """Probabilities of the labels, or the score; a ValueError where they cannot be read."""
    if not kind.labels:
        return (_number(answer.given if answer.form == "label" else None, "the score"),)
    if answer.form == "label":
        names = answer.given if isinstance(answer.given, list) else [answer.given]
        names = list(map(label_name, names))
        if kind.exclusive and len(names) != 1:
            raise ValueError(f"{len(names)} labels ({', '.join(names):.60}), but a row of the task has one")
        return tuple(float(label in names) for label in _known(names, kind))
    values = answer.given
    if isinstance(values, dict):
        values = {label_name(name): value for name, value in values.items()}
        known = _known(list(values), kind)
        missing = [label for label in known if values.get(label) is None]
        if missing and answer.form == "logits":
            raise ValueError(f"no logit of {missing[0]!r}")
        values = [0.0 if label in missing else values[label] for label in known]
    if not isinstance(values, list) or len(values) != kind.outputs:
        raise ValueError(
            f"{answer.form} {json.dumps(answer.given, default=str):.60} are not {kind.outputs} numbers (give them "
            f"in the order {', '.join(kind.labels):.100}, or as an object with these names)"
        )
    numbers = [_number(value, f"of {answer.form} one") for value in values]
    if answer.form == "logits":
        return tuple(kind.probabilities(np.array([numbers]))[0].tolist())
    total = math.fsum(numbers)
    if min(numbers) < 0 or max(numbers) > 1 + SUM_MAY_DIFFER:
        raise ValueError("probabilities outside 0 to 1 (name the column logits if they are logits)")
    if not kind.exclusive:
        return tuple(min(number, 1.0) for number in numbers)
    if abs(total - 1) > SUM_MAY_DIFFER:
        raise ValueError(f"probabilities that sum to {total:.3g}, not to 1")
    return tuple(number / total for number in numbers)


def label_name(value: Any) -> str:
    """The name of a label: a number's digits, as JSON has them."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _known(names: Sequence[str], kind: Kind) -> tuple[str, ...]:
    """The labels of the task, if `names` are among them, else a ValueError."""
    labels = kind.labels or ()
    for name in names:
        if name not in labels:
            raise ValueError(f"label {name!r:.60} is not one of {', '.join(labels):.200}")
    return labels


def _number(value: Any, what: str) -> float:
    found = None if isinstance(value, bool) else number(value)
    if found is None:
        raise ValueError(f"{what} is {value!r:.40}, not a finite number")
    return found


def labels_of(kind: Kind, values: list[tuple[float, ...]]) -> list[Any]:
    """The labels that probabilities say, in the form that the task's rows have."""
    if not kind.labels:
        return [score for (score,) in values]
    said = kind.answers(kind.logits(np.array(values).reshape(-1, kind.outputs))).tolist()
    return [tuple(map(float, row)) if isinstance(row, list) else row for row in said]


def answered_by(task: Task, answered: Answered, leave_out: bool) -> Task:
    """The task with the answers as labels of its training rows. Dev and test keep their own.

    Args:
        task: with labels of its own.
        answered: the answers, to its texts.
        leave_out: leave out rows without an answer, and answers to other texts; else both are refused.

    Raises:
        UserError: rows and answers do not fit together.
    """
    path = answered.path
    keys = {role: [key(split.texts(i)) for i in range(len(split))] for role, split in task.splits.items()}
    train = task.splits["train"]
    asked = set().union(*keys.values())
    strange = [answer for k, answer in answered.first.items() if k not in asked]
    there = [i for i, k in enumerate(keys["train"]) if k in answered.values]
    if not there:
        raise UserError(
            f"{path}: none of its {len(answered.first):,} texts is a row of the task's train; give answers to these rows"
        )
    if strange and not leave_out:
        raise UserError(
            f"{path}, line {strange[0].line}: no row of the task has the text {strange[0].texts[0]!r:.60} (of {len(strange):,} "
            "answers); remove such answers, or unfit_rows=leave_out leaves them out"
        )
    missing = len(train) - len(there)
    if missing and not leave_out:
        text = next(t for k, t in zip(keys["train"], train.text_a, strict=True) if k not in answered.values)
        raise UserError(
            f"{path}: {missing:,} of {len(train):,} rows of train have no answer, such as {text!r:.60}; ask for the others, "
            "or unfit_rows=leave_out leaves such rows out"
        )
    values = [answered.values[keys["train"][i]] for i in there]
    rows = replace(train.part(there), labels=labels_of(task.kind, values), answers=values)
    notes = [
        *answered.notes,
        f"answers: {len(there):,} of {len(train):,} rows of train have one and learn it",
    ]
    if missing or strange:
        notes.append(
            f"answers: left out {missing:,} rows without one, {len(strange):,} answers to other texts"
        )
    for role, split in task.splits.items():
        both = [i for i, k in enumerate(keys[role]) if k in answered.values]
        if both and task.kind.labels:
            said = labels_of(task.kind, [answered.values[keys[role][i]] for i in both])
            same = sum(split.labels[i] == label for i, label in zip(both, said, strict=True))
            notes.append(
                f"answers: {same / len(both):.1%} of {len(both):,} have the label of their row in {role}"
            )
    return replace(task, splits=task.splits | {"train": rows}, notes=(*task.notes, *notes))
