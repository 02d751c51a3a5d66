"""How similar the two texts of a row are: the cosine of their sentence vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stages.tasks.kinds.base import Head, ProblemType
from stages.tasks.kinds.scores import Scores


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
