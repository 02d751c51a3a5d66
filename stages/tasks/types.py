"""What readers give: where a task or a corpus comes from, and a task's rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Self

from checkpoints.errors import UserError
from stages.tasks import metrics

if TYPE_CHECKING:
    from stages.tasks.kinds import Kind

UNLABELLED, IGNORE_INDEX, CONTINUED = -1, -100, 1 << 15
"""UNLABELLED: the gold label is not known (a score: NaN). IGNORE_INDEX: the position is not learned, because the token is
not the first of its word or is not masked; torch's cross-entropy ignores it too. CONTINUED: added, in rows on disk, to the
label of a further token of a word, where it is learned but not scored."""


@dataclass(frozen=True)
class TaskRequest:
    """How a user names a task.

    Attributes:
        task: the name of a task, or the path of a task file.
        data: a file or a directory of the user's own.
        text_columns: one or two columns of the user's file.
        label_columns: columns of 1 or 0, one for each of several labels.
        label_separator: between several labels in a cell.
        spans_column: the column of the spans of entities in the text.
        tag_scheme: the tag scheme of CoNLL files: "iob2", or "iob1", where B- only stands between entities that touch.
        columns: names of the columns of a table without a header line.
        answers: a table of answers to texts, from which training rows get their labels (`stages.tasks.answers`).
        metric: selects on dev, instead of the task's own metric.
        labels: the class names of the user's table, in order; none: those of its rows, sorted.
        positive_label: the one of two classes of which F1 is; none: the second.
        unfit_rows: "leave_out" or "refuse" rows of the table whose text or label cannot be used.
        windows: how the logits of a text's windows are pooled, "mean" or "max"; none: longer texts are truncated.
        encoding: the encoding of the table; none: recognised.
        delimiter: the delimiter of the table: comma, semicolon, tab, pipe or a character; none: recognised.
    """

    OF_TABLES: ClassVar = (
        "labels", "positive_label", "unfit_rows", "encoding", "delimiter", "label_columns", "label_separator", "columns",
    )  # fmt: skip

    task: str
    data: str = ""
    text_columns: tuple[str, ...] = ()
    label_column: str = ""
    metric: str = ""
    labels: tuple[str, ...] = ()
    positive_label: str = ""
    unfit_rows: str = ""
    encoding: str = ""
    delimiter: str = ""
    label_columns: tuple[str, ...] = ()
    label_separator: str = ""
    columns: tuple[str, ...] = ()
    spans_column: str = ""
    tag_scheme: str = ""
    answers: str = ""
    windows: str = ""

    def packaged(self, tasks: tuple[str, ...], allowed: tuple[str, ...] = metrics.CLASSIFICATION) -> str:
        """Return which of a reader's own `tasks` is meant, "" for none of them; `allowed` are the metrics of its kind.

        Raises:
            UserError: the request has options that only fit the user's own files, or an unknown metric.
        """
        task = self.task.lower().replace("_", "-")
        if task not in tasks:
            return ""
        if self.data or self.text_columns or self.label_column:
            raise UserError(
                f"{task!r} is packaged and takes no data or columns; give your own data another name",
                argument="task",
            )
        metrics.select(self.metric, allowed, allowed)
        return task

    def refuse_columns(self, what: str) -> None:
        """Refuse columns for data that have none, as `what` says."""
        if self.text_columns or self.label_column:
            raise UserError(f"{what}; leave text_columns and label_column out", argument="data")


@dataclass(frozen=True)
class Source:
    """Where rows come from, found without reading them.

    Attributes:
        name: canonical name ("mrpc", "my-reviews").
        version: the version of the reader. Raise it when the same source would give other rows.
        files: role -> absolute path.
        hub: name of a hub data set.
    """

    name: str
    reader: str
    version: int = 1
    files: dict[str, str] = field(default_factory=dict)
    hub: str = ""
    config: str = ""

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Self:
        """Restore a source from its `entry`."""
        return cls(entry["name"], **entry["identity"])

    @property
    def entry(self) -> dict[str, Any]:
        """The source as JSON: its name, and as "identity" what decides its rows."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        return {"name": self.name, "identity": {name: value for name, value in values.items() if value}}


@dataclass(frozen=True)
class TaskSource(Source):
    """Where a task comes from.

    Attributes:
        task: which of the reader's tasks.
        metric: selects on dev, instead of the task's own.
        text: text columns of the user's files.
        label: their label column.
        type: "classification", "multi_label", "ranking", "regression" or "" (the labels decide).
        labels: class names, in order.
        positive_label, unfit_rows, encoding, delimiter, label_columns, label_separator, columns: as in `TaskRequest`.
        spans, tag_scheme: `spans_column` and `tag_scheme` of `TaskRequest`.
        windows: as in `TaskRequest`.
        image_augmentation: strength of the random changes to training images (`stages.tasks.image_changes`).
        sentence_vectors: whether the score of a pair is answered by the cosine of its texts' sentence vectors.
        rows: (maximum number of training rows, seed that draws them).
        held_out: (ratio of training rows that are set aside, seed that draws them).
        unlabelled: (ratio of training rows whose labels are hidden, seed that draws them).
        fold: (number from 0, of how many): the fold that the training rows lack.
    """

    task: str = ""
    metric: str = ""
    text: list[str] = field(default_factory=list)
    label: str = ""
    type: str = ""
    labels: list[str] = field(default_factory=list)
    positive_label: str = ""
    unfit_rows: str = ""
    encoding: str = ""
    delimiter: str = ""
    label_columns: list[str] = field(default_factory=list)
    label_separator: str = ""
    columns: list[str] = field(default_factory=list)
    spans: str = ""
    tag_scheme: str = ""
    windows: str = ""
    image_augmentation: float = 0.0
    sentence_vectors: bool = False
    rows: tuple[int, int] | None = None
    held_out: tuple[float, int] | None = None
    unlabelled: tuple[float, int] | None = None
    fold: tuple[int, int] | None = None


@dataclass(frozen=True)
class GoldAnswers:
    """The gold answers to a question: parts of its context.

    Attributes:
        texts: the texts of the answers; none where the context has no answer.
        starts: where in the context each begins, in characters.
        context: set by `Split.gold`; the label of a row has none, for the row has it as `text_b`.
        known: False where the answers are not known.
    """

    texts: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    context: str = ""
    known: bool = True


UNKNOWN = GoldAnswers(known=False)


@dataclass(frozen=True)
class Split:
    """The rows of one split, as columns of equal length.

    Attributes:
        text_a: the texts, or the first texts of pairs. Where words have labels, single spaces separate the words.
        text_b: the second texts of pairs, the contexts of questions; None for single texts.
        continued: `Kind.continued` of the task's kind.
        labels: class ids or scores of the rows; where a row has several labels, a tuple of 1.0 or 0.0 for each of them;
            where words have labels, for each row a list of their class ids; the `GoldAnswers` of questions.
        answers: for training rows whose labels are answers (`stages.tasks.answers`): for each row what was answered, as
            probabilities of the labels or as a score.
        images: the images of rows that are images (`stages.tasks.image_rows.Image`); `text_a` then has their names.
    """

    text_a: list[str]
    text_b: list[str] | None
    labels: list[Any]
    continued: tuple[int, ...] | None = None
    answers: list[tuple[float, ...]] | None = None
    images: list[Any] | None = None

    @classmethod
    def of(cls, rows: Iterable[tuple[Sequence[str], Any]], **more: Any) -> Self:
        """A split of rows, each its one text or its two, and its label; `more` are the other attributes."""
        texts, labels = [list(column) for column in zip(*rows, strict=True)] or ([], [])
        first, *second = [list(column) for column in zip(*texts, strict=True)] or [[]]
        return cls(first, second[0] if second else None, labels, **more)

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: Sequence[int]) -> Self:
        """Some of the rows, by their indices."""
        columns = ("text_a", "text_b", "labels", "answers", "images")
        kept: dict[str, Any] = {
            name: [column[i] for i in rows] for name in columns if (column := getattr(self, name))
        }
        return replace(self, **kept)

    def texts(self, row: int) -> list[str]:
        """The one text of a row, or its two."""
        return [column[row] for column in (self.text_a, self.text_b) if column is not None]

    @property
    def token_level(self) -> bool:
        """Whether each word has a label."""
        return bool(self.labels) and isinstance(self.labels[0], list)

    @property
    def asks(self) -> bool:
        """Whether the rows are questions."""
        return bool(self.labels) and isinstance(self.labels[0], GoldAnswers)

    @property
    def gold(self) -> list[Any]:
        """All labels in one list: of the rows, or of all words of all rows; answers with their contexts."""
        if self.asks:
            pairs = zip(self.labels, self.text_b or (), strict=True)
            return [replace(answers, context=context) for answers, context in pairs]
        return list(chain.from_iterable(self.labels)) if self.token_level else self.labels


@dataclass(frozen=True)
class Task:
    """A task in memory.

    Attributes:
        name: canonical name.
        kind: what its answers are; it has the class names in the student's order.
        splits: "train", "dev", and where they exist "test", "dev_mismatched", "held_out" (training rows that no student
            learns from) and "unlabelled" (training rows whose labels are hidden).
        metrics: those reported.
        selection: the one of them that selects on dev.
        notes: how the files were understood, for the user: what is used as what, what was recognised or left out.
        gold: whether dev and test have labels of their own; else theirs are answers, too, and metrics are agreement with
            whoever answered.
    """

    name: str
    kind: Kind
    splits: dict[str, Split]
    metrics: tuple[str, ...]
    selection: str
    notes: tuple[str, ...] = ()
    gold: bool = True

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names in the student's order; None for scores."""
        return self.kind.labels

    @property
    def token_level(self) -> bool:
        """Whether each word has a label, instead of each row."""
        return self.kind.token_level

    def groups(self, split: str) -> list[int] | None:
        """Answers in each group that is resampled whole; None: each row is one answer."""
        return self.kind.groups(self.splits[split])
