"""A score of each row, in the user's units; and how similar the two texts of a row are."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from checkpoints.errors import UserError
from stages.tasks import metrics as plain
from stages.tasks.kinds.base import Groups, Head, Kind, ProblemType, Resampler, Said, ratio
from stages.tasks.numpy_when_used import np

if TYPE_CHECKING:
    from transformers import PretrainedConfig


LARGEST = 1e30
"""Scores must be below it, so that a model can answer in their units in fp32."""


@dataclass(frozen=True)
class Scores(Kind):
    """A row has a score, a real number.

    It is learned in standard deviations from the mean of the training rows, so that prices in thousands are learned as
    well as grades. A model on disk answers in the user's units: weight and bias of its last layer are scaled when it is
    saved, and scaled back when it is loaded to train or to teach.

    Attributes:
        scale: mean and standard deviation; (0, 1): as they are.
    """

    scale: tuple[float, float] = (0.0, 1.0)  # type: ignore[misc]

    name: ClassVar[str] = "scores"
    problem_type: ClassVar[ProblemType] = "regression"
    selectable: ClassVar[tuple[str, ...]] = plain.REGRESSION
    reported: ClassVar[tuple[str, ...]] = (*plain.REGRESSION, *plain.ERRORS)
    follows_gold: ClassVar[bool] = True

    @classmethod
    def of(cls, scores: Sequence[float]) -> Self:
        """The kind with the scale of scores, which must not all be equal.

        Raises:
            UserError: they are too large, or too close together, for fp32.
        """
        largest = max(map(abs, scores))
        if largest < LARGEST:
            scale = statistics.fmean(scores), statistics.pstdev(scores)
            if scale[1] > 1e-6 * largest:
                return cls(scale=scale)
        raise UserError(
            f"scores from {min(scores):g} to {max(scores):g} cannot be learned in fp32: give scores below {LARGEST:g} whose "
            "spread is above a millionth of the largest; subtract a number from all, or write them in another unit"
        )

    def of_model(self, config: PretrainedConfig) -> Self:
        return replace(self, scale=(0.0, 1.0))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        mean, deviation = self.scale
        return logits if self.scale == (0.0, 1.0) else logits * deviation + mean

    def logits(self, probabilities: np.ndarray) -> np.ndarray:
        mean, deviation = self.scale
        return (probabilities - mean) / deviation

    def distances(self, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        return abs(student - teacher)[:, 0] * self.scale[1]

    def agreement(
        self, student: np.ndarray, teacher: np.ndarray, of_teacher: Self | None = None, groups: Groups = None
    ) -> dict[str, float]:
        return {"pearson_to_teacher": correlation("pearson", student[:, 0], teacher[:, 0])}

    def answers(self, logits: np.ndarray) -> np.ndarray:
        return self.probabilities(logits)[:, 0]

    def measure(self, metrics: Sequence[str], said: Said) -> dict[str, float]:
        """As in the base class; correlations by scipy, to the last digit."""
        answers, found = self.answers(said.logits), super().measure(metrics, said)
        return {m: correlation(m, answers, said.gold) if m in plain.REGRESSION else found[m] for m in metrics}

    def resampler(self, metrics: Sequence[str], said: Said) -> Resampler:
        answers = self.answers(said.logits)
        of = {metric: _errors if metric in plain.ERRORS else _correlations for metric in metrics}
        return lambda rows_RN: {
            metric: resampled(metric, answers[rows_RN], said.gold[rows_RN])
            for metric, resampled in of.items()
        }

    def constant(self, metric: str, gold: np.ndarray, groups: Groups = None) -> float:
        """0: no constant correlates, and only correlations select."""
        return 0.0

    def written(self, answer: Any) -> str:
        return f"{float(answer)!r}"

    def read(self, cell: str) -> Any:
        return float(cell)

    def hidden(self, label: Any) -> Any:
        return math.nan

    def shown(self, values: Sequence[float]) -> str:
        return self.shown_gold(values[0])

    def shown_gold(self, label: Any) -> str:
        return f"{label:.2f}" if abs(label) >= 1 else f"{label:.2g}"


@dataclass(frozen=True)
class Similarity(Scores):
    """Scores from 0 to 1 that a model answers with the cosine of the vectors of the two texts, each read by itself.

    A model needs no head for it, so that any encoder answers. Reports have correlations first, because these do not
    depend on the range of the cosines.
    """

    name: ClassVar[str] = "similarity"
    head: ClassVar[Head] = "SentenceSimilarity"
    problem_type: ClassVar[ProblemType | None] = None  # type: ignore[assignment]
    follows_gold: ClassVar[bool] = False


def correlation(metric: str, answers: np.ndarray, gold: np.ndarray) -> float:
    """Pearson's or Spearman's correlation; 0 where one side is constant."""
    from scipy import stats

    if np.ptp(answers) == 0 or np.ptp(gold) == 0:
        return 0.0
    of = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[metric]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(of(answers.astype(np.float64), gold.astype(np.float64)).statistic)


def _errors(metric: str, predictions_RN: np.ndarray, gold_RN: np.ndarray) -> np.ndarray:
    """Mean absolute, or root mean squared error of each resample, (R,)."""
    errors = predictions_RN - gold_RN
    return abs(errors).mean(1) if metric == "mae" else np.sqrt((errors**2).mean(1))


def _correlations(metric: str, predictions_RN: np.ndarray, gold_RN: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each resample, (R,); Spearman's is the same on ranks."""
    if metric == "spearman":
        from scipy.stats import rankdata

        predictions_RN, gold_RN = rankdata(predictions_RN, axis=1), rankdata(gold_RN, axis=1)
    a, g = (values - values.mean(1, keepdims=True) for values in (predictions_RN, gold_RN))
    return ratio((a * g).sum(1), np.sqrt((a * a).sum(1) * (g * g).sum(1)))
