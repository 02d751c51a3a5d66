"""What `evaluate` derives from logits, which are (rows, classes) in the order of the task's labels."""

from collections.abc import Mapping

import numpy as np

from stages.evaluation import statistics
from stages.evaluation.results import (
    AnswerNoise,
    Calibration,
    CalibrationBin,
    ClassScores,
    Disagreement,
    Interval,
)
from stages.tasks.kinds import Kind, Questions, Sequences
from stages.tasks.kinds.base import LEAST
from stages.tasks.task import Split, Task

TINY = 1e-3
"""Bits: the entropy of one label, whose logits are finite, is below it."""

EXAMPLES = 10
"""Rows reported of those on which student and teacher differ most."""


def confidence_intervals(
    task: Task, split: str, logits: dict[str, np.ndarray], kinds: Mapping[str, Kind] | None = None
) -> tuple[dict[str, dict[str, Interval]], dict[str, Interval]]:
    """95% confidence intervals of each model's metrics, and of the ratio of its selection metric to the teacher's.

    Every resample draws the same rows for all models, so the ratio compares models on equal rows.

    Args:
        logits: model -> its logits; one model is the "teacher".
        kinds: model -> the task's kind, with what was chosen for the model; the task's own by default.

    Returns:
        (model -> metric -> interval, model -> interval of the ratio; {} if the teacher scores 0 or less on more than
        2% of the resamples).
    """
    kinds, rows = kinds or dict.fromkeys(logits, task.kind), task.splits[split]
    said = {name: kinds[name].said(of, rows) for name, of in logits.items()}
    measures = {name: kinds[name].resampler(task.metrics, of) for name, of in said.items()}
    groups = len(said["teacher"].groups or said["teacher"].gold)
    drawn = statistics.bootstrap(measures, groups, task.kind.outputs**2)
    of_teacher = drawn["teacher"][task.selection]
    intervals, retained = {}, {}
    for name, values in drawn.items():
        intervals[name] = {metric: statistics.interval(v) for metric, v in values.items()}
        # To leave out the resamples on which the teacher scores nothing would make the interval too narrow: there the
        # ratio counts as infinite, and where that reaches into the interval there is none.
        ratios = np.full_like(of_teacher, np.inf)
        np.divide(values[task.selection], of_teacher, out=ratios, where=of_teacher > 0)
        if np.isfinite(np.sort(ratios)[: round(0.98 * len(ratios))]).all():
            retained[name] = statistics.interval(ratios)
    return intervals, retained


def confusion(task: Task, split: str, logits: np.ndarray) -> list[list[int]]:
    """Counts of rows: gold classes down, predicted classes across."""
    from sklearn.metrics import confusion_matrix

    gold = np.asarray(task.splits[split].gold)
    return confusion_matrix(gold, logits.argmax(-1), labels=range(logits.shape[-1])).tolist()


def class_scores(task: Task, split: str, logits: np.ndarray) -> list[ClassScores]:
    """Precision, recall and F1 of each class; 0 where one is not defined."""
    said = task.kind.said(logits, task.splits[split])
    return [ClassScores(*row) for row in task.kind.class_scores(said)]


def calibration(task: Task, split: str, logits: dict[str, np.ndarray]) -> Calibration:
    """Compare a model's confidence with its accuracy on a split, before and after temperature scaling.

    The temperature is fitted on dev. Where dev is the split that is reported, nothing is fitted.

    Args:
        task: a classification task.
        logits: split -> logits.
    """

    def bins(temperature: float = 1.0) -> list[CalibrationBin]:
        probabilities = task.kind.probabilities(logits[split].astype(np.float64) / temperature)
        return statistics.calibration_bins(probabilities, np.asarray(task.splits[split].gold))

    plain = bins()
    error = statistics.calibration_error(plain)
    if split == "dev":
        return Calibration(plain, error)
    temperature = statistics.fit_temperature(logits["dev"], np.asarray(task.splits["dev"].gold))
    scaled = bins(temperature)
    return Calibration(plain, error, temperature, scaled, statistics.calibration_error(scaled))


def differ_most(
    task: Task, split: str, student: np.ndarray, teacher: np.ndarray, of_teacher: Kind | None = None
) -> list[Disagreement]:
    """The rows (of a token-level task: words) on which student and teacher differ most, the largest distance first.

    The distance is the kind's: between class distributions, between scores, or between parts of a context. Where
    thresholds were chosen on dev, the task's kind has the student's, and `of_teacher` the teacher's.
    """
    rows, kind, of_teacher = task.splits[split], task.kind, of_teacher or task.kind
    if isinstance(kind, Questions):
        distances = kind.apart(kind.answers(student), of_teacher.answers(teacher))
        gold = [kind.written(answers) for answers in rows.labels]
        said = [kind.cells(student, rows), of_teacher.cells(teacher, rows)]
    else:
        distances = kind.distances(student, teacher)
        gold = rows.gold
        of_rows = kind.answers if isinstance(kind, Sequences) else kind.probabilities
        said = [of_rows(of).tolist() for of in (student, teacher)]
    order = np.argsort(-distances, kind="stable")[:EXAMPLES]
    return [Disagreement(int(i), _texts(rows, i), gold[i], said[0][i], said[1][i]) for i in order]


def answer_noise(kind: Kind, answers: np.ndarray, encoder: np.ndarray) -> AnswerNoise:
    """Compare answers with an encoder that was tuned on them.

    Args:
        answers: (rows, labels) logits of what was answered.
        encoder: (rows, labels) its logits.
    """
    entropy, differ = None, None
    if kind.labels:
        differ = float(
            (kind.answers(answers) != kind.answers(encoder)).reshape(len(answers), -1).any(1).mean()
        )
        entropy = float(answer_entropy(kind, answers).mean())
    return AnswerNoise(len(answers), entropy, differ, float(kind.distances(answers, encoder).mean()))


def answer_entropy(kind: Kind, logits: np.ndarray) -> np.ndarray:
    """(rows,) entropy of each distribution in bits; where a row has several labels, the sum over them."""
    p = kind.probabilities(logits)
    p = p[..., None] if kind.exclusive else np.stack([p, 1 - p], axis=-1)
    bits = -(p * np.log2(np.maximum(p, LEAST))).sum((1, 2))
    return np.where(bits < TINY, 0.0, bits)


def _texts(rows: Split, index: int) -> list[str]:
    """What a prediction is about: a row's one or two texts, or a word and its text."""
    if not rows.token_level:
        return rows.texts(index)
    ends = np.cumsum([len(labels) for labels in rows.labels])
    row = int(np.searchsorted(ends, index, side="right"))
    text = rows.text_a[row]
    return [text.split(" ")[index - ends[row]], text]
