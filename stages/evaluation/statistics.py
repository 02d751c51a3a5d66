"""Statistics of predictions: bootstrap intervals, calibration.

Shape suffixes: N rows, C classes, R resamples. Probabilities are (N, C), in the task's class order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from stages.evaluation.results import CalibrationBin, Interval

RESAMPLES = 1000
BINS = 15
BLOCK = 2_000_000
"""Numbers in one block of resamples, which bounds the memory for any number of rows and classes."""


def bootstrap(
    measures: Mapping[str, Callable[[np.ndarray], dict[str, np.ndarray]]],
    rows: int,
    cells: int = 0,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Compute each metric of each model on resamples of the rows, drawn with replacement (Efron 1979).

    Each resample draws the same rows for all models, so that ratios and differences of models are paired. Whole rows
    are drawn, also where words have the labels: words of one row are not independent.

    Args:
        measures: model -> what computes its metrics of (R, N) resamples (`stages.tasks.kinds.Kind.resampler`).
        rows: number of rows, or of groups that are drawn whole.
        cells: numbers in memory per resample.

    Returns:
        model -> metric -> (RESAMPLES,) values.

    Example:
        >>> from stages.tasks.kinds import Classes
        >>> from stages.tasks.kinds.base import Said
        >>> said = Said(logits=np.eye(2)[[0, 1, 1]], gold=np.array([0, 1, 0]))
        >>> measure = Classes(("no", "yes")).resampler(("accuracy",), said)
        >>> low, high = interval(bootstrap({"student": measure}, rows=3)["student"]["accuracy"])
    """
    blocks: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in measures}
    for rows_RN in _resamples(rows, cells, seed):
        for name, measure in measures.items():
            blocks[name].append(measure(rows_RN))
    return {
        name: {metric: np.concatenate([block[metric] for block in of]) for metric in of[0]}
        for name, of in blocks.items()
    }


def interval(values: np.ndarray) -> Interval:
    """The 95% percentile interval of resampled values, without NaNs."""
    low, high = np.nanquantile(values, [0.025, 0.975]).tolist()
    return low, high


def calibration_bins(probabilities_NC: np.ndarray, gold: np.ndarray) -> list[CalibrationBin]:
    """Sort the rows into 15 bins of equal width by their confidence, the probability of the predicted class.

    Empty bins are left out (Guo et al. 2017, arXiv 1706.04599).
    """
    confidence = probabilities_NC.max(-1)
    right = probabilities_NC.argmax(-1) == gold
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return [
        CalibrationBin(
            int(np.sum(place == b)), float(confidence[place == b].mean()), float(right[place == b].mean())
        )
        for b in np.unique(place)
    ]


def calibration_error(bins: list[CalibrationBin]) -> float:
    """Expected calibration error: the mean of |accuracy - confidence|, bins weighted by their rows."""
    return sum(b.rows * abs(b.accuracy - b.confidence) for b in bins) / sum(b.rows for b in bins)


def negative_log_likelihood(logits_NC: np.ndarray, gold: np.ndarray, temperature: float = 1.0) -> float:
    """The mean of -log p(gold), in nats."""
    from scipy.special import log_softmax

    logs_NC = log_softmax(np.asarray(logits_NC, np.float64) / temperature, axis=-1)
    return float(-logs_NC[np.arange(len(gold)), gold].mean())


def fit_temperature(logits_NC: np.ndarray, gold: np.ndarray) -> float:
    """The temperature from 0.05 to 20 that maximises the likelihood of the gold labels (arXiv 1706.04599, 4.2)."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits_NC, gold, np.exp(log_t)),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def _resamples(rows: int, cells: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks (R, N) of row numbers drawn with replacement, RESAMPLES in all."""
    random = np.random.default_rng(seed)
    height = max(1, BLOCK // max(rows, cells))
    for start in range(0, RESAMPLES, height):
        yield random.integers(rows, size=(min(height, RESAMPLES - start), rows))
