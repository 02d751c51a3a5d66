"""The names of metrics, and what several kinds of tasks count (`stages.tasks.kinds` has the values)."""

from __future__ import annotations

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
