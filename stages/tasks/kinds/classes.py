"""One of several classes: of each row, word, image or node of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from stages.tasks import metrics as plain
from stages.tasks.kinds.base import (
    Groups,
    Head,
    Kind,
    ProblemType,
    Resampler,
    Said,
    jensen_shannon,
    ratio,
    scores_of_classes,
)
from stages.tasks.numpy_when_used import np
from stages.tasks.types import UNLABELLED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from stages.tasks.graph_rows import Graph
    from stages.tasks.types import Split


@dataclass(frozen=True)
class Classes(Kind):
    """A row has one class.

    Metrics are GLUE's (Wang et al. 2018, arXiv 1804.07461, section 3). F1 is that of the second of two classes; of more
    it is the mean over the classes (macro). F1 and Matthews' correlation are 0 where they are not defined.
    """

    labels: tuple[str, ...] = ()

    name: ClassVar[str] = "classes"
    problem_type: ClassVar[ProblemType] = "single_label_classification"
    selectable: ClassVar[tuple[str, ...]] = plain.CLASSIFICATION
    reported: ClassVar[tuple[str, ...]] = ("accuracy", "f1")
    exclusive: ClassVar[bool] = True

    def distances(self, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        return jensen_shannon(self.probabilities(student), self.probabilities(teacher))

    def answers(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(-1)

    def measure(self, metrics: Sequence[str], said: Said) -> dict[str, float]:
        return super().measure(metrics, said._replace(groups=None))  # words one by one: no row is drawn

    def resampler(self, metrics: Sequence[str], said: Said) -> Resampler:
        answers, classes, gold, groups = self.answers(said.logits), self.outputs, said.gold, said.groups
        if groups is None:
            return lambda rows_RN: _from_counts(
                metrics, _confusions(answers[rows_RN], gold[rows_RN], classes)
            )
        of_rows = _row_confusions(answers, gold, classes, groups)

        def of_words(rows_RN: np.ndarray) -> dict[str, np.ndarray]:
            times_RN = np.stack([np.bincount(rows, minlength=len(groups)) for rows in rows_RN])
            return _from_counts(metrics, (times_RN @ of_rows).reshape(-1, classes, classes))

        return of_words

    def constant(self, metric: str, gold: np.ndarray, groups: Groups = None) -> float:
        shape = (self.outputs, len(gold))
        answers_CN = np.broadcast_to(np.arange(self.outputs)[:, None], shape)
        confusions = _confusions(answers_CN, np.broadcast_to(gold, shape), self.outputs)
        return float(_from_counts([metric], confusions)[metric].max())

    def class_scores(self, said: Said) -> list[tuple[float, float, float, int]]:
        (counts_CC,) = _confusions(self.answers(said.logits)[None], said.gold[None], self.outputs)
        return scores_of_classes(counts_CC.diagonal(), counts_CC.sum(0), counts_CC.sum(1))

    def written(self, answer: Any) -> str:
        return self.labels[int(answer)]

    def read(self, cell: str) -> Any:
        return self.labels.index(cell)

    def hidden(self, label: Any) -> Any:
        return UNLABELLED

    def predicted(self, values: np.ndarray) -> tuple[Any, Any]:
        return self.labels[int(values.argmax())], float(values.max())

    def shown(self, values: Sequence[float]) -> str:
        best = max(range(len(values)), key=values.__getitem__)
        return f"{self.labels[best]} {values[best]:.0%}"

    def shown_gold(self, label: Any) -> str:
        return self.labels[int(label)]


@dataclass(frozen=True)
class Words(Classes):
    """Each word of a row has one class. A cell holds those of all words, separated by spaces."""

    name: ClassVar[str] = "words"
    head: ClassVar[Head] = "TokenClassification"
    token_level: ClassVar[bool] = True

    def first_bias(self, labels: Sequence[Any]) -> np.ndarray:
        """The logarithm of each label's frequency: most words are outside of entities."""
        counts = np.bincount(
            np.concatenate([of_row for of_row in labels if len(of_row)]), minlength=self.outputs
        )
        return np.log((counts + 1) / (counts + 1).sum())

    def cells(self, logits: np.ndarray, split: Split) -> list[str]:
        ends = np.cumsum([len(labels) for labels in split.labels])[:-1]
        return [self.written(of_row) for of_row in np.split(self.answers(logits), ends)]

    def written(self, answer: Any) -> str:
        return " ".join(self.labels[int(tag)] for tag in answer)

    def read(self, cell: str) -> Any:
        return [self.labels.index(tag) for tag in cell.split(" ")]

    def hidden(self, label: Any) -> Any:
        return [UNLABELLED] * len(label)


@dataclass(frozen=True)
class ImageClasses(Classes):
    """An image has one class.

    Attributes:
        augmentation: strength of the random changes to training images, from 0 (none) to 1
            (`stages.tasks.image_changes`).
    """

    augmentation: float = field(default=0.0, kw_only=True)

    name: ClassVar[str] = "image classes"
    reads_images: ClassVar[bool] = True
    head: ClassVar[Head] = "ImageClassification"


@dataclass(frozen=True)
class Nodes(Classes):
    """A node has one class. The graph is one row, and all its nodes are read at once.

    Attributes:
        graph: the nodes' graph; None if a config or a run's record gives the kind.
        class_weights: each class's weight in the gold-label loss; also in the config.
    """

    graph: Graph | None = field(default=None, kw_only=True, compare=False, repr=False)
    class_weights: tuple[float, ...] = field(default=(), kw_only=True)

    name: ClassVar[str] = "nodes"
    head: ClassVar[Head] = "NodeClassification"
    reported: ClassVar[tuple[str, ...]] = ("f1", "accuracy")

    def configure(self, config: PretrainedConfig) -> None:
        """Note in a model's config the classes with their weights, the types of nodes and the relations."""
        super().configure(config)
        if self.graph:
            config.class_weights = list(self.class_weights)
            config.node_types = list(self.graph.nodes)
            config.node_counts = [len(ids) for ids in self.graph.nodes.values()]
            config.relations = [[*types, len(pairs)] for types, pairs in self.graph.edges.items()]


def _confusions(predictions_RN: np.ndarray, gold_RN: np.ndarray, classes: int) -> np.ndarray:
    """(R, C, C) counts: gold classes down, predicted classes across.

    One bincount for all resamples: scikit-learn's confusion_matrix takes them one by one.
    """
    sets, cells = len(gold_RN), classes * classes
    codes_RN = gold_RN * classes + predictions_RN + cells * np.arange(sets)[:, None]
    return np.bincount(codes_RN.ravel(), minlength=sets * cells).reshape(sets, classes, classes)


def _row_confusions(
    predictions: np.ndarray, gold: np.ndarray, classes: int, words: Sequence[int]
) -> np.ndarray:
    """(N, C * C) confusions of the words of each row, in floating point, which numpy multiplies by BLAS."""
    cells = classes * classes
    codes = np.repeat(np.arange(len(words)), words) * cells + gold * classes + predictions
    return np.bincount(codes, minlength=len(words) * cells).reshape(-1, cells).astype(np.float64)


def _from_counts(metrics: Sequence[str], counts_RCC: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics as `Classes` defines them, (R,) each, from confusion matrices."""
    counts_RCC = counts_RCC.astype(np.float64)
    rows_R, right_RC = counts_RCC.sum((1, 2)), np.diagonal(counts_RCC, axis1=1, axis2=2)
    predicted_RC, gold_RC = counts_RCC.sum(1), counts_RCC.sum(2)
    found = {}
    for metric in metrics:
        if metric in ("accuracy", "agreement"):
            found[metric] = right_RC.sum(1) / rows_R
        elif metric == "f1":
            f1_RC = ratio(2 * right_RC, predicted_RC + gold_RC)
            found[metric] = f1_RC[:, 1] if f1_RC.shape[1] == 2 else f1_RC.mean(1)
        else:  # Matthews for any number of classes (Gorodkin 2004)
            above = right_RC.sum(1) * rows_R - (predicted_RC * gold_RC).sum(1)
            below = (rows_R**2 - (predicted_RC**2).sum(1)) * (rows_R**2 - (gold_RC**2).sum(1))
            found[metric] = ratio(above, np.sqrt(below))
    return found
