"""Several labels of each row, or none: each holds or not by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from stages.tasks import metrics as plain
from stages.tasks.kinds.base import (
    LEAST,
    Groups,
    Kind,
    ProblemType,
    Resampler,
    Said,
    jensen_shannon,
    ratio,
    scores_of_classes,
)
from stages.tasks.numpy_when_used import np

if TYPE_CHECKING:
    from transformers import PretrainedConfig


F1, DECIDED = "micro_f1", ("micro_f1", "macro_f1", "subset_accuracy", "subset_agreement")
"""DECIDED: metrics of what is answered, and so of the threshold."""


@dataclass(frozen=True)
class LabelSets(Kind):
    """A row has any of the labels. Its gold is a tuple of 1.0 or 0.0 for each label.

    The probability of a label is the sigmoid of its logit, and it is answered from the threshold on. The threshold is
    the hundredth from 0.05 to 0.95 that is best on dev, by the metric that selects (micro F1, where that does not
    depend on a threshold). It is in the model's config, as `label_threshold`.

    Attributes:
        threshold: None: 0.5.
    """

    labels: tuple[str, ...] = ()
    threshold: float | None = None

    name: ClassVar[str] = "label sets"
    problem_type: ClassVar[ProblemType] = "multi_label_classification"
    selectable: ClassVar[tuple[str, ...]] = plain.LABEL_SETS
    reported: ClassVar[tuple[str, ...]] = plain.LABEL_SETS
    fits_on_dev: ClassVar[bool] = True

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return expit(np.asarray(logits, np.float64))

    def logits(self, probabilities: np.ndarray) -> np.ndarray:
        from scipy.special import logit

        return logit(np.clip(probabilities, LEAST, 1 - LEAST))

    def first_bias(self, labels: Sequence[Any]) -> np.ndarray:
        """The log-odds of each label (Lin et al. 2017, arXiv 1708.02002, section 3.3).

        With a bias of 0 the first hundreds of steps would teach only that each label is rare. Meanwhile the encoder would
        learn to say the same of every row.
        """
        return self.logits((np.sum(labels, axis=0) + 1) / (len(labels) + 2))

    def distances(self, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        """(N,) the mean over labels of the distance between two distributions of "holds" and "does not hold"."""
        both = [np.stack([p, 1 - p], axis=-1) for p in map(self.probabilities, (student, teacher))]
        return jensen_shannon(*both).mean(-1)

    def answers(self, logits: np.ndarray) -> np.ndarray:
        return self.holds(self.probabilities(logits))

    def holds(self, probabilities: np.ndarray) -> np.ndarray:
        """Which labels are answered."""
        return probabilities >= (0.5 if self.threshold is None else self.threshold)

    def measure(self, metrics: Sequence[str], said: Said) -> dict[str, float]:
        """As in the base class; the average precision by scikit-learn, to the last digit."""
        found, probabilities, held = (
            super().measure(metrics, said),
            self.probabilities(said.logits),
            said.gold > 0,
        )
        if "mean_average_precision" in found and held.any():
            from sklearn.metrics import average_precision_score

            labels = held.any(0)
            pairs = zip(held.T[labels], probabilities.T[labels], strict=True)
            found["mean_average_precision"] = float(
                np.mean([average_precision_score(h, p) for h, p in pairs])
            )
        return found

    def resampler(self, metrics: Sequence[str], said: Said) -> Resampler:
        probabilities = self.probabilities(said.logits)
        return _resampler(metrics, self.holds(probabilities), probabilities, np.asarray(said.gold) > 0)

    def constant(self, metric: str, gold: np.ndarray, groups: Groups = None) -> float:
        """The best answer to every row among: the k most frequent labels for any k, the most frequent set, none."""
        gold = np.asarray(gold)
        if metric == "mean_average_precision":  # equal probabilities: the frequency of each label that occurs
            return float(gold.mean(0)[gold.any(0)].mean()) if gold.any() else 0.0
        order = np.argsort(-gold.sum(0), kind="stable")
        answers = [np.isin(np.arange(self.outputs), order[:count]) for count in range(self.outputs + 1)]
        sets, times = np.unique(gold, axis=0, return_counts=True)
        answers.append(sets[times.argmax()] > 0)
        same = np.zeros(gold.shape)
        return max(_value(metric, same + a > 0, same, gold > 0) for a in answers)

    def class_scores(self, said: Said) -> list[tuple[float, float, float, int]]:
        answers, held = self.answers(said.logits), said.gold > 0
        return scores_of_classes((answers & held).sum(0), answers.sum(0), held.sum(0))

    def written(self, answer: Any) -> str:
        return json.dumps(self.names(answer), ensure_ascii=False)

    def names(self, answer: Any) -> list[str]:
        """The names of the labels that hold."""
        return [name for name, holds in zip(self.labels, answer, strict=True) if holds]

    def read(self, cell: str) -> Any:
        return tuple(float(name in json.loads(cell)) for name in self.labels)

    def hidden(self, label: Any) -> Any:
        return (math.nan,) * self.outputs

    def predicted(self, values: np.ndarray) -> tuple[Any, Any]:
        holds = self.holds(values)
        return self.names(holds), [float(value) for value in values[holds]]

    def shown(self, values: Sequence[float]) -> str:
        best = sorted(zip(values, self.labels, strict=True), reverse=True)[:3]
        return ", ".join(f"{name} {value:.0%}" for value, name in best)

    def shown_gold(self, label: Any) -> str:
        return ", ".join(self.names(label)) or "none"

    def fitted(self, metric: str, logits: np.ndarray, gold: np.ndarray) -> Self:
        metric = metric if metric in DECIDED else F1
        probabilities, held = self.probabilities(logits), np.asarray(gold) > 0
        grid = [hundredths / 100 for hundredths in range(5, 96)]
        reached = [_value(metric, probabilities >= threshold, probabilities, held) for threshold in grid]
        return replace(self, threshold=grid[int(np.argmax(reached))])

    def of_model(self, config: PretrainedConfig) -> Self:
        return replace(self, threshold=getattr(config, "label_threshold", None))

    def keep(self, config: PretrainedConfig) -> None:
        super().keep(config)
        config.label_threshold = self.threshold


def _resampler(
    metrics: Sequence[str], answers: np.ndarray, probabilities: np.ndarray, held: np.ndarray
) -> Resampler:
    """What computes the metrics of resamples.

    Micro F1 counts all answers together. Macro F1 is the mean over the labels, 0 for one that neither occurs nor is
    answered. The mean average precision is the mean over the labels that occur. The subset accuracy is the fraction of
    rows whose labels are all right.

    Args:
        answers: (N, C) whether each label is answered.
        probabilities: (N, C) of the labels, by which the average precision ranks the rows.
        held: (N, C) gold.
    """
    classes = held.shape[1]
    counts = np.concatenate([answers & held, answers, held, (answers == held).all(-1)[:, None]], axis=1)
    ranks = "mean_average_precision" in metrics
    ranked = [_Ranked(p, h) for p, h in zip(probabilities.T, held.T, strict=True)] if ranks else []

    def measure(rows_RN: np.ndarray) -> dict[str, np.ndarray]:
        times_RN = np.stack([np.bincount(rows, minlength=len(held)) for rows in rows_RN]).astype(float)
        sums = times_RN @ counts.astype(float)
        right, answered, true = (sums[:, i * classes : (i + 1) * classes] for i in range(3))
        found = {}
        for metric in metrics:
            if metric == "micro_f1":
                found[metric] = ratio(2 * right.sum(1), answered.sum(1) + true.sum(1))
            elif metric == "macro_f1":
                found[metric] = ratio(2 * right, answered + true).mean(1)
            elif metric in ("subset_accuracy", "subset_agreement"):
                found[metric] = sums[:, -1] / rows_RN.shape[1]
            else:
                found[metric] = _mean_average_precision(ranked, times_RN)
        return found

    return measure


def _value(metric: str, answers: np.ndarray, probabilities: np.ndarray, held: np.ndarray) -> float:
    """A metric of all rows; the arguments are those of `_resampler`."""
    return float(_resampler([metric], answers, probabilities, held)(np.arange(len(held))[None])[metric][0])


class _Ranked:
    """The rows by falling probability of one label, for its average precision on resamples.

    Attributes:
        order: (N,) row numbers.
        held: (N,) whether it holds, in that order.
        ends: places of the last row of each distinct probability.
    """

    def __init__(self, probabilities: np.ndarray, held: np.ndarray):
        self.order = np.argsort(-probabilities, kind="stable")
        self.held = held[self.order]
        self.ends = np.flatnonzero(np.diff(probabilities[self.order], append=-1))


def _mean_average_precision(ranked: list[_Ranked], times_RN: np.ndarray) -> np.ndarray:
    """(R,) the mean over the labels that some row of the resample has."""
    total, labels = np.zeros(len(times_RN)), np.zeros(len(times_RN))
    for label in ranked:
        times = times_RN[:, label.order]
        right = (times * label.held).cumsum(1)[:, label.ends]
        precision = ratio(right, times.cumsum(1)[:, label.ends])
        total += ratio((precision * np.diff(right, prepend=0)).sum(1), right[:, -1])
        labels += right[:, -1] > 0
    return ratio(total, labels)
