"""What a measured work is: a plain reference, this project's way, and what the machine allows."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.machine import Machine

TOLERANCE = 1e-4
"""Relative difference up to which two fp32 numbers agree."""


@dataclass
class Work:
    """One line of the table.

    Attributes:
        goal: of the ratio ours / reference; a ceiling where less is better.
        reference, ours: called with the number of the repeat, -1 to warm up; give the measure in `unit`.
        limit: the measure in `unit` that this machine allows at best. Called after the others.
        agrees: whether both sides compute the same. Called after the others.
        more: measures beside the main one, (what, unit, reference, ours).
    """

    name: str
    unit: str
    goal: float | None
    reference: Callable[[int], float]
    ours: Callable[[int], float]
    limit: Callable[[Machine], float]
    agrees: Callable[[], bool]
    less_is_better: bool = False
    more: Callable[[], list[tuple[str, str, float, float]]] = list


def close(a: float, b: float) -> bool:
    """Whether two numbers agree."""
    return abs(a - b) <= TOLERANCE * abs(b)
