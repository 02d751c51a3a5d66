"""Candidates of questions, right or wrong, which a model ranks: answer selection, retrieval with few candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import comb
from typing import TYPE_CHECKING, Any, ClassVar, Self

from stages.tasks import metrics as plain
from stages.tasks.kinds.base import Groups, Kind, Said
from stages.tasks.kinds.classes import Classes
from stages.tasks.numpy_when_used import np

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from stages.tasks.types import Split


@dataclass(frozen=True)
class Ranking(Classes):
    """A row is a question and one of its candidates; rows of one question follow each other.

    A model is a cross-encoder: it reads both texts and answers whether the candidate is wrong or right, the second class.
    By that probability the candidates of a question are ranked. Each metric is a mean over questions, which have at least
    one right candidate. Of candidates with equal probabilities the wrong ones come first, so that a model gains nothing by
    not telling them apart.

    The model's config says `ranking`, so that `predict` knows it; for stock transformers it is a classifier of two classes.
    """

    name: ClassVar[str] = "ranking"
    selectable: ClassVar[tuple[str, ...]] = plain.RANKING
    reported: ClassVar[tuple[str, ...]] = plain.RANKING
    constant_name: ClassVar[str] = "a random order"
    measure, resampler = Kind.measure, Kind.resampler  # by `counts`

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: the order of candidates is scored, not their classes."""
        return ()

    def groups(self, split: Split) -> list[int]:
        """The number of candidates of each question."""
        return [len(list(same)) for _, same in groupby(split.text_a)]

    def constant(self, metric: str, gold: np.ndarray, groups: Groups = None) -> float:
        """What a random order of the candidates reaches in the mean."""
        parts = _split(np.asarray(gold), groups)
        return sum(_by_chance(metric, len(right), int(right.sum())) for right in parts) / len(parts)

    def agreement(
        self, student: np.ndarray, teacher: np.ndarray, of_teacher: Self | None = None, groups: Groups = None
    ) -> dict[str, float]:
        """As in the base class; "label_loyalty" is the fraction of questions whose first candidate is the same."""
        first = [[part.argmax() for part in _split(self.scores(of), groups)] for of in (student, teacher)]
        same = sum(one == other for one, other in zip(*first, strict=True)) / len(first[0])
        return super().agreement(student, teacher) | {"label_loyalty": same}

    @staticmethod
    def scores(logits: np.ndarray) -> np.ndarray:
        """(N,) by which candidates are ranked: the log-odds of right."""
        return logits[:, 1] - logits[:, 0]

    def counts(self, metrics: Sequence[str], said: Said) -> dict[str, np.ndarray]:
        """Of each question."""
        pairs = zip(*(_split(of, said.groups) for of in (self.scores(said.logits), said.gold)), strict=True)
        right = [of[np.lexsort((of, -scores))] for scores, of in pairs]
        return {metric: np.array([_value(metric, of) for of in right]) for metric in metrics}

    def cells(self, logits: np.ndarray, split: Split) -> list[str]:
        """The rank of each candidate, from 1."""
        return [
            str(rank)
            for scores in _split(self.scores(logits), self.groups(split))
            for rank in ranks(scores.tolist())
        ]

    def predicted(self, values: np.ndarray) -> tuple[Any, Any]:
        return "", float(values[1])

    def shown(self, values: Sequence[float]) -> str:
        return f"right {values[1]:.0%}"

    def shown_gold(self, label: Any) -> str:
        return "right" if int(label) else "wrong"

    def keep(self, config: PretrainedConfig) -> None:
        super().keep(config)
        config.ranking = True


def ranks(scores: Sequence[float]) -> list[int]:
    """The rank of each of a question's candidates, from 1; of equal ones the first is first.

    Example:
        >>> ranks([0.2, 0.9, 0.5])
        [3, 1, 2]
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    places = {row: rank for rank, row in enumerate(order, start=1)}
    return [places[row] for row in range(len(scores))]


def _split(values: np.ndarray, groups: Groups) -> list[np.ndarray]:
    """The values of each question."""
    return np.split(values, np.cumsum(groups)[:-1]) if groups else [values]


def _value(metric: str, right: np.ndarray) -> float:
    """A metric of one question, by whether each candidate is right, the best first."""
    places = np.flatnonzero(right) + 1
    if not len(places):
        return 0.0
    if metric == "precision_at_1":
        return float(places[0] == 1)
    if metric == "mrr":
        return float(1 / places[0])
    return float(np.mean(np.arange(1, len(places) + 1) / places))


def of_the_first(k: int, scores_QN: np.ndarray, right_QN: np.ndarray) -> dict[str, float]:
    """MRR, nDCG and recall of the k best of all candidates, the mean over questions; ties as in `Ranking`.

    The ideal order of nDCG has as many right ones in front as there are, k at most.

    Example:
        >>> import numpy as np
        >>> found = of_the_first(2, np.array([[3.0, 2.0, 1.0, 0.0]]), np.array([[False, True, False, True]]))
        >>> {name: round(value, 3) for name, value in found.items()}
        {'MRR@2': 0.5, 'nDCG@2': 0.387, 'recall@2': 0.5}
    """
    orders = (np.lexsort((right, -scores))[:k] for scores, right in zip(scores_QN, right_QN, strict=True))
    best_QK = np.array([right[order] for right, order in zip(right_QN, orders, strict=True)])
    discounts_K = 1 / np.log2(np.arange(2, best_QK.shape[1] + 2))
    right_Q = right_QN.sum(1)
    ideal_Q = np.array([discounts_K[:right].sum() for right in right_Q])
    values = {
        "MRR": best_QK.any(1) / (best_QK.argmax(1) + 1),
        "nDCG": best_QK @ discounts_K / ideal_Q,
        "recall": best_QK.sum(1) / right_Q,
    }
    return {f"{name}@{k}": float(of.mean()) for name, of in values.items()}


def _by_chance(metric: str, candidates: int, right: int) -> float:
    """The mean of a metric over all orders of a question's candidates, so many of which are right."""
    if not right:
        return 0.0
    if metric == "precision_at_1":
        return right / candidates
    harmonic = sum(1 / k for k in range(1, candidates + 1))
    if metric == "mrr":  # the first right one is k-th where the others are all after it
        firsts = range(1, candidates - right + 2)
        return sum(comb(candidates - k, right - 1) / k for k in firsts) / comb(candidates, right)
    if candidates == 1:
        return 1.0
    # A right one at place k has in the mean (right - 1) (k - 1) / (candidates - 1) right ones before it.
    return (harmonic + (right - 1) / (candidates - 1) * (candidates - harmonic)) / candidates
