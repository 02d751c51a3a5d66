"""Images and texts that are true of them or not: retrieval both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, ClassVar

from stages.tasks import metrics as plain
from stages.tasks.kinds.base import LEAST, Groups, Head, Said
from stages.tasks.kinds.ranking import Ranking
from stages.tasks.numpy_when_used import np


@dataclass(frozen=True)
class ImageTexts(Ranking):
    """A row is an image and a text. Rows of one image follow each other, and all images have the same texts, in one order.

    A model gives a row one logit: that the text is true of the image. The logit ranks the texts of an image, and the
    images of a text. `text_recall_at_5` is the fraction of images with a true text among the first five.
    A text is found if a true image of it is among its first five: `image_recall_at_5` is the fraction of an image's
    true texts that are found, averaged over the images. `mean_recall` is the mean of both at 1, 5 and 10. Of equal logits the wrong ones come
    first.

    Training rows are images whose label is a tuple of true texts; false ones are drawn (`stages.tasks.caption_rows`).
    """

    labels: tuple[str, ...] | None = None  # type: ignore[assignment]

    name: ClassVar[str] = "image-text pairs"
    head: ClassVar[Head] = "ZeroShotImageClassification"
    problem_type: ClassVar[None] = None  # type: ignore[assignment]
    exclusive: ClassVar[bool] = False
    reads_images: ClassVar[bool] = True
    selectable: ClassVar[tuple[str, ...]] = plain.RECALLS
    reported: ClassVar[tuple[str, ...]] = plain.RECALLS

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return expit(logits)

    def logits(self, probabilities: np.ndarray) -> np.ndarray:
        p = np.clip(probabilities, LEAST, 1 - LEAST)
        return np.log(p / (1 - p))

    def distances(self, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        return abs(self.probabilities(student) - self.probabilities(teacher))[:, 0]

    def answers(self, logits: np.ndarray) -> np.ndarray:
        return (logits[:, 0] > 0).astype(int)

    @staticmethod
    def scores(logits: np.ndarray) -> np.ndarray:
        return logits[:, 0]

    def constant(self, metric: str, gold: np.ndarray, groups: Groups = None) -> float:
        """What a random order reaches in the mean."""
        true_NG = _matrix(gold, groups) > 0
        n, g = true_NG.shape

        def by_chance(candidates: int, true: int, k: int) -> float:
            return 1 - comb(candidates - true, min(k, candidates)) / comb(candidates, min(k, candidates))

        found = {}
        for k in plain.RECALL_AT:
            found[f"text_recall_at_{k}"] = sum(by_chance(g, int(t), k) for t in true_NG.sum(1)) / n
            of_texts = [by_chance(n, int(t), k) for t in true_NG.sum(0)]
            found[f"image_recall_at_{k}"] = float((true_NG @ of_texts / true_NG.sum(1)).mean())
        return sum(found.values()) / len(found) if metric == "mean_recall" else found[metric]

    def counts(self, metrics: Sequence[str], said: Said) -> dict[str, np.ndarray]:
        """Of each image."""
        scores_NG, gold_NG = (_matrix(of, said.groups) for of in (self.scores(said.logits), said.gold))
        true_NG = gold_NG > 0
        best_NG = np.where(true_NG, scores_NG, -np.inf)
        found = {}
        for axis, name in ((1, "text"), (0, "image")):
            # Of each image, or text: how many wrong ones are not below the best true one.
            above = (~true_NG & (scores_NG >= best_NG.max(axis, keepdims=True))).sum(axis)
            for k in plain.RECALL_AT:
                hits = (above < k).astype(float)
                found[f"{name}_recall_at_{k}"] = hits if axis else true_NG @ hits / true_NG.sum(1)
        found["mean_recall"] = np.mean(list(found.values()), axis=0)
        return {metric: found[metric] for metric in metrics}

    def written(self, answer: Any) -> str:
        return str(int(answer))

    def read(self, cell: str) -> Any:
        return int(cell)

    def predicted(self, values: np.ndarray) -> tuple[Any, Any]:
        return "", float(values[0])

    def shown(self, values: Sequence[float]) -> str:
        return f"true {values[0]:.0%}"

    def shown_gold(self, label: Any) -> str:
        return "true" if int(label) else "false"


def _matrix(values: np.ndarray, groups: Groups) -> np.ndarray:
    """(images, texts) of the values of all rows."""
    return values.reshape(len(groups or (1,)), -1)
