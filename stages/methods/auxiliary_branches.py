"""Adversarial collaborative distillation (Liu et al., arXiv 2111.14356): auxiliary branches make a stronger student.

The paper's code is not published and we have read its abstract alone, so this is a reconstruction
(docs/recipes/ackd.md says what is inferred).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.distillation import Distillation
from stages.distillation.losses import Adversary, Loss
from stages.distillation.losses.each_head import HEADS
from stages.distillation.outputs import CaptureSpec, ModelOutputs, read
from stages.distillation.settings import check_type, choose, number, whole
from stages.distillation.students.branches import TRUNKS, WithBranches
from stages.evaluation.scores import score
from stages.methods.base import Method, Targets
from stages.tasks.batches import Batch, batches_by_length, indices_by_length
from stages.tasks.kinds import Classes
from stages.tasks.task import Task
from stages.tasks.task_rows import TaskRows
from stages.training.optimizers import default_optimizer
from stages.training.options import Training
from stages.training.rows_of_task import rows_of
from stages.training.stage import Stage
from stages.training.step import Pass, Step, StepKind

FUSIONS = ("attention", "mean")
WEIGHTS = "attention"
"""The field of a student's output with the weights of its learners in the fusion, (B, K)."""


class AuxiliaryBranches(Method):
    """The student learns with further last layers, the branches, and with their fusion; both are dropped at the end.

    Under the loss `each_head` all learners and the fusion learn from the same teacher, under `peers` from each other.
    The discriminator of the loss `adversary` has a backward pass and an optimiser of its own (Adam, betas 0.5 and 0.99).

    Args:
        branches: their number.
        fusion: how the learners' features are joined: `attention`, which learns to weigh them, or their `mean`.
        discriminator_rate: the discriminator's learning rate, which follows the stage's schedule.
    """

    def __init__(self, branches: int = 2, fusion: str = "attention", discriminator_rate: float = 1e-3):
        super().__init__()
        self.branches, self.fusion = whole(branches, 0, 100, "branches"), choose(fusion, FUSIONS, "fusion")
        self.rate = number(discriminator_rate, "above 0", "discriminator_rate")
        self.whole: WithBranches
        self.preprocessor: Any = None

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse tasks other than classes of rows, and students whose last stage is not known."""
        super().check(task, student, spec)
        if not isinstance(task.kind, Classes) or task.token_level or task.kind.pooling:
            raise UserError(
                "auxiliary_branches needs a task with one class for each row; take plain",
                argument="method",
            )
        check_type(student, TRUNKS, "gets no branches")

    def begin(self, stage: Stage, task: Task) -> tuple[Any, Any]:
        """The student with its branches, and what makes its rows."""
        student, self.preprocessor = super().begin(stage, task)
        self.whole = WithBranches(student, self.branches, attention=self.fusion == "attention")
        return self.whole, self.preprocessor

    def losses(self, lines: Sequence[str | dict[str, Any]]) -> Sequence[str | dict[str, Any]]:
        """The lines as they are; refuses a discriminator between branches where there are none."""
        settings = [line["adversary"] for line in lines if isinstance(line, dict) and "adversary" in line]
        if not self.branches and any(
            isinstance(found, dict) and found.get("between") == "branches" for found in settings
        ):
            raise UserError(
                "there are no branches beside the main one; take teacher, or give some",
                argument="losses.adversary.between",
            )
        return lines

    def targets(self, stage: Stage, task: Task, spec: CaptureSpec, rows: dict[str, Any]) -> Targets:
        """What the teacher shows, its logits once for each head."""
        if HEADS not in spec.named:
            return super().targets(stage, task, spec, rows)
        plain = replace(spec, logits=True, named=spec.named - {HEADS})
        shown = super().targets(stage, task, plain, rows)

        def for_heads(teacher: Callable[[Batch], ModelOutputs], batch: Batch) -> ModelOutputs:
            outputs = teacher(batch)
            each = outputs.logits[:, None].expand(-1, self.branches + 2, -1)
            return replace(outputs, named=outputs.named | {HEADS: each})

        return {name: teacher and partial(for_heads, teacher) for name, teacher in shown.items()}

    def step(self, model: Distillation, training: Training) -> Step | None:
        """The discriminator learns in a pass of its own, at the same weights of the student."""
        judges = [part.discriminator for part in model.losses if isinstance(part, Adversary)]
        if not judges:
            return None
        theirs = [p for judge in judges for p in judge.parameters()]

        def optimizers(parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
            known = set(map(id, theirs))
            mine = {name: p for name, p in parameters.items() if id(p) not in known}
            return [
                default_optimizer(mine, training),
                torch.optim.Adam(theirs, lr=self.rate, betas=(0.5, 0.99)),
            ]

        return Step((Pass("discriminator", trains=theirs), Pass()), optimizers=optimizers)

    def step_kind(self, losses: Iterable[Loss]) -> StepKind:
        """A discriminator has a pass and an optimiser of its own."""
        has_judge = any(isinstance(loss, Adversary) for loss in losses)
        return StepKind(passes=has_judge, optimizers=has_judge)

    def finish(self, model: Distillation) -> nn.Module:
        """The student without its branches."""
        return self.whole.main

    def examine(self, stage: Stage, task: Task, model: Distillation, dev: TaskRows) -> None:
        """Fill `found`: what the student reaches on the reported split without and with its branches, and its size."""
        split = "test" if "test" in task.splits else "dev"
        rows = rows_of(stage, task, split, self.preprocessor, stage.training.max_length)
        spec = CaptureSpec(named=frozenset({HEADS, WEIGHTS}))
        self.whole.eval()
        with torch.no_grad():
            shown = [
                read(self.whole, batch.to(stage.device), spec).named for batch in batches_by_length(rows)
            ]
        places = np.argsort(np.concatenate(indices_by_length(rows)))
        logits_NHC = torch.cat([named[HEADS] for named in shown]).float().cpu()[places]
        mean_NC = logits_NHC[:, :-1].softmax(-1).mean(1).clamp(min=1e-30).log()
        ways = {"main branch": logits_NHC[:, 0], "fusion": logits_NHC[:, -1], "mean of all branches": mean_NC}
        for name, logits_NC in ways.items():
            reached = score(task, split, logits_NC.numpy())[task.selection]
            self.found[f"{task.selection} of the {name} on {split}"] = reached
        weights_NK = torch.cat([named[WEIGHTS] for named in shown])
        self.found["weight of the main branch in the fusion"] = weights_NK[:, 0].mean().item()
        self.found["parameters with branches"] = sum(p.numel() for p in self.whole.parameters())
