"""Rows as readers find them: labelled, perhaps unfit, held out for dev, and each in one split alone."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.cells import SOME_CLASSES
from stages.tasks.kinds import Kind, LabelSets
from stages.tasks.split_files import ROLES
from stages.tasks.text import as_argument, folded, hashed
from stages.tasks.types import Split, TaskSource

TRUTH = {"false": "0", "true": "1"}
"""Truth in words -> in numbers: a column that has both most likely means two classes."""
FEWEST_DEV = 30


class Row(NamedTuple):
    """One labelled row, the line on which it starts and its file.

    `unfit` says why it cannot be used; "" if it can. `names` are those of several labels, None if the cell is not a list.
    `value` is what a model learns of the row (a class id, a score, the labels of its words, answers), or its image.
    """

    line: int
    texts: tuple[str, ...]
    label: str
    path: Path
    unfit: str = ""
    names: tuple[str, ...] | None = None
    value: Any = None

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return f"{self.path}, line {self.line}"

    @property
    def key(self) -> str:
        """Equal for rows whose texts count as the same."""
        return "\t".join(folded(text) for text in self.texts)


def checked_unfit_rows(given: str) -> str:
    if given not in ("", "refuse", "leave_out"):
        raise UserError(f"{given!r} is unknown; choose refuse or leave_out", argument="unfit_rows")
    return "" if given == "refuse" else given


def fitting(rows: list[Row], source: TaskSource, role: str, notes: list[str]) -> list[Row]:
    """The rows that can be used, if those that cannot are to be left out."""
    unfit = [row for row in rows if row.unfit]
    if not unfit:
        return rows
    if source.unfit_rows and len(unfit) < len(rows):
        reasons = Counter(re.sub(r" \(.*", "", row.unfit) for row in unfit).most_common(3)
        why = "; ".join(f"{count:,}: {reason}" for reason, count in reasons)
        notes.append(f"{role}: {len(unfit):,} rows left out ({why}), lines {_lines(unfit)}")
        return [row for row in rows if not row.unfit]
    first = unfit[0]
    if len(unfit) == len(rows):
        raise UserError(f"{first.where}: {first.unfit}, and no other row fits either; fix the file")
    others = unfit[1:]
    many = "rows do not fit: lines" if len(others) > 1 else "row does not fit: line"
    more = f" (and {len(others):,} more {many} {_lines(others)})" if others else ""
    kept = sorted({name for row in rows for name in row.names or (row.label,) if name})
    is_class = "looks like" in first.unfit and len(kept) <= SOME_CLASSES
    name = f", or {as_argument('labels', kept)} makes it a class" if is_class else ""
    if "is several labels" in first.unfit:
        name = f", or metric={metrics.LABEL_SETS[0]} learns several labels a row"
    if source.label_separator and any(row.unfit == f"the label {source.label!r} is empty" for row in unfit):
        name = ", or write [] where a row has no label"
    raise UserError(
        f"{first.where}: {first.unfit}{more}; correct the row or remove it, or unfit_rows=leave_out "
        f"leaves such rows out{name}"
    )


def _lines(rows: list[Row]) -> str:
    """The lines of the rows, or of the first ten."""
    return ", ".join(f"{row.line}" for row in rows[:10]) + (", ..." if len(rows) > 10 else "")


def parted(
    rows: dict[str, list[Row]],
    path: Path,
    what: str,
    notes: list[str],
    text: int | None = None,
    held: int | None = None,
) -> dict[str, list[Row]]:
    """The rows with a dev split, and each of them in one split alone, in the order of `ROLES`.

    Without dev some of train is held out, by a hash of the text: a tenth; of a small file `FEWEST_DEV`, at most a
    quarter. Rows of train that are also in dev or test, and rows of dev that are also in test, are dropped.

    Args:
        rows: role -> rows.
        path: of train's file.
        what: the rows, for notes and messages.
        notes: notes on dev and on dropped rows are added.
        text: rows are the same if their texts of this number are; None: if all are.
        held: the number of the text by which rows are held out together, such as 1, the context of questions; None: by `text`.

    Raises:
        UserError: there are no rows, or nothing would be left of a split.
    """
    if "dev" not in rows:
        rows = rows | _hold_out(rows["train"], path, what, notes, text if held is None else held)
    kept: dict[str, list[Row]] = {}
    seen: set[str] = set()
    for role in reversed([role for role in ROLES if role in rows]):
        others = " or ".join(other for other in ROLES if other in kept)
        kept[role] = [row for row in rows[role] if _key(row, text) not in seen]
        if dropped := len(rows[role]) - len(kept[role]):
            notes.append(f"{role}: {dropped:,} of {len(rows[role]):,} {what} dropped, also in {others}")
        if not kept[role]:
            raise UserError(f"every row of {role} is also in {others}; give other rows")
        seen |= {_key(row, text) for row in kept[role]}
    return dict(reversed(kept.items()))


def _hold_out(
    train: list[Row], path: Path, what: str, notes: list[str], text: int | None
) -> dict[str, list[Row]]:
    """What is left of train, and dev."""
    if not train:
        raise UserError(f"{path}: no {what}; give a file with some")
    digests = [hashed("dev" + _key(row, text)) for row in train]
    keys = [(digest % 10, digest) for digest in digests]
    tenth, fewest = sum(key[0] == 0 for key in keys), max(1, min(FEWEST_DEV, len(train) // 4))
    last = sorted(keys)[max(tenth, fewest) - 1]
    dev = [row for row, key in zip(train, keys, strict=True) if key <= last]
    if len(dev) == len(train):
        raise UserError(
            f"{path}: {len(train)} {what} of one text leave nothing to hold out as dev; give a dev file"
        )
    note = f"dev: {len(dev):,} of {len(train):,} {what} of train, held out, as there is no dev file"
    if tenth < fewest:
        note += (
            f" (a tenth is too few to choose a model by; {FEWEST_DEV} {what}, at most a quarter, are taken)"
        )
    notes.append(note)
    return {"train": [row for row, key in zip(train, keys, strict=True) if key > last], "dev": dev}


def _key(row: Row, text: int | None) -> str:
    """Equal for rows that count as the same: by all their texts, or by one."""
    return row.key if text is None else folded(row.texts[text])


def splits_of(rows: dict[str, list[Row]]) -> dict[str, Split]:
    """The splits of rows with texts and values."""
    return {role: Split.of((row.texts, row.value) for row in of) for role, of in rows.items()}


def notes_of_classes(
    names: Sequence[str], counts: dict[str, Counter[str]], what: str = "classes", row: str = "row"
) -> list[str]:
    """Notes on the classes, or on the symbols of strings: how often they are, which some split lacks, which look alike.

    Args:
        counts: role -> how often each is in that split.
        what: they are.
        row: of a split, in a word.
    """
    shown = ", ".join(f"{name!r} {counts['train'][name]:,}" for name in names[:20])
    notes = [f"{len(names)} {what} in train: {shown}{', ...' if len(names) > 20 else ''}"]
    for role, of in counts.items():
        if lacks := [repr(name) for name in names if not of[name]]:
            effect = "it cannot be learned" if role == "train" else "it is not measured there"
            notes.append(f"warning: {role} has no {row} of {', '.join(lacks[:10])}: {effect}")
    seen = {name: folded(unicodedata.normalize("NFKC", name)) for name in names}
    seen = {name: TRUTH.get(text, text) for name, text in seen.items()}
    twins = Counter(seen.values())
    if what == "classes" and (alike := [repr(name) for name in names if twins[seen[name]] > 1]):
        notes.append(
            f"warning: {', '.join(alike[:10])} are different classes, though some seem to be the same"
        )
    return notes


def counts_of_classes(kind: Kind, splits: dict[str, Split]) -> dict[str, Counter[str]]:
    """How often each class is in each split; in rows of several labels, how many rows have it."""
    labels: Any = kind.labels
    return {
        role: Counter(
            name
            for row in split.labels
            for name in (kind.names(row) if isinstance(kind, LabelSets) else [labels[row]])
        )
        for role, split in splits.items()
    }
