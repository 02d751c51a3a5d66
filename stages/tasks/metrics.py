"""The metrics of GLUE, on class ids or numbers (Wang et al. 2018, arXiv 1804.07461, section 3)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from checkpoints.errors import UserError
from stages.tasks.numpy_when_used import np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

CLASSIFICATION = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman")
ERRORS = ("mae", "rmse")
AGREEMENT = {"accuracy": "agreement", "subset_accuracy": "subset_agreement"}
"""Their names where they compare with a teacher's answers, not with gold labels."""
RANKING = ("map", "mrr", "precision_at_1")
SEQUENCES = ("character_accuracy", "sequence_accuracy")
RECALL_AT = (1, 5, 10)
RECALLS = ("mean_recall", *(f"{of}_recall_at_{k}" for of in ("text", "image") for k in RECALL_AT))
LABEL_SETS = ("micro_f1", "macro_f1", "mean_average_precision", "subset_accuracy")


def select(
    metric: str,
    defaults: tuple[str, ...] = ("accuracy", "f1"),
    allowed: Sequence[str] = CLASSIFICATION,
) -> tuple[tuple[str, ...], str]:
    """Return (metrics to report, metric that selects on dev): `metric` selects if it is given, else the first default.

    Raises:
        UserError: `metric` is not one of `allowed`.
    """
    if not metric:
        return defaults, defaults[0]
    if metric not in allowed:
        raise UserError(
            f"{metric!r} does not fit this task; choose one of {', '.join(allowed)}", argument="metric"
        )
    return (defaults if metric in defaults else (metric, *defaults)), metric


def compute(
    metrics: Sequence[str], predictions: ArrayLike, labels: ArrayLike, classes: int | None = None
) -> dict[str, float]:
    """Return {metric: value}. A constant prediction gets 0.0 where a metric is not defined for it.

    Args:
        metrics: names from CLASSIFICATION, REGRESSION or ERRORS.
        predictions: class ids, or numbers for regression.
        labels: gold class ids or numbers.
        classes: number of classes; by default as many as occur in labels and predictions. F1 is that of class 1 for
            two classes, and the mean over the classes (macro) for more.

    Raises:
        ValueError: predictions and labels differ in shape.
    """
    predicted, gold = np.asarray(predictions), np.asarray(labels)
    if predicted.shape != gold.shape:
        raise ValueError(f"predictions have shape {predicted.shape}, labels {gold.shape}")
    return {metric: _value(metric, predicted, gold, classes) for metric in metrics}


def _value(metric: str, predicted, gold, classes: int | None) -> float:
    from scipy import stats
    from sklearn.metrics import f1_score, matthews_corrcoef

    if metric in ("accuracy", "agreement"):
        return float(np.mean(predicted == gold))
    if metric == "f1":
        classes = classes or int(max(predicted.max(), gold.max())) + 1
        if classes <= 2:
            return float(f1_score(gold, predicted, labels=[1], average="macro", zero_division=0))
        return float(f1_score(gold, predicted, labels=range(classes), average="macro", zero_division=0))
    if metric in ERRORS:
        errors = predicted.astype(np.float64) - gold
        return float(np.abs(errors).mean() if metric == "mae" else np.sqrt((errors**2).mean()))
    if np.ptp(predicted) == 0 or np.ptp(gold) == 0:
        return 0.0
    if metric == "matthews":
        return float(matthews_corrcoef(gold, predicted))
    correlation = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[metric]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(correlation(predicted.astype(np.float64), gold.astype(np.float64)).statistic)


def constant_baseline(
    metrics: Sequence[str], labels: ArrayLike, classes: int | None = None
) -> dict[str, float]:
    """Return, for each metric, the best value that a constant prediction reaches on `labels`."""
    gold = np.asarray(labels)
    best = {}
    for metric in metrics:
        answers = [0.0] if metric in REGRESSION else np.unique(gold)
        best[metric] = max(compute([metric], np.full_like(gold, c), gold, classes)[metric] for c in answers)
    return best


def of_label_sets(
    metrics: Sequence[str], answers: ArrayLike, probabilities: ArrayLike, labels: ArrayLike
) -> dict[str, float]:
    """Return {metric: value} of rows with several labels.

    Micro F1 counts all answers together. Macro F1 is the mean over the labels, 0 for one that neither occurs nor is
    answered. The mean average precision is the mean over the labels that occur. The subset accuracy is the fraction of
    rows whose labels are all right.

    Args:
        metrics: names from LABEL_SETS.
        answers: (N, C) whether each label is answered.
        probabilities: (N, C) of the labels, by which the average precision ranks the rows.
        labels: (N, C) gold, 1 or 0.
    """
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score

    said, values, gold = np.asarray(answers), np.asarray(probabilities), np.asarray(labels) > 0
    occur = gold.any(0)
    found = {}
    for metric in metrics:
        if metric in ("micro_f1", "macro_f1"):
            average = metric.removesuffix("_f1")
            found[metric] = float(f1_score(gold, said, average=average, zero_division=0))
        elif metric in ("subset_accuracy", "subset_agreement"):
            found[metric] = float(accuracy_score(gold, said))
        elif occur.any():
            pairs = zip(gold.T[occur], values.T[occur], strict=True)
            found[metric] = float(np.mean([average_precision_score(g, v) for g, v in pairs]))
        else:
            found[metric] = 0.0
    return found


def of_sequences(answers: Iterable[str], gold: Iterable[str]) -> np.ndarray:
    """Count of each row what the metrics of strings are made of.

    Args:
        answers, gold: N strings.

    Returns:
        (3, N): the least number of symbols that are changed, added or left out to make the answer of the gold string
        (Levenshtein); the symbols of the gold string; 1 where both are equal.
    """
    from nltk.metrics.distance import edit_distance

    pairs = list(zip(answers, gold, strict=True))
    return np.array([[edit_distance(a, g), len(g), a == g] for a, g in pairs], np.float64).T


def from_sequences(metric: str, means: np.ndarray) -> np.ndarray:
    """The value of a metric of strings, by means over the rows of `of_sequences`, (3, ...).

    The character accuracy is 1 - the character error rate: edits / symbols of the gold strings. It is below 0 where there
    are more edits than symbols. The sequence accuracy is the fraction of strings without an error.
    """
    edits, symbols, equal = means
    return 1 - edits / symbols if metric == "character_accuracy" else equal


def class_scores(
    predictions: ArrayLike, labels: ArrayLike, classes: int
) -> list[tuple[float, float, float, int]]:
    """Return precision, recall, F1 and gold count of each class; 0 where one is not defined.

    Args:
        predictions: (N,) class ids; or (N, classes) whether each label holds.
        labels: the same, gold.
    """
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(labels, predictions, labels=range(classes), zero_division=0)
    return list(zip(*(column.tolist() for column in scores), strict=True))
