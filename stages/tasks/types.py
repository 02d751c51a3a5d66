"""What every task reader gives: where a task comes from, and its rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskSource:
    """What planning knows of a task, without reading its rows.

    Attributes:
        name: canonical name, used in the run's default name ("mrpc", "my-reviews").
        identity: JSON-able; everything that decides the rows. "reader" names the module of this package
            that reads them, "files" holds {role: absolute path}, "hub" and "config" name a hub data set.
    """

    name: str
    identity: dict


@dataclass(frozen=True)
class Split:
    """The rows of one split, as columns of the same length."""

    text_a: list[str]
    text_b: list[str] | None
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """A task in memory.

    Attributes:
        name: canonical name.
        labels: class names in the student's order, or None for regression.
        splits: "train", "dev", and where there is one "test" and "dev_mismatched".
        metrics: all that are reported.
        selection: the one of them that selection on dev uses.
    """

    name: str
    labels: tuple[str, ...] | None
    splits: dict[str, Split]
    metrics: tuple[str, ...]
    selection: str
