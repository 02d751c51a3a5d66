"""A promise holds as often as it says, where the truth is known."""

import numpy as np
import pytest

from stages.evaluation.thresholds import RISK, find_threshold, least_rows, lower_bound


def drawn(random: np.random.Generator, rows: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidences from 0.5 to 1 of a student that agrees with the probability `agreement`."""
    confidences = random.uniform(0.5, 1.0, rows)
    return confidences, random.uniform(size=rows) < agreement(confidences, sharpness)


def agreement(confidences: np.ndarray, sharpness: float) -> np.ndarray:
    return 1 - 0.5 * (2 - 2 * confidences) ** sharpness


def true_agreement(threshold: float, sharpness: float) -> float:
    """The mean of `agreement` from the threshold to 1."""
    return 1 - 0.5 * (2 - 2 * threshold) ** sharpness / (sharpness + 1)


@pytest.mark.parametrize("rows, sharpness", [(400, 1.0), (400, 3.0), (2000, 1.0), (2000, 3.0)])
def test_the_promise_is_broken_no_more_often_than_it_says(rows, sharpness):
    random, promise, times = np.random.default_rng(0), 0.9, 1000
    broken, found, naive_broken = 0, 0, 0
    for _ in range(times):
        confidences, agrees = drawn(random, rows, sharpness)
        if threshold := find_threshold(confidences, agrees, promise):
            found += 1
            broken += true_agreement(threshold.confidence, sharpness) < promise
        order = np.argsort(-confidences)
        ratios = np.cumsum(agrees[order]) / np.arange(1, rows + 1)
        naive_broken += (
            true_agreement(confidences[order][np.flatnonzero(ratios >= promise).max()], sharpness) < promise
        )
    assert broken <= times * RISK + 3 * np.sqrt(times * RISK * (1 - RISK))
    assert found > 0.3 * times, "a threshold that is never found keeps every promise"
    assert naive_broken > 2 * times * RISK, "to take the observed ratio would break it: this test can fail"


def test_more_rows_find_a_threshold_nearer_to_the_lowest_that_keeps_the_promise():
    random = np.random.default_rng(1)
    shares = []
    for rows in (300, 3000, 30000):
        found = [find_threshold(*drawn(random, rows, 1.0), 0.9) for _ in range(20)]
        shares.append(np.mean([threshold.share if threshold else 0.0 for threshold in found]))
        assert all(t is None or t.lower >= 0.9 and t.agreement > t.lower for t in found)
    assert shares == sorted(shares) and 0.3 < shares[-1] <= 0.45, (
        "0.4 of the rows are above 0.8, where it is 0.9"
    )


def test_none_is_found_with_few_rows_or_little_agreement():
    confidences = np.linspace(0.5, 1, 200)
    assert find_threshold(confidences[: least_rows(0.95) - 1], np.ones(117, bool), 0.95) is None
    assert find_threshold(confidences, np.arange(200) % 2 == 0, 0.95) is None
    assert find_threshold(confidences, np.ones(200, bool), 0.95).share == 1.0


def test_equal_confidences_stand_or_fall_together():
    confidences = np.r_[np.full(150, 0.9), np.full(150, 0.6)]
    agrees = np.r_[np.ones(150, bool), np.zeros(150, bool)]
    found = find_threshold(confidences, agrees, 0.9)
    assert (found.confidence, found.share, found.agreement) == (0.9, 0.5, 1.0)


def test_the_bound_is_that_of_clopper_and_pearson():
    from scipy.stats import binomtest

    for right, rows in ((59, 59), (95, 100), (1, 10)):
        exact = binomtest(right, rows, alternative="greater").proportion_ci(0.95, "exact").low
        assert lower_bound(right, rows) == pytest.approx(exact)
    assert lower_bound(0, 10) == 0.0
