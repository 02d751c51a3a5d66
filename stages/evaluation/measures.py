"""What `evaluate` says of logits, (rows, classes) in the order of the task: of one model, and of two side by side."""

from typing import Any

import numpy as np

from stages.evaluation import statistics as comparison
from stages.tasks.metrics import compute
from stages.tasks.task import Split, Task

EXAMPLES = 10
"""Rows kept of those where student and teacher differ most."""


def decide(logits: np.ndarray, task: Task) -> np.ndarray:
    """Class indices, or scores for a regression."""
    return logits[:, 0] if task.labels is None else logits.argmax(-1)


def add_intervals(task: Task, split: str, logits: dict[str, np.ndarray], results: dict[str, dict]) -> None:
    """Give each model's entry 95% intervals of its metrics, and the share of the teacher's that it kept.

    The rows are resampled for all models at once: the interval of a share is that of the ratio, row for row.
    """
    answers = {name: decide(values, task) for name, values in logits.items()}
    gold, classes = np.asarray(task.splits[split].gold), len(task.labels) if task.labels else None
    words = [len(labels) for labels in task.splits[split].labels] if task.token_level else None
    drawn = comparison.bootstrap(task.metrics, answers, gold, classes, words=words)
    of_teacher, whole = drawn["teacher"][task.selection], results["teacher"]["metric"]
    for name, values in drawn.items():
        entry = results[name]
        entry["intervals"] = {metric: comparison.interval(v) for metric, v in values.items()}
        if whole > 0:  # a share of nothing is none
            shares = np.full_like(of_teacher, np.nan)
            np.divide(values[task.selection], of_teacher, out=shares, where=of_teacher > 0)
            entry["retained"], entry["retained_interval"] = (
                entry["metric"] / whole,
                comparison.interval(shares),
            )


def classes_of(task: Task, split: str, logits: np.ndarray) -> dict[str, Any]:
    """The confusion of a model's answers, and what they reach on each class, in the order of the task's labels."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    pair, classes = (np.asarray(task.splits[split].gold), logits.argmax(-1)), range(len(task.labels))
    scores = precision_recall_fscore_support(*pair, labels=classes, zero_division=0)
    names = ("precision", "recall", "f1", "rows")
    return {
        "confusion": confusion_matrix(*pair, labels=classes).tolist(),
        "classes": [
            dict(zip(names, row, strict=True)) for row in zip(*(of.tolist() for of in scores), strict=True)
        ],
    }


def calibration(task: Task, split: str, logits: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far a model's confidence is from its accuracy on a split; after temperature scaling, too.

    The temperature is fitted on dev. Where dev itself is what is reported, there is none.
    """

    def bins(temperature: float = 1.0) -> list[dict[str, float]]:
        probabilities = comparison.softmax(logits[split], temperature)
        return comparison.calibration_bins(probabilities, np.asarray(task.splits[split].gold))

    found = {"bins": bins()}
    found["error"] = comparison.calibration_error(found["bins"])
    if split != "dev":
        temperature = comparison.fit_temperature(logits["dev"], np.asarray(task.splits["dev"].gold))
        scaled = bins(temperature)
        found |= {"temperature": temperature, "bins_scaled": scaled}
        found["error_scaled"] = comparison.calibration_error(scaled)
    return found


def loyalty(task: Task, student: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    """How near a student's answers are to its teacher's, right or wrong."""
    if task.labels is None:
        return {"pearson_to_teacher": compute(("pearson",), student[:, 0], teacher[:, 0])["pearson"]}
    student, teacher = comparison.softmax(student), comparison.softmax(teacher)
    return {
        "label_loyalty": comparison.label_loyalty(student, teacher),
        "probability_loyalty": comparison.probability_loyalty(student, teacher),
    }


def differ_most(task: Task, split: str, student: np.ndarray, teacher: np.ndarray) -> list[dict[str, Any]]:
    """The rows (or words, shown with their row) on which student and teacher are furthest apart, the furthest first.

    Classes: what each gives every class; a regression: its scores.
    """
    rows, gold = task.splits[split], task.splits[split].gold
    if task.labels:
        student, teacher = comparison.softmax(student), comparison.softmax(teacher)
        apart = comparison.distances(student, teacher)
    else:
        apart = np.abs(student - teacher)[:, 0]
    return [
        {
            "row": int(i),
            "texts": _texts(rows, i),
            "label": gold[i],
            "student": student[i].tolist(),
            "teacher": teacher[i].tolist(),
        }
        for i in np.argsort(-apart, kind="stable")[:EXAMPLES]
    ]


def _texts(rows: Split, answer: int) -> list[str]:
    """What an answer is about: a row's one or two texts, or a word and the text it stands in."""
    if not rows.token_level:
        return [rows.text_a[answer], *([rows.text_b[answer]] if rows.text_b else [])]
    ends = np.cumsum([len(labels) for labels in rows.labels])
    row = int(np.searchsorted(ends, answer, side="right"))
    text = rows.text_a[row]
    return [text.split(" ")[answer - ends[row]], text]
