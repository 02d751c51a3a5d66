"""What logits reach on the task's metrics, beside the best constant answer."""

import numpy as np

from checkpoints.errors import UserError
from stages.tasks.task import Task
from stages.training.stage import Stage


def score(task: Task, split: str, logits: np.ndarray) -> dict[str, float]:
    """All metrics of the task, of a model's logits in its class order; `task.kind` has what was chosen for the model."""
    return task.kind.measure(task.metrics, task.kind.said(logits, task.splits[split]))


def constant_score(task: Task, split: str = "dev") -> float:
    """What the best constant answer reaches on the selection metric."""
    return task.kind.constant(task.selection, np.asarray(task.splits[split].gold), task.groups(split))


def warn_if_constant(stage: Stage, task: Task, reached: float | None) -> None:
    """Say so when what a stage reached on dev is no better than the best constant answer."""
    constant = constant_score(task)
    if reached is not None and reached <= constant:
        stage.log(
            f"warning: {task.selection} {reached:.4f} on dev is no better than a constant answer's {constant:.4f}"
        )


def check_scale(predictions: np.ndarray, gold: np.ndarray) -> None:
    """Check that a regression teacher's scores are on the scale of the labels.

    They are on another one if a line from scores to labels leaves less than half of the error.
    """
    slope, offset = np.polyfit(predictions, gold, 1) if np.ptp(predictions) > 0 else (0.0, gold.mean())
    fitted = np.sqrt(np.mean((slope * predictions + offset - gold) ** 2))
    raw = np.sqrt(np.mean((predictions - gold) ** 2))
    if raw > 2 * fitted + 0.1 * gold.std():
        raise UserError(
            f"the given teacher's scores are on another scale than the labels: {predictions.min():.3g} to "
            f"{predictions.max():.3g} (mean {predictions.mean():.3g}) on {len(gold)} rows of dev, the labels {gold.min():.3g} "
            f"to {gold.max():.3g} (mean {gold.mean():.3g}); labels are about {slope:.3g} x score {offset:+.3g}: rescale the "
            "labels, or give a teacher tuned on them, or set this to true",
            argument="accept_teacher",
        )
