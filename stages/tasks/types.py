"""What every task reader gives: where a task comes from, and its rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

UNLABELLED, IGNORE_INDEX = -1, -100
"""Labels of an answer whose gold is not known (a score: NaN), and of a token that is not asked for (not its word's
first, or not masked); torch's cross-entropy, too, passes over the second."""


@dataclass(frozen=True)
class TaskSource:
    """What planning knows of a task, without reading its rows.

    Attributes:
        name: canonical name, used in the run's default name ("mrpc", "my-reviews").
        identity: JSON-able; everything that decides the rows. "reader" names the module of this package
            that reads them, "files" holds {role: absolute path}, "hub" and "config" name a hub data set;
            "words" says that words have the labels, "rows" [number, seed] that no more of train are taken,
            "unlabelled" [share, seed] that labels of train are hidden.
    """

    name: str
    identity: dict


@dataclass(frozen=True)
class Split:
    """The rows of one split, as columns of the same length. Where words have the labels, spaces part the words."""

    text_a: list[str]
    text_b: list[str] | None
    labels: list[int] | list[float] | list[list[int]]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def token_level(self) -> bool:
        """Whether it is the words that have labels."""
        return bool(self.labels) and isinstance(self.labels[0], list)

    @property
    def gold(self) -> list[int] | list[float]:
        """The labels one after another: of all rows, or of all words of all rows."""
        return list(chain.from_iterable(self.labels)) if self.token_level else self.labels


@dataclass(frozen=True)
class Task:
    """A task in memory.

    Attributes:
        name: canonical name.
        labels: class names in the student's order, or None for regression.
        splits: "train", "dev", and where there is one "test", "dev_mismatched" and "unlabelled" (rows of train whose
            labels are hidden).
        metrics: all that are reported.
        selection: the one of them that selection on dev uses.
        token_level: whether each word has a label, and not the row.
    """

    name: str
    labels: tuple[str, ...] | None
    splits: dict[str, Split]
    metrics: tuple[str, ...]
    selection: str
    token_level: bool = False
