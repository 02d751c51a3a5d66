"""The schema of what `evaluate` measures: `results.json`, and its scores in `finished.json`.

`stages/evaluate.py` writes these classes, `pipeline/report` reads them. docs/report.md explains each number.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Interval = tuple[float, float]
"""(low, high) of a 95% confidence interval."""


BUSY = 0.05
"""Fraction of the time waiting for a processor, from which a machine counts as busy."""


@dataclass(frozen=True)
class CalibrationBin:
    """The rows whose confidence falls into one bin: how many, their mean confidence and their accuracy."""

    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far a model's confidence is from its accuracy.

    Attributes:
        bins: those that hold rows, by rising confidence.
        error: expected calibration error (ECE).
        temperature: fitted on dev; None where dev itself is reported.
        bins_scaled: the bins after the logits are divided by the temperature.
        error_scaled: their ECE.
    """

    bins: list[CalibrationBin]
    error: float
    temperature: float | None = None
    bins_scaled: list[CalibrationBin] | None = None
    error_scaled: float | None = None


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class; `rows` counts those with its gold label."""

    precision: float
    recall: float
    f1: float
    rows: int


@dataclass(frozen=True)
class Disagreement:
    """A row on which student and teacher differ.

    Attributes:
        row: index in the split, from 0; at token level the word's.
        texts: the row's one or two texts; for token-level tasks the word and its text.
        label: gold: a class id, the score of a regression, 1.0 or 0.0 for each of several labels, or the answers to a
            question as a cell of a table.
        student: class probabilities, one score, or an answer.
        teacher: the same.
    """

    row: int
    texts: list[str]
    label: int | float | tuple[float, ...] | str
    student: list[float] | str
    teacher: list[float] | str


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of a latency, in milliseconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows that were timed one at a time."""

    mean: float
    least: int
    most: int


@dataclass
class Costs:
    """What inference costs, on the CPU in fp32.

    Attributes:
        batch: the latency of 32 rows at once.
        rows_per_second: with 32 rows at once, at the median.
        lengths: the lengths of the single rows.
        threads: number of threads that torch used.
        peak_bytes: the weights, and the most memory that one pass over 32 rows takes beside them; None where the
            system does not tell.
        waiting: fraction of the time that the threads waited for a processor; None where the system does not tell.
    """

    latency: Percentiles
    batch: Percentiles
    rows_per_second: float
    lengths: Lengths
    threads: int
    peak_bytes: int | None = None
    waiting: float | None = None

    @property
    def busy(self) -> bool:
        """Whether other processes used the processors, so that latency and throughput are worse than the model's."""
        return (self.waiting or 0.0) > BUSY


def busy_note(costs: Iterable[Costs]) -> str:
    """A line where latencies were measured while other processes used the processors; else an empty text."""
    waiting = max((c.waiting or 0.0 for c in costs if c.busy), default=0.0)
    if not waiting:
        return ""
    return f"measured on a busy machine (threads waited {waiting:.0%} of the time): latencies are too long"


@dataclass
class ModelResult:
    """Everything measured of one model. None: does not apply to the task or to the model.

    Attributes:
        metric: the selection metric.
        scores: every metric of the task; "<metric>_mismatched" too where the task has mismatched rows (MNLI).
        intervals: metric -> its 95% confidence interval.
        bytes: size of the weights' files.
        flops: floating-point operations of the encoder for a row of mean length.
        costs: latency, throughput and memory.
        retained: student / teacher, of the selection metric; None if the teacher's is 0 or less, or is so on more than
            2% of the resamples.
        retained_interval: its 95% confidence interval.
        confusion: gold classes down, predicted classes across.
        classes: scores of each class, in the order of the task's labels.
        label_loyalty: fraction of rows with the teacher's label.
        probability_loyalty: 1 less the mean distance from the teacher's distribution.
        pearson_to_teacher: correlation with the teacher's scores, of a regression, which has no loyalties.
        differ_most: the rows on which student and teacher differ most; only of the student that the run is about. Where
            the teacher is a table of answers, of the encoder tuned on them: the training rows on which it, as the
            student, and the answers differ most.
    """

    metric: float
    scores: dict[str, float]
    intervals: dict[str, Interval]
    parameters: int
    bytes: int
    flops: float
    costs: Costs
    retained: float | None = None
    retained_interval: Interval | None = None
    confusion: list[list[int]] | None = None
    classes: list[ClassScores] | None = None
    calibration: Calibration | None = None
    label_loyalty: float | None = None
    probability_loyalty: float | None = None
    pearson_to_teacher: float | None = None
    differ_most: list[Disagreement] = field(default_factory=list)


@dataclass(frozen=True)
class AnswerNoise:
    """How noisy the answers are that were the teacher.

    Attributes:
        rows: training rows with an answer.
        entropy: mean entropy of their distributions, in bits; 0 where each is one label. None for scores.
        differ: fraction of them to which the encoder tuned on the answers gives another label; None for scores.
        distance: mean distance of the encoder's distribution (or score) from the answer's.
    """

    rows: int
    entropy: float | None
    differ: float | None
    distance: float


@dataclass(frozen=True)
class EvaluationInfo:
    """What the models of a run were evaluated on.

    Attributes:
        split: test, or dev where the task has no labelled test rows.
        selection: the metric by which checkpoints were selected.
        constant: the best constant prediction's value of it.
        student: the model that the run is about.
        kind: the task's: a key of `stages.tasks.kinds.KINDS`.
        labels: class names; None for scores.
        words: labelled words in the split, of a token-level task.
        gold: whether the split has labels of its own; else they are the teacher's answers.
        answers: the answers' noise, if the teacher is a table of answers.
    """

    split: str
    rows: int
    selection: str
    constant: float
    student: str
    kind: str
    labels: list[str] | None = None
    words: int | None = None
    gold: bool = True
    answers: AnswerNoise | None = None


def to_json(value: Any) -> dict[str, Any]:
    """A dataclass as JSON-able dict, without what is None."""
    return asdict(value, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})


def read_results(path: Path) -> dict[str, ModelResult]:
    """Read a `results.json`: model -> what was measured of it.

    Raises:
        ValueError: the file is not JSON, or has another schema.
    """
    return parse(dict[str, ModelResult], json.loads(path.read_text(encoding="utf-8")))


def parse(kind: Any, value: Any) -> Any:
    """Check a value read from JSON and turn it into `kind`, a dataclass or a collection of some.

    Raises:
        ValueError: a field is missing or of another type.
    """
    from pydantic import TypeAdapter  # takes 0.1 s, which commands that read no results need not wait for

    return TypeAdapter(kind).validate_python(value)
