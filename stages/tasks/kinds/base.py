"""What every kind of task answers for itself; each other file of this package is one kind.

scipy and its like are imported where they are needed: a run is planned without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

from checkpoints.errors import UserError
from stages.tasks.numpy_when_used import np

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from stages.tasks.types import Split

Groups: TypeAlias = "Sequence[int] | None"
"""The number of answers of each group that is drawn as a whole (`Kind.groups`)."""
Resampler: TypeAlias = "Callable[[np.ndarray], dict[str, np.ndarray]]"
"""Takes resamples, (R, N) numbers of groups drawn with replacement; returns metric -> (R,) values."""

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
Head = Literal[
    "SequenceClassification",
    "TokenClassification",
    "QuestionAnswering",
    "ImageClassification",
    "CTC",
    "NodeClassification",
    "SentenceSimilarity",
    "ZeroShotImageClassification",
]
"""What transformers calls a model with it: `AutoModelFor...`; SentenceSimilarity is that of `stages.distillation.sentence_vectors`."""


class Said(NamedTuple):
    """What a model says to a split, beside what is right.

    Attributes:
        logits: (N, C).
        gold: (N,) or (N, C), in the form of `Kind.answers`.
        groups: the groups of the split (`Kind.groups`).
    """

    logits: np.ndarray
    gold: np.ndarray
    groups: Groups = None


@dataclass(frozen=True)
class Kind(ABC):
    """What a model answers for a row or a word, what it learns, and how answers are compared.

    Axes in shapes: N answers, C outputs of the model, R resamples.

    Attributes:
        labels: class names in the order of the model's outputs; None where it gives a score.
        pooling: how the logits of a long text's windows are joined: "mean" or "max" of each; "": texts are truncated. It is in the
            model's config, as `window_pooling`.
        name: the name of the kind, as records of runs have it.
        head: what the model has above its encoder.
        problem_type: in the model's config, by which stock transformers choose loss and activation.
        selectable: metrics that may select on dev.
        reported: metrics that are reported; the first selects, unless another is asked for.
        reads_images: whether a row has an image.
        token_level: whether each word has an answer, instead of each row.
        exclusive: whether exactly one of the labels holds.
        scale: mean and deviation of scores, which are learned as deviations from the mean.
        follows_gold: whether the prediction stage learns gold labels by default, as TinyBERT does on STS-B.
        predicts_original: whether the prediction stage reads the original rows, not the augmented ones, even where it learns
            from the teacher; where it learns gold labels it always does.
        fixes_second: whether augmentation leaves the second text of a row as it is.
        fits_on_dev: whether `fitted` chooses something.
        constant_name: what `constant` is, for a reader.
    """

    labels: tuple[str, ...] | None = None
    pooling: str = field(default="", kw_only=True)

    name: ClassVar[str]
    head: ClassVar[Head] = "SequenceClassification"
    problem_type: ClassVar[ProblemType | None] = None
    selectable: ClassVar[tuple[str, ...]]
    reported: ClassVar[tuple[str, ...]]
    reads_images: ClassVar[bool] = False
    token_level: ClassVar[bool] = False
    exclusive: ClassVar[bool] = False
    scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    follows_gold: ClassVar[bool] = False
    predicts_original: ClassVar[bool] = False
    fixes_second: ClassVar[bool] = False
    fits_on_dev: ClassVar[bool] = False
    constant_name: ClassVar[str] = "the best constant prediction"

    @property
    def outputs(self) -> int:
        """C, the number of the model's outputs."""
        return len(self.labels) if self.labels else 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that `class_scores` has scores for."""
        return self.labels or ()

    @property
    def continued(self) -> tuple[int, ...] | None:
        """At token level, for each class the class of a word's further tokens; None: these learn nothing."""
        return None

    def groups(self, split: Split) -> list[int] | None:
        """How many answers each group has that is resampled whole, as a row's words; None: each row is one answer."""
        return [len(labels) for labels in split.labels] if self.token_level else None

    def said(self, logits: np.ndarray, split: Split) -> Said:
        """A model's logits of a split, beside its gold answers."""
        return Said(logits, np.asarray(split.gold), self.groups(split))

    def entities(self, label: Any) -> list[tuple[str, int, int]]:
        """The entities of a row, by its label: kind, first and last word.

        Raises:
            ValueError: labels of this kind mark none.
        """
        raise UserError(
            f"'swap' needs labels of words that mark entities, and the task has {self.name}; take keep",
            argument="augmentation.entities",
        )

    def fixed(self, label: Any) -> list[int]:
        """The words of a row that augmentation must not replace, by their numbers."""
        return []

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(N, C) the softmax. Kinds with several labels a row take sigmoids, scores the score itself."""
        from scipy.special import softmax

        return softmax(np.asarray(logits, np.float64), axis=-1)

    def logits(self, probabilities: np.ndarray) -> np.ndarray:
        """(N, C) logits of these `probabilities`; they are finite, for 0 (and 1) are first moved by 1e-6."""
        return np.log(np.maximum(probabilities, LEAST))

    @abstractmethod
    def distances(self, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        """(N,) distances between two models' answers, from their logits."""

    @abstractmethod
    def answers(self, logits: np.ndarray) -> np.ndarray:
        """What the model says: (N,) class ids or scores, or (N, C) whether each label holds."""

    def counts(self, metrics: Sequence[str], said: Said) -> dict[str, np.ndarray]:
        """Metric -> (groups,) the value of each group; the metric is their mean.

        A kind that has other metrics has a `resampler` of its own.
        """
        raise NotImplementedError

    def measure(self, metrics: Sequence[str], said: Said) -> dict[str, float]:
        """Return {metric: value}: that of the resample which has each group once."""
        each_1N = np.arange(len(said.groups or said.gold))[None]
        return {metric: float(of[0]) for metric, of in self.resampler(metrics, said)(each_1N).items()}

    def resampler(self, metrics: Sequence[str], said: Said) -> Resampler:
        """A function from the row numbers of R resamples (R, N) to their metrics (R,)."""
        counts = self.counts(metrics, said)
        return lambda rows_RN: {metric: of[rows_RN].mean(1) for metric, of in counts.items()}

    @abstractmethod
    def constant(self, metric: str, gold: np.ndarray, groups: Groups = None) -> float:
        """The best value of a metric that one constant answer to everything reaches."""

    def agreement(
        self, student: np.ndarray, teacher: np.ndarray, of_teacher: Self | None = None, groups: Groups = None
    ) -> dict[str, float]:
        """How close a student's logits are to its teacher's, right or wrong.

        Args:
            student, teacher: (N, C) logits.
            of_teacher: the kind `fitted` to the teacher, if that may differ.
            groups: the groups of the split (`groups`).

        Returns:
            The fields of `stages.evaluation.results.ModelResult` that hold: "label_loyalty", the fraction of equal
            answers, and "probability_loyalty", 1 - the mean distance (Xu et al. 2021, arXiv 2109.03228).
        """
        same = self.answers(student) == (of_teacher or self).answers(teacher)
        return {
            "label_loyalty": float(same.reshape(len(same), -1).all(-1).mean()),
            "probability_loyalty": float(1 - self.distances(student, teacher).mean()),
        }

    def class_scores(self, said: Said) -> list[tuple[float, float, float, int]]:
        """Precision, recall, F1 and number of gold answers of each of `class_names`; 0 where one is not defined."""
        return []

    def cells(self, logits: np.ndarray, split: Split) -> list[str]:
        """What the model says to each row of a split, as cells of a table."""
        return [self.written(answer) for answer in self.answers(logits)]

    @abstractmethod
    def written(self, answer: Any) -> str:
        """An answer, or a gold label, as a cell of a table."""

    @abstractmethod
    def read(self, cell: str) -> Any:
        """Parse a cell of `written`."""

    @abstractmethod
    def hidden(self, label: Any) -> Any:
        """What stands in place of a label that is hidden."""

    def predicted(self, values: np.ndarray) -> tuple[Any, Any]:
        """(label, its probability) of a row's probabilities (C,); lists of them; or ("", the score)."""
        return "", float(values[0])

    @abstractmethod
    def shown(self, values: Any) -> str:
        """A row's or a word's probabilities, its score, or an answer of another form, for a reader."""

    @abstractmethod
    def shown_gold(self, label: Any) -> str:
        """A row's or a word's gold label for a reader."""

    def fitted(self, metric: str, logits: np.ndarray, gold: np.ndarray) -> Self:
        """The kind with what is chosen on dev for one model; most have nothing to choose."""
        return self

    def of_model(self, config: PretrainedConfig) -> Self:
        """The kind with what was chosen on dev for a model, such as a threshold, as its config keeps it."""
        return self

    def keep(self, config: PretrainedConfig) -> None:
        """Keep in a model's config what was chosen for it, and how its windows are pooled."""
        for name in ("window_pooling", "ranking"):  # of another task, from which the model comes
            vars(config).pop(name, None)
        if self.pooling:
            config.window_pooling = self.pooling

    def first_bias(self, labels: Sequence[Any]) -> np.ndarray | None:
        """(C,) the bias of a new head, by the labels of the training rows; None: as it is drawn."""
        return None

    def configure(self, config: PretrainedConfig) -> None:
        """Note labels and problem type in a model's config."""
        names = self.labels or ("score",)
        config.num_labels = len(names)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        config.problem_type = self.problem_type
        self.keep(config)


LEAST = 1e-6
"""The probability that stands for 0, whose logarithm is not finite."""


def jensen_shannon(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The Jensen-Shannon distance of distributions over the last axis: the root of the divergence, base 2.

    It is 0 for equal distributions and 1 for disjoint ones.
    """
    from scipy.spatial.distance import jensenshannon

    with np.errstate(invalid="ignore"):  # rounding can make the divergence of equal rows slightly negative
        return np.nan_to_num(jensenshannon(one, other, base=2, axis=-1))


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, 0 where that is not defined."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def scores_of_classes(
    right: np.ndarray, answered: np.ndarray, true: np.ndarray
) -> list[tuple[float, float, float, int]]:
    """`Kind.class_scores`, by how many answers of each class are right, given and gold, (C,) each."""
    scores = ratio(right, answered), ratio(right, true), ratio(2 * right, answered + true)
    return [(p, r, f, int(n)) for p, r, f, n in zip(*(of.tolist() for of in scores), true, strict=True)]
