"""Teaching assistants: students of sizes between teach a smaller one together (Ganta et al., arXiv 2206.12005).

Their probabilities are averaged with weights that differential evolution fits on rows that nothing else reads. One
assistant alone is that of Mirzadeh et al. (arXiv 1902.03393).

Axes in names: K assistants, N targets of the rows, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import differential_evolution
from torch import Tensor
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.models import load_tokenizer
from stages.distillation.outputs import CaptureSpec
from stages.distillation.settings import choose, is_number, number
from stages.methods.base import Method, Targets
from stages.tasks.task import Task
from stages.teaching.recorded_logits import logits_as_outputs, teacher_logits, training_logits
from stages.training.cached_rows import task_rows
from stages.training.stage import Stage

WEIGHTS = ("equal", "evolved", "random")


class Assistants(Method):
    """The teacher is the weighted mean of the probabilities of earlier students, at temperature T.

    Args:
        reads: the assistants; "teacher" among them is the tuned teacher.
        weights: `equal`; `evolved` (fitted by differential evolution on the rows that `held_out` sets aside); `random`
            (drawn from the seed); or a list with one number for each assistant.
        temperature: T at which probabilities are averaged. Give that of the student's losses: then the student learns
            the mixture that was fitted.
    """

    def __init__(self, reads: Sequence[str], weights: str | list[float] = "equal", temperature: float = 1.0):
        super().__init__()
        if not reads:
            raise UserError("[] are no assistants; name earlier students", argument="reads")
        if not isinstance(weights, list):
            choose(weights, WEIGHTS, "weights")
        elif (
            len(weights) != len(reads)
            or not all(map(is_number, weights))
            or min(weights) < 0
            or not sum(weights)
        ):
            raise UserError(
                f"{weights} must be {len(reads)} numbers from 0, one for each of {', '.join(reads)}, or "
                f"{', '.join(WEIGHTS)}",
                argument="weights",
            )
        self.reads, self.weights = list(reads), weights
        self.temperature = number(temperature, "above 0", "temperature")

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse a task without classes, losses on layers, and weights that have no rows to be fitted on."""
        super().check(task, student, spec)
        if not task.kind.exclusive or task.kind.reads_images:
            raise UserError(
                f"assistants average class probabilities of texts of one class each, not of {task.kind.name}; take plain",
                argument="method",
            )
        if spec != CaptureSpec(logits=True):
            raise UserError(
                "assistants give no layers; take at least one loss on the teacher's logits, and none on its layers",
                argument="losses",
            )
        if task.kind.pooling:
            raise UserError(
                f"{task.kind.pooling!r}: assistants may have other windows than the student; leave this out",
                argument="windows",
            )
        if self.weights == "evolved" and "held_out" not in task.splits:
            raise UserError(
                "evolved are fitted on rows that nothing else reads, and there are none; set held_out=FRACTION, or take "
                "equal",
                argument="method.assistants.weights",
            )

    def targets(self, stage: Stage, task: Task, spec: CaptureSpec, rows: dict[str, Any]) -> Targets:
        """The mixture, as logits z with softmax(z / T) the mean of the assistants' probabilities."""
        weights_K = self._weights(stage, task)
        self.found = {f"weight of {name}": w for name, w in zip(self.reads, weights_K.tolist(), strict=True)}
        if "held_out" in task.splits:
            gold_N = np.array(task.splits["held_out"].gold)
            mixed_NC = mixture(self._log_probabilities(stage, task, "held_out"), weights_K)
            right_N = mixed_NC.argmax(-1).numpy() == gold_N
            self.found["accuracy of the mixture on held-out rows"] = float(right_N.mean())
        stage.log("; ".join(f"{name} {value:.4f}" for name, value in self.found.items()))
        table_NC = self.temperature * mixture(self._log_probabilities(stage, task, "train"), weights_K)
        return {"train": logits_as_outputs(table_NC.numpy(), rows["train"], stage.device)}

    def _weights(self, stage: Stage, task: Task) -> Tensor:
        """(K,), with the sum 1."""
        if self.weights == "evolved":
            gold_N = np.array(task.splits["held_out"].gold)
            return evolved(self._log_probabilities(stage, task, "held_out"), gold_N, stage.seed)
        drawn_K = np.random.default_rng(stage.seed).random(len(self.reads))
        known: dict[Any, Any] = {"equal": np.ones(len(self.reads)), "random": drawn_K}
        weights_K = torch.as_tensor(known[self.weights] if isinstance(self.weights, str) else self.weights)
        return (weights_K / weights_K.sum()).float()

    def _log_probabilities(self, stage: Stage, task: Task, split: str) -> Tensor:
        """(K, N, C) of the assistants at temperature T, each asked once and then read from the cache of all runs."""
        tables = []
        for given in (f"reads {name}" for name in self.reads):
            if split == "train":
                logits_NC, _ = training_logits(stage, task, given)
            else:
                tokenizer = load_tokenizer(stage.model(given))
                rows = task_rows(stage, task, split, tokenizer, stage.training.max_length)
                logits_NC = teacher_logits(stage, task, rows, given)
            tables.append(torch.from_numpy(logits_NC))
        return torch.log_softmax(torch.stack(tables) / self.temperature, -1)


def mixture(log_KNC: Tensor, weights_K: Tensor) -> Tensor:
    """The logarithm (N, C) of the weighted mean of probabilities.

    Example:
        >>> certain = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).log()
        >>> mixture(certain, torch.tensor([0.25, 0.75])).exp()
        tensor([[0.2500, 0.7500]])
    """
    return torch.logsumexp(log_KNC + weights_K.log()[:, None, None], 0)


def evolved(log_KNC: Tensor, gold_N: np.ndarray, seed: int) -> Tensor:
    """The weights (K,), of sum 1, of the most accurate mixture, by differential evolution in [0, 1]^K.

    Among equal accuracies the lowest negative log-likelihood wins.

    Args:
        log_KNC: the logarithms of the members' probabilities.
        gold_N: class ids.
    """
    gold_N1 = torch.from_numpy(gold_N)[:, None]

    def cost(weights_K: np.ndarray) -> float:
        mixed_NC = mixture(log_KNC, _to_one(weights_K))
        wrong = int((mixed_NC.argmax(-1, keepdim=True) != gold_N1).sum())
        surprise = -mixed_NC.gather(1, gold_N1).mean().item()
        return wrong + surprise / (1 + surprise)

    found = differential_evolution(cost, [(0.0, 1.0)] * len(log_KNC), seed=seed, polish=False)
    return _to_one(found.x)


def _to_one(weights_K: np.ndarray) -> Tensor:
    total = max(float(weights_K.sum()), 1e-12)
    return torch.from_numpy(weights_K / total).float()
