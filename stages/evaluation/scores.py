"""What logits reach on the task's metrics, beside the best constant answer."""

import numpy as np

from stages.evaluation.measures import decide
from stages.tasks.metrics import compute, constant_baseline
from stages.tasks.task import Task
from stages.training.stage import Stage


def score(task: Task, split: str, logits: np.ndarray) -> dict[str, float]:
    """All metrics of the task, of logits in its class order."""
    classes = len(task.labels) if task.labels else None
    return compute(task.metrics, decide(logits, task), task.splits[split].gold, classes)


def constant_score(task: Task, split: str = "dev") -> float:
    """What the best constant answer reaches on the selection metric."""
    classes = len(task.labels) if task.labels else None
    return constant_baseline((task.selection,), task.splits[split].gold, classes)[task.selection]


def warn_if_constant(stage: Stage, task: Task, reached: float) -> None:
    """Say so when what a stage reached on dev is no better than the best constant answer."""
    constant = constant_score(task)
    if reached <= constant:
        stage.log(
            f"warning: {task.selection} {reached:.4f} on dev is no better than a constant answer's {constant:.4f}"
        )
