"""What a cell of a label column says: a label, several, a number, or that there is none."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from checkpoints.errors import UserError
from stages.tasks.text import literal

RARE, NEARLY_ALL, SOME_CLASSES = 0.05, 0.9, 20
FAR = 3

MISSING = (
    "na", "n/a", "n.a.", "nan", "null", "(null)", "<na>", "nat", "\\n", "#n/a", "#na", "#ref!", "#div/0!", "#value!",
    "#name?", "#num!", "#null!", "#error!",
)  # fmt: skip
MISSING_IF_RARE = (
    "none", "(none)", "-", "--", "–", "—", "…", "?", "-1", "-1.0", ".", "nil", "missing", "undefined", "unlabeled",
    "unlabelled", "not available", "tbd",
)  # fmt: skip
NO_SCORE = (-1.0, -9.0, -99.0, -999.0, -9999.0)
WRITTEN_NUMBERS = (
    (r"-?\d+(,\d+)?", "", ","),  # 1200,5
    (r"-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?", ",", "."),  # 1,200.5
    (r"-?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?", ".", ","),  # 1.200,5
)
"""Forms of numbers: what divides thousands, and the decimal sign."""


def columns_of_ones(cells: dict[str, Any]) -> tuple[tuple[str, ...] | None, str]:
    """Return the columns that are 1, and why the row cannot be used."""
    holds = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    for name, cell in cells.items():
        if str(cell).strip().lower() not in holds:
            said = (
                "is empty" if cell is None or not str(cell).strip() else f"is {str(cell)!r:.40}, not 1 or 0"
            )
            return None, f"label {name!r} {said}"
    return tuple(name for name, cell in cells.items() if holds[str(cell).strip().lower()]), ""


def label_of(value: Any, declared: list[str], separator: str = "") -> tuple[str, tuple[str, ...] | None, str]:
    """Return a cell's label, its labels if it is a list, and why it is not one label.

    Args:
        declared: names that are taken as they are.
        separator: what divides labels in a text.
    """
    if separator and isinstance(value, str) and value.strip() and value.strip()[0] != "[":
        names = tuple(dict.fromkeys(name.strip() for name in value.split(separator) if name.strip()))
        return "", names, "" if names else "is empty"
    if isinstance(value, str):
        text = value if value in declared else value.strip()
        if text in declared or not re.fullmatch(r"\[.*\]|\{.*\}|\(.*\)|array\(.*\)", text, re.DOTALL):
            return text, None, "" if text else "is empty"
        value = list_in(text)
        if value is None:
            return text, None, ""
    if isinstance(value, dict) and len(value) == 1:  # Label Studio's {"choices": [...]}
        inside = next(iter(value.values()))
        value = inside if isinstance(inside, (str, list)) else value
    if isinstance(value, (list, tuple)):
        each = [label_of(part, declared) for part in value]
        several = None if any(unfit for *_, unfit in each) else tuple(name for name, *_ in each)
        if len(value) == 1:
            return each[0][0], several, each[0][2]
        return "", several, f"is several labels ({', '.join(map(str, value)):.60})" if value else "is empty"
    if value is None or isinstance(value, float) and math.isnan(value):
        return "", None, "is empty"
    if isinstance(value, dict):
        return "", None, f"is not one label but {value!r:.60}"
    if isinstance(value, bytes):
        return "", None, f"is bytes ({value!r:.40}), not text"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value), None, ""
    return str(value).strip(), None, ""  # a text; a decimal number or a date of Parquet's


QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
NUMBER = r"-?[\d.]+(?:e[+-]?\d+)?"


def list_in(text: str) -> list | tuple | dict | None:
    """Return the list or dict that a cell holds, as JSON, Python or numpy write it, or as [a, b]; None for another text.

    Example:
        >>> list_in("['joy' 'fear']"), list_in("[0 1]"), list_in("[joy, fear]"), list_in("[unsure]")
        (['joy', 'fear'], ['0', '1'], ['joy', 'fear'], None)
    """
    if of_numpy := re.fullmatch(r"array\((.*?)(?:, dtype=\w+)?\)", text, re.DOTALL):
        text = of_numpy[1]
    apart = re.fullmatch(rf"\[\s*((?:{QUOTED}|{NUMBER})(?:\s+(?:{QUOTED}|{NUMBER}))+)\s*\]", text)
    if apart:  # numpy's: ast would join the strings
        items = re.findall(rf"{QUOTED}|{NUMBER}", apart[1])
        read = [literal(item) if item[0] in "'\"" else item.rstrip(".") for item in items]
        return None if any(item[:1] in ("'", '"') for item in read) else read
    value = literal(text)
    if isinstance(value, (list, tuple, dict)):
        return value
    if re.fullmatch(r"\[[^\[\]{}'\"]*,[^\[\]{}'\"]*\]", text):
        return [name.strip() for name in text[1:-1].split(",")]
    return None


def number(label: Any) -> float | None:
    """Return the finite number that a label is; None if it is none."""
    try:
        value = float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def are_scores(labels: Sequence[Any]) -> bool:
    """Return whether nearly all are finite numbers, and one is not whole."""
    numbers = [value for label in labels if (value := number(label)) is not None]
    return len(numbers) >= NEARLY_ALL * len(labels) and any(not value.is_integer() for value in numbers)


def is_missing(label: str, rare: bool, names: Collection[str]) -> bool:
    """Return whether a label, such as "nan" or "-1", stands for a missing one.

    Args:
        label: as it stands in the table.
        rare: whether few rows have it.
        names: all labels of the column.
    """
    plain = label.casefold()
    if plain in MISSING:
        return True
    if plain not in MISSING_IF_RARE:
        return False
    if plain in ("-1", "-1.0"):
        numbers = [number(name) for name in names]
        if any(value is not None and value < -1 for value in numbers):
            return False  # one of -2, -1, 0, 1, 2
        # Not a class beside 0 and 1, or 1 alone.
        return rare or any(value is None or value > 1 for value in numbers)
    return rare or plain == "-" and "+" not in names


def missing_among(counts: Counter[str], known: Counter[str] | None = None) -> set[str]:
    """Return which labels of a column stand for missing ones (`is_missing`).

    Args:
        counts: how many rows have each label.
        known: the same of train, where the column is another split's: what train lacks counts as rare.
    """
    names, few = counts + (known or Counter()), RARE * counts.total()
    rare = {label for label, n in counts.items() if n <= few or known is not None and label not in known}
    return {label for label in counts if is_missing(label, label in rare, names)}


def is_no_score(label: str, names: Collection[str]) -> bool:
    """Return whether a number such as -1 or -99 stands for a missing score: it does if no other score is below 0."""
    return number(label) in NO_SCORE and all((number(name) or 0.0) >= 0 for name in names if name != label)


def far_scores(what: str, scores: Sequence[tuple[float, str]], train: Sequence[float]) -> list[str]:
    """Return a note on scores that are farther from nearly all of train's than `FAR` times the range of these, if there are any.

    Args:
        what: names the scores.
        scores: each with its place.
    """
    ordered, ends = sorted(train), min(max(1, round(RARE * len(train))), len(train) - 1)
    low, high = ordered[ends], ordered[-1 - ends]
    far = [
        f"{score:g} in {place}"
        for score, place in scores
        if max(low - score, score - high) > FAR * (high - low) > 0
    ]
    if not far:
        return []
    return [
        f"warning: {len(far):,} scores of {what} are far from nearly all of train's ({low:g} to {high:g}), such as {far[0]}; "
        "if they are slips, or on another scale, fix them"
    ]


def is_stray(label: str, counts: Counter[str]) -> bool:
    """Return whether a class is one of few numbers among names, or of few names among numbers.

    Args:
        counts: how many rows each class has, this one among them.
    """
    if len(counts) > SOME_CLASSES:
        return False
    alike = sum(n for other, n in counts.items() if (number(other) is None) == (number(label) is None))
    return alike < RARE * counts.total()


def way_of_writing(labels: list[str]) -> Callable[[str], str] | None:
    """Return what writes a column's numbers as Python reads them, if they have commas and nearly all fit one of the forms.

    Raises:
        UserError: "1,125" may be 1.125 or 1125.

    Example:
        >>> way_of_writing(["1.200,5", "3", "12,25"])("1.200,5")
        '1200.5'
    """
    if not any("," in label for label in labels):
        return None
    for form, thousands, point in WRITTEN_NUMBERS:
        numbers = [label for label in labels if re.fullmatch(form, label)]
        if len(numbers) < NEARLY_ALL * len(labels) or sum("," in n for n in numbers) <= RARE * len(labels):
            continue  # a stray comma is an odd cell, not a way to write numbers
        if not thousands and all(re.fullmatch(r"-?[1-9]\d{0,2},\d{3}|[^,]*", label) for label in numbers):
            if all("," in label for label in numbers):
                whole, _, rest = numbers[0].partition(",")
                raise UserError(
                    f"the label {numbers[0]!r}, and all others like it, may be {whole}.{rest} or {whole}{rest}; write them "
                    "without a comma"
                )
            continue  # the comma divides thousands

        def plain(label: str, form=form, thousands=thousands, point=point) -> str:
            fits = re.fullmatch(form, label)
            return label.replace(thousands, "").replace(point, ".") if fits else label

        return plain
    return None
