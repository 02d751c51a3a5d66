"""What lies between a student and its teacher on the same rows: intervals, loyalty, calibration, disagreement.

N is rows, C classes. Probabilities are (N, C), in the task's class order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 1000
BINS = 15
BLOCK = 2_000_000
"""Row numbers drawn, or counts made, at once: memory does not grow with the split or the classes."""


def bootstrap(
    metrics: Sequence[str],
    answers: dict[str, np.ndarray],
    gold: np.ndarray,
    classes: int | None = None,
    seed: int = 0,
    words: Sequence[int] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Each metric of each model over resamples of the rows (Efron's bootstrap).

    The same rows are drawn for all models, so that a ratio or a difference of two of them keeps what they share.

    Args:
        metrics: names out of metrics.CLASSIFICATION or REGRESSION.
        answers: model -> (N,) class ids, or numbers for regression.
        gold: (N,) the same.
        classes: number of classes, None for regression.
        words: how many answers each row has, where its words have them: whole rows are drawn, for words of one row are
            not independent.

    Returns:
        model -> metric -> (RESAMPLES,) values.
    """
    gold = np.asarray(gold)
    values = {name: {metric: [] for metric in metrics} for name in answers}
    of_rows = {}
    if words is not None:
        of_rows = {name: _of_rows(given, gold, classes, words) for name, given in answers.items()}
    for rows_RN in _resamples(len(gold) if words is None else len(words), classes, seed):
        for name, given in answers.items():
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


def interval(values: np.ndarray) -> list[float]:
    """The middle 95% of resampled values: [low, high]. What is no number is left out."""
    return np.nanquantile(values, [0.025, 0.975]).tolist()


def softmax(logits_NC: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of logits, in double precision."""
    from scipy.special import softmax as of

    return of(np.asarray(logits_NC, np.float64) / temperature, axis=-1)


def label_loyalty(student_NC: np.ndarray, teacher_NC: np.ndarray) -> float:
    """The share of rows to which the student gives the teacher's label (Xu et al. 2021, arXiv 2109.03228)."""
    return float(np.mean(student_NC.argmax(-1) == teacher_NC.argmax(-1)))


def distances(student_NC: np.ndarray, teacher_NC: np.ndarray) -> np.ndarray:
    """For each row the root of the Jensen-Shannon divergence of the two distributions, base 2: from 0 to 1."""
    from scipy.spatial.distance import jensenshannon

    # Of equal rows rounding may make the divergence a little negative, and its root no number.
    return np.nan_to_num(jensenshannon(student_NC, teacher_NC, base=2, axis=-1))


def probability_loyalty(student_NC: np.ndarray, teacher_NC: np.ndarray) -> float:
    """1 less the mean distance of the distributions (arXiv 2109.03228)."""
    return float(1 - distances(student_NC, teacher_NC).mean())


def calibration_bins(probabilities_NC: np.ndarray, gold: np.ndarray) -> list[dict[str, float]]:
    """Rows in 15 bins of equal width by the probability of the answer: rows, confidence and accuracy of each.

    Empty bins are left out (Guo et al. 2017, arXiv 1706.04599).
    """
    confidence = probabilities_NC.max(-1)
    right = probabilities_NC.argmax(-1) == gold
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return [
        {
            "rows": int(np.sum(place == b)),
            "confidence": float(confidence[place == b].mean()),
            "accuracy": float(right[place == b].mean()),
        }
        for b in np.unique(place)
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    """Expected calibration error: the mean gap of accuracy and confidence, bins weighted by their rows."""
    rows = sum(b["rows"] for b in bins)
    return sum(b["rows"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / rows


def negative_log_likelihood(logits_NC: np.ndarray, gold: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log p(gold), in nats."""
    from scipy.special import log_softmax

    logs_NC = log_softmax(np.asarray(logits_NC, np.float64) / temperature, axis=-1)
    return float(-logs_NC[np.arange(len(gold)), gold].mean())


def fit_temperature(logits_NC: np.ndarray, gold: np.ndarray) -> float:
    """The temperature, from 0.05 to 20, under which the gold labels are most likely (arXiv 1706.04599, 4.2)."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits_NC, gold, np.exp(log_t)),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def _resamples(rows: int, classes: int | None, seed: int) -> Iterator[np.ndarray]:
    """Blocks (R, N) of row numbers drawn with replacement, RESAMPLES in all."""
    random = np.random.default_rng(seed)
    height = max(1, BLOCK // max(rows, (classes or 0) ** 2))
    for start in range(0, RESAMPLES, height):
        yield random.integers(rows, size=(min(height, RESAMPLES - start), rows))


def _confusions(answers_RN: np.ndarray, gold_RN: np.ndarray, classes: int) -> np.ndarray:
    """(R, C, C) counts: gold classes down, answers across."""
    sets, cells = len(gold_RN), classes * classes
    codes_RN = gold_RN * classes + answers_RN + cells * np.arange(sets)[:, None]
    return np.bincount(codes_RN.ravel(), minlength=sets * cells).reshape(sets, classes, classes)


def _of_rows(answers: np.ndarray, gold: np.ndarray, classes: int, words: Sequence[int]) -> np.ndarray:
    """(N, C * C) confusions of the words of each row, as floats: their product is a matrix product."""
    cells = classes * classes
    codes = np.repeat(np.arange(len(words)), words) * cells + gold * classes + answers
    return np.bincount(codes, minlength=len(words) * cells).reshape(-1, cells).astype(np.float64)


def _from_counts(metric: str, counts_RCC: np.ndarray) -> np.ndarray:
    """A metric of `metrics.compute` from confusion matrices, (R,)."""
    counts_RCC = counts_RCC.astype(np.float64)
    rows_R, right_RC = counts_RCC.sum((1, 2)), np.diagonal(counts_RCC, axis1=1, axis2=2)
    answered_RC, gold_RC = counts_RCC.sum(1), counts_RCC.sum(2)
    if metric == "accuracy":
        return right_RC.sum(1) / rows_R
    if metric == "f1":
        f1_RC = _ratio(2 * right_RC, answered_RC + gold_RC)
        return f1_RC[:, 1] if f1_RC.shape[1] == 2 else f1_RC.mean(1)
    # Matthews for any number of classes (Gorodkin 2004).
    above = right_RC.sum(1) * rows_R - (answered_RC * gold_RC).sum(1)
    below = (rows_R**2 - (answered_RC**2).sum(1)) * (rows_R**2 - (gold_RC**2).sum(1))
    return _ratio(above, np.sqrt(below))


def _correlations(metric: str, answers_RN: np.ndarray, gold_RN: np.ndarray) -> np.ndarray:
    """Pearson's, or on ranks Spearman's, correlation of each resample, (R,)."""
    if metric == "spearman":
        from scipy.stats import rankdata

        answers_RN, gold_RN = rankdata(answers_RN, axis=1), rankdata(gold_RN, axis=1)
    a, g = (values - values.mean(1, keepdims=True) for values in (answers_RN, gold_RN))
    return _ratio((a * g).sum(1), np.sqrt((a * a).sum(1) * (g * g).sum(1)))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
