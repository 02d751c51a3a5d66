"""Statistics of predictions: bootstrap intervals, agreement of two models, calibration.

Shape suffixes: N rows, C classes, R resamples. Probabilities are (N, C), in the task's class order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stages.evaluation.results import CalibrationBin, Interval

RESAMPLES = 1000
BINS = 15
BLOCK = 2_000_000
"""Numbers in one block of resamples, which bounds the memory for any number of rows and classes."""


def bootstrap(
    metrics: Sequence[str],
    predictions: dict[str, np.ndarray],
    gold: np.ndarray,
    classes: int | None = None,
    seed: int = 0,
    words: Sequence[int] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Compute each metric of each model on resamples of the rows, drawn with replacement (Efron 1979).

    Each resample draws the same rows for all models, so that ratios and differences of models are paired.

    Args:
        metrics: names from metrics.CLASSIFICATION or metrics.REGRESSION.
        predictions: model -> (N,) class ids, or scores for a regression.
        gold: (N,) the same, gold.
        classes: number of classes; None for a regression.
        seed: of the draws.
        words: of a token-level task, the number of words of each row. Then predictions and gold hold one entry a word,
            and whole rows are drawn: words of one row are not independent.

    Returns:
        model -> metric -> (RESAMPLES,) values.

    Example:
        >>> values = bootstrap(("accuracy",), {"student": np.array([0, 1, 1])}, np.array([0, 1, 0]), classes=2)
        >>> low, high = interval(values["student"]["accuracy"])
    """
    gold = np.asarray(gold)
    values: dict[str, dict[str, list[np.ndarray]]] = {
        n: {metric: [] for metric in metrics} for n in predictions
    }
    of_rows = {}
    if words is not None and classes:
        of_rows = {name: _row_confusions(given, gold, classes, words) for name, given in predictions.items()}
    for rows_RN in _resamples(len(gold) if words is None else len(words), classes, seed):
        for name, given in predictions.items():
            if of_rows:
                times_RN = np.stack([np.bincount(rows, minlength=len(words)) for rows in rows_RN])
                counts_RCC = (times_RN @ of_rows[name]).reshape(-1, classes, classes)
            else:
                drawn = given[rows_RN], gold[rows_RN]
                counts_RCC = _confusions(*drawn, classes) if classes else None
            for metric in metrics:
                value = _from_counts(metric, counts_RCC) if classes else _correlations(metric, *drawn)
                values[name][metric].append(value)
    return {
        name: {metric: np.concatenate(v) for metric, v in of_model.items()}
        for name, of_model in values.items()
    }


def interval(values: np.ndarray) -> Interval:
    """The 95% percentile interval of resampled values, without NaNs."""
    low, high = np.nanquantile(values, [0.025, 0.975]).tolist()
    return low, high


def softmax(logits_NC: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of logits, in double precision."""
    from scipy.special import softmax as of

    return of(np.asarray(logits_NC, np.float64) / temperature, axis=-1)


def label_loyalty(student_NC: np.ndarray, teacher_NC: np.ndarray) -> float:
    """The fraction of rows to which the student gives the teacher's label (Xu et al. 2021, arXiv 2109.03228)."""
    return float(np.mean(student_NC.argmax(-1) == teacher_NC.argmax(-1)))


def distances(student_NC: np.ndarray, teacher_NC: np.ndarray) -> np.ndarray:
    """The Jensen-Shannon distance of the two distributions of each row, (N,): the root of the divergence, base 2.

    It is 0 for equal distributions and 1 for disjoint ones.
    """
    from scipy.spatial.distance import jensenshannon

    # Rounding can make the divergence of equal rows slightly negative, and its root NaN.
    return np.nan_to_num(jensenshannon(student_NC, teacher_NC, base=2, axis=-1))


def probability_loyalty(student_NC: np.ndarray, teacher_NC: np.ndarray) -> float:
    """1 - the mean of `distances` (Xu et al. 2021, arXiv 2109.03228)."""
    return float(1 - distances(student_NC, teacher_NC).mean())


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


def _resamples(rows: int, classes: int | None, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks (R, N) of row numbers drawn with replacement, RESAMPLES in all."""
    random = np.random.default_rng(seed)
    height = max(1, BLOCK // max(rows, (classes or 0) ** 2))
    for start in range(0, RESAMPLES, height):
        yield random.integers(rows, size=(min(height, RESAMPLES - start), rows))


def _confusions(predictions_RN: np.ndarray, gold_RN: np.ndarray, classes: int) -> np.ndarray:
    """(R, C, C) counts: gold classes down, predicted classes across.

    One bincount for all resamples: scikit-learn's confusion_matrix takes them one by one.
    """
    sets, cells = len(gold_RN), classes * classes
    codes_RN = gold_RN * classes + predictions_RN + cells * np.arange(sets)[:, None]
    return np.bincount(codes_RN.ravel(), minlength=sets * cells).reshape(sets, classes, classes)


def _row_confusions(
    predictions: np.ndarray, gold: np.ndarray, classes: int, words: Sequence[int]
) -> np.ndarray:
    """(N, C * C) confusions of the words of each row, in floating point, which numpy multiplies by BLAS."""
    cells = classes * classes
    codes = np.repeat(np.arange(len(words)), words) * cells + gold * classes + predictions
    return np.bincount(codes, minlength=len(words) * cells).reshape(-1, cells).astype(np.float64)


def _from_counts(metric: str, counts_RCC: np.ndarray) -> np.ndarray:
    """A metric as `metrics.compute` defines it, (R,), from confusion matrices."""
    counts_RCC = counts_RCC.astype(np.float64)
    rows_R, right_RC = counts_RCC.sum((1, 2)), np.diagonal(counts_RCC, axis1=1, axis2=2)
    predicted_RC, gold_RC = counts_RCC.sum(1), counts_RCC.sum(2)
    if metric == "accuracy":
        return right_RC.sum(1) / rows_R
    if metric == "f1":
        f1_RC = _ratio(2 * right_RC, predicted_RC + gold_RC)
        return f1_RC[:, 1] if f1_RC.shape[1] == 2 else f1_RC.mean(1)
    # Matthews for any number of classes (Gorodkin 2004).
    above = right_RC.sum(1) * rows_R - (predicted_RC * gold_RC).sum(1)
    below = (rows_R**2 - (predicted_RC**2).sum(1)) * (rows_R**2 - (gold_RC**2).sum(1))
    return _ratio(above, np.sqrt(below))


def _correlations(metric: str, predictions_RN: np.ndarray, gold_RN: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each resample, (R,); Spearman's is the same on ranks."""
    if metric == "spearman":
        from scipy.stats import rankdata

        predictions_RN, gold_RN = rankdata(predictions_RN, axis=1), rankdata(gold_RN, axis=1)
    a, g = (values - values.mean(1, keepdims=True) for values in (predictions_RN, gold_RN))
    return _ratio((a * g).sum(1), np.sqrt((a * a).sum(1) * (g * g).sum(1)))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
