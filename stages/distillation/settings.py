"""Checks of what a recipe gives to losses and methods: the values of settings, and the kind of student."""

import math
from collections.abc import Collection
from typing import Any

from transformers import PretrainedConfig

from checkpoints.errors import UserError

RANGES = {
    "above 0": lambda number: number > 0,
    "from 0": lambda number: number >= 0,
    "from 0 to 1": lambda number: 0 <= number <= 1,
    "from 0 to below 1": lambda number: 0 <= number < 1,
    "between 0 and 1": lambda number: 0 < number < 1,
}


def is_number(value: Any) -> bool:
    """Return whether a recipe's value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, among: str, setting: str) -> float:
    """Return `value`, a number of one of `RANGES`.

    Example:
        >>> number(0.5, "between 0 and 1", "density")
        0.5
    """
    if not is_number(value) or not RANGES[among](value):
        raise UserError(f"{value!r} must be a number {among}", argument=setting)
    return value


def whole(value: Any, least: int, most: int | None, setting: str) -> int:
    """Return `value`, a whole number from `least` to `most`; None: of any size."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or most and value > most:
        to = f" to {most}" if most else ""
        raise UserError(f"{value!r} must be a whole number from {least}{to}", argument=setting)
    return value


def choose(value: str, choices: tuple[str, ...], setting: str) -> str:
    """Return `value`, one of `choices`."""
    if value not in choices:
        raise UserError(f"{value!r} must be {' or '.join(choices)}", argument=setting)
    return value


def check_type(
    student: PretrainedConfig, types: Collection[str], lacks: str, argument: str = "method"
) -> None:
    """Raise a UserError unless a student's `model_type` is one of `types`; `lacks` says what others lack."""
    if student.model_type not in types:
        raise UserError(
            f"a {student.model_type} {lacks}; give a student of {', '.join(types)}", argument=argument
        )
