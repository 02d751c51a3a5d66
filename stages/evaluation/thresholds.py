"""Find the confidence above which a student's answers agree with its teacher's (or with gold labels) as often as promised.

It is found on held-out rows. The student answers the rows above it; those below go to the teacher.
"""

import math
from dataclasses import dataclass

import numpy as np

STEPS = 20
"""Of a cascade's thresholds that are tried: the most confident 5%, 10%, ... of the held-out rows."""

RISK = 0.05
"""Probability with which a promise may be broken, over the draw of the held-out rows."""

ROOM = 2
"""The first threshold is tried on twice the rows that would suffice if all of them agreed. On fewer rows a single
disagreement would make it fail, and after a failure no other threshold is tried."""


@dataclass(frozen=True)
class Threshold:
    """A threshold that keeps its promise.

    Attributes:
        confidence: the confidence of the student's answers, from which on they count.
        agreement: observed, of the held-out rows above.
        lower: its lower confidence bound, one-sided.
        share: the part of the held-out rows that is above.
        rows: number of held-out rows.
    """

    confidence: float
    agreement: float
    lower: float
    share: float
    rows: int


def lower_bound(right: int, rows: int) -> float:
    """The lower confidence bound of a ratio (Clopper and Pearson 1934), one-sided.

    Example:
        >>> round(lower_bound(59, 59), 3)
        0.95
    """
    from scipy.special import betaincinv

    return float(betaincinv(right, rows - right + 1, RISK)) if right else 0.0


def least_rows(promise: float) -> int:
    """The held-out rows above a threshold without which it is not tried."""
    return ROOM * math.ceil(math.log(RISK) / math.log(promise))


def find_threshold(confidences: np.ndarray, agrees: np.ndarray, promise: float) -> Threshold | None:
    """The lowest threshold above which the student agrees as often as promised, with probability 1 - `RISK`.

    The thresholds with at least `least_rows` above them are tested one after the other, from the highest down, each at the level `RISK`, until
    one fails. The first that is too low passes by chance with that probability at most, and without it none after it
    is reached: so the thresholds need no correction for their number (fixed-sequence testing; Angelopoulos et al. 2021,
    arXiv 2110.01052, section 3). Which thresholds there are depends on the confidences alone.

    Args:
        confidences: (N,) of the student's answers to held-out rows, on which nothing was chosen.
        agrees: (N,) whether each agrees.
        promise: agreement, from 0 to 1, both excluded.

    Returns:
        None where no threshold passes.

    Example:
        >>> confidences = np.linspace(0.5, 1.0, 400)
        >>> find_threshold(confidences, confidences > 0.75, promise=0.9).share
        0.5
    """
    order = np.argsort(-confidences, kind="stable")
    sorted_N, right_N = confidences[order], np.cumsum(agrees[order])
    found = None
    for step in range(1, STEPS + 1):
        threshold = sorted_N[math.ceil(step * len(order) / STEPS) - 1]
        rows = int(np.searchsorted(-sorted_N, -threshold, side="right"))  # equal ones count too
        if rows < least_rows(promise):
            continue
        right = int(right_N[rows - 1])
        if (lower := lower_bound(right, rows)) < promise:
            break
        found = Threshold(float(threshold), right / rows, lower, rows / len(order), len(order))
    return found
