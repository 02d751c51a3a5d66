"""A score of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from stages.tasks import metrics as plain
from stages.tasks.kinds.base import Kind, ProblemType, ratio

if TYPE_CHECKING:
    import numpy as np

    from stages.tasks.kinds.base import Resampler


@dataclass(frozen=True)
class Scores(Kind):
    """A row has a score, a real number."""

    name: ClassVar[str] = "scores"
    problem_type: ClassVar[ProblemType] = "regression"
    selectable: ClassVar[tuple[str, ...]] = plain.REGRESSION
    reported: ClassVar[tuple[str, ...]] = plain.REGRESSION
    follows_gold: ClassVar[bool] = True

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def distances(self, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        return abs(student - teacher)[:, 0]

    def agreement(
        self, student: np.ndarray, teacher: np.ndarray, of_teacher: Self | None = None
    ) -> dict[str, float]:
        found = plain.compute(("pearson",), self.answers(student), self.answers(teacher))
        return {"pearson_to_teacher": found["pearson"]}

    def answers(self, logits: np.ndarray) -> np.ndarray:
        return logits[:, 0]

    def measure(
        self, metrics: Sequence[str], logits: np.ndarray, gold: np.ndarray, words: Sequence[int] | None = None
    ) -> dict[str, float]:
        return plain.compute(metrics, self.answers(logits), gold)

    def resampler(
        self, metrics: Sequence[str], logits: np.ndarray, gold: np.ndarray, words: Sequence[int] | None = None
    ) -> Resampler:
        answers = self.answers(logits)
        return lambda rows_RN: {
            metric: _correlations(metric, answers[rows_RN], gold[rows_RN]) for metric in metrics
        }

    def constant(self, metric: str, gold: np.ndarray, words: Sequence[int] | None = None) -> float:
        return plain.constant_baseline((metric,), gold)[metric]

    def written(self, answer: Any) -> str:
        return f"{float(answer)!r}"

    def read(self, cell: str) -> Any:
        return float(cell)

    def hidden(self, label: Any) -> Any:
        return math.nan

    def predicted(self, values: np.ndarray) -> tuple[Any, Any]:
        return "", float(values[0])

    def shown(self, values: Sequence[float]) -> str:
        return f"{values[0]:.2f}"

    def shown_gold(self, label: Any) -> str:
        return f"{label:.2f}"


def _correlations(metric: str, predictions_RN: np.ndarray, gold_RN: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each resample, (R,); Spearman's is the same on ranks."""
    import numpy as np

    if metric == "spearman":
        from scipy.stats import rankdata

        predictions_RN, gold_RN = rankdata(predictions_RN, axis=1), rankdata(gold_RN, axis=1)
    a, g = (values - values.mean(1, keepdims=True) for values in (predictions_RN, gold_RN))
    return ratio((a * g).sum(1), np.sqrt((a * a).sum(1) * (g * g).sum(1)))
