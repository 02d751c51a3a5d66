"""Schedules: a number, or a function of how much of its stage a student has trained.

A loss says which of its settings may be a schedule. A schedule is written as a number, or as one of

    linear: [from, to]          a straight line over the whole stage
    stairs: [from, to, n]       n equal steps, the first at `from`, the last at `to`
    points: [[at, value], ...]  straight lines between points, `at` from 0 to 1; two points of equal `at` are a jump

Nothing of a schedule is saved: it depends on the step alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from checkpoints.errors import UserError
from stages.distillation.settings import is_number

Schedule = Callable[[float], float]
"""Fraction of the stage's steps that are done, from 0 to below 1 -> value. It can be pickled, as the loss that has it."""


def schedule(value: Any, name: str, above_zero: bool = False) -> Schedule:
    """Make the schedule that a recipe's value describes.

    Args:
        value: a number, or one of the forms above.

    Raises:
        UserError: the value is not a schedule, or is not above 0.
    """
    made, lowest = _schedule(value, name)
    if above_zero and lowest <= 0:
        raise UserError(f"{value!r} reaches {lowest:g}; keep it above 0", argument=name)
    return made


def _schedule(value: Any, name: str) -> tuple[Schedule, float]:
    """The schedule and its lowest value."""
    if is_number(value):
        return partial(_constant, float(value)), value
    if isinstance(value, dict) and len(value) == 1:
        ((kind, numbers),) = value.items()
        if kind == "linear" and _are_numbers(numbers, 2):
            return partial(_on_line, [[0, numbers[0]], [1, numbers[1]]]), min(numbers)
        if kind == "stairs" and _are_numbers(numbers, 3) and isinstance(numbers[2], int) and numbers[2] > 1:
            return partial(_on_stairs, *numbers), min(numbers[:2])
        if kind == "points" and isinstance(numbers, list) and all(_are_numbers(pair, 2) for pair in numbers):
            places = [at for at, _ in numbers]
            if places and places == sorted(places) and 0 <= places[0] and places[-1] <= 1:
                return partial(_on_line, numbers), min(of for _, of in numbers)
    raise UserError(
        f"{value!r} must be a number, or linear: [from, to], stairs: [from, to, n] with n above 1, or points: "
        "[[at, value], ...] with `at` rising from 0 to 1",
        argument=name,
    )


def _constant(value: float, progress: float) -> float:
    return value


def _on_stairs(first: float, last: float, count: int, progress: float) -> float:
    return first + (last - first) * min(int(progress * count + 1e-9), count - 1) / (count - 1)


def _on_line(points: list[list[float]], progress: float) -> float:
    before = [point for point in points if point[0] <= progress]
    after = [point for point in points if point[0] > progress]
    if not before or not after:
        return float((before[-1] if before else after[0])[1])
    (x, y), (end, target) = before[-1], after[0]
    return y + (target - y) * (progress - x) / (end - x)


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(is_number(value) for value in values)
