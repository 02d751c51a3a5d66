"""Entities in a text: runs of words that have a kind, such as a person, written as IOB2 labels of the words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from stages.tasks.kinds.base import Groups, Kind, Resampler, Said, ratio, scores_of_classes
from stages.tasks.kinds.classes import Words
from stages.tasks.numpy_when_used import np

OUTSIDE = "O"
METRICS = ("entity_f1", "exact_match", "accuracy")
Entity = tuple[str, int, int]
"""Kind, first and last word."""


@dataclass(frozen=True)
class Entities(Words):
    """Words begin an entity (B-person), go on with it (I-person), or are outside (O).

    An entity is right if its kind, first and last word are. A label I-person that follows no entity of a person begins
    one, as seqeval and conlleval read it. The further tokens of a word learn to go on with the word's entity, so that
    stock `aggregation_strategy="simple"`, which asks every token, does not cut words. Words are scored by their first
    token.
    """

    name: ClassVar[str] = "entities"
    selectable: ClassVar[tuple[str, ...]] = METRICS
    reported: ClassVar[tuple[str, ...]] = METRICS
    measure = Kind.measure  # of rows, by their entities

    @staticmethod
    def describes(labels: Iterable[str]) -> bool:
        """Whether labels of words are those of entities."""
        names = set(labels)
        return names > {OUTSIDE} and all(name == OUTSIDE or name[:2] in ("B-", "I-") for name in names)

    @classmethod
    def of(cls, labels: Iterable[str]) -> Entities:
        """This kind of task, with B-x and I-x of each kind x of entity, sorted, and O."""
        kinds = {label[2:] for label in labels if label != OUTSIDE}
        return cls(
            (*(f"B-{kind}" for kind in sorted(kinds)), *(f"I-{kind}" for kind in sorted(kinds)), OUTSIDE)
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted({label[2:] for label in self.labels if label != OUTSIDE}))

    @property
    def continued(self) -> tuple[int, ...]:
        """For each label the label of a word's further tokens."""
        return tuple(
            self.labels.index("I-" + label[2:] if label[:2] == "B-" else label) for label in self.labels
        )

    def resampler(self, metrics: Sequence[str], said: Said) -> Resampler:
        """Entity F1 is seqeval's, over all kinds together; `exact_match` is the fraction of rows without a wrong entity."""
        right, answered, true = self._found(said)
        lengths = np.asarray(said.groups or [len(said.gold)])
        is_right = self.answers(said.logits) == said.gold
        right_words = np.add.reduceat(is_right, np.cumsum(lengths) - lengths)
        both, exact = answered.sum(1) + true.sum(1), _exact(right, answered, true)
        columns = (right.sum(1), both, exact, right_words, lengths)
        counts = np.stack(columns, axis=1).astype(float)

        def measure(rows_RN: np.ndarray) -> dict[str, np.ndarray]:
            times_RN = np.stack([np.bincount(rows, minlength=len(lengths)) for rows in rows_RN])
            right, both, exact, right_words, all_words = (times_RN @ counts).T
            values = {
                "entity_f1": ratio(2 * right, both),
                "exact_match": exact / rows_RN.shape[1],
                "accuracy": right_words / all_words,
            }
            return {metric: values[metric] for metric in metrics}

        return measure

    def constant(self, metric: str, gold: np.ndarray, groups: Groups = None) -> float:
        """The value of no entities at all; for the accuracy, of the most frequent label at every word."""
        if metric == "accuracy":
            return super().constant(metric, gold, groups)
        nothing = np.zeros((len(gold), self.outputs))
        nothing[:, self.labels.index(OUTSIDE)] = 1
        return self.measure([metric], Said(nothing, gold, groups))[metric]

    def class_scores(self, said: Said) -> list[tuple[float, float, float, int]]:
        """As in the base class, of the entities of each kind."""
        return scores_of_classes(*(of.sum(0) for of in self._found(said)))

    def entities(self, label: Iterable[int]) -> list[Entity]:
        from seqeval.metrics.sequence_labeling import get_entities

        return get_entities([self.labels[int(i)] for i in label])

    def fixed(self, label: Any) -> list[int]:
        outside = self.labels.index(OUTSIDE)
        return [place for place, i in enumerate(label) if i != outside]

    def _found(self, said: Said) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Entities that are right, answered and gold: three of (rows, kinds)."""
        kinds, words = {name: i for i, name in enumerate(self.class_names)}, said.groups or [len(said.gold)]
        counts, ends = np.zeros((3, len(words), len(kinds)), np.int64), np.cumsum(words)[:-1]
        columns = (np.split(column, ends) for column in (self.answers(said.logits), said.gold))
        for row, pair in enumerate(zip(*columns, strict=True)):
            answered, true = (set(self.entities(ids)) for ids in pair)
            for of, found in zip(counts, (answered & true, answered, true), strict=True):
                for kind, *_ in found:
                    of[row, kinds[kind]] += 1
        return counts[0], counts[1], counts[2]


def _exact(right: np.ndarray, answered: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(rows,) whether all entities of a row are right, and no others are answered."""
    return (right.sum(1) == answered.sum(1)) & (right.sum(1) == true.sum(1))
