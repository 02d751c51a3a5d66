"""GRAIN (Yang et al., arXiv 2212.07634): a copy of the teacher loses units while it learns from the teacher.

Gradients of the losses on logits say which units matter. Gradients of other losses do not count: they come in a
second backward pass. The units go by a cubic schedule; what is left is a smaller model.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.errors import UserError
from stages.distillation.distillation import Distillation
from stages.distillation.losses import Loss
from stages.distillation.models import load_classifier
from stages.distillation.outputs import CaptureSpec
from stages.distillation.settings import check_type, choose, is_number, number, whole
from stages.distillation.students.pruned_bert import PrunedBertConfig, prunable, shrunk
from stages.methods.base import Method
from stages.methods.pruning import Pruner, Pruning, Units
from stages.tasks.task import Task
from stages.training.options import StageToCheck, Training
from stages.training.stage import Stage
from stages.training.step import Pass, Step, StepKind

SCORES, UNITS = ("logits", "all", "random"), ("all", "feed_forward")


class Grain(Method):
    """The student loses units of heads and feed-forward layers, the least important first.

    A student that begins from the teacher's layers has the teacher's head, too.

    Args:
        density: fraction of the weights of all units that is left at the end; embeddings and head do not count.
        begin, end: fractions of the steps between which the units go (paper: 0.2 and 0.4).
        smoothing: beta, of the running mean of scores (paper: 0.998).
        structure: alpha; a value's score is multiplied by tanh(density of its head / alpha), so that heads that are
            nearly empty go first (paper: 0.3); 0: it is not.
        embedding_rank: r of the word embeddings, which begin as the best factors (V, r) (r, W) of the table (paper: a
            quarter of the width); 0: the table is not factorised.
        scores: `logits`: from the gradients of the losses on logits (paper); for comparison `all`: of all losses, or
            `random`.
        units: `all`; or `feed_forward`: these alone, as many in each layer, so that stock BERT holds the student.
    """

    def __init__(
        self,
        density: float = 0.5,
        begin: float = 0.2,
        end: float = 0.4,
        smoothing: float = 0.998,
        structure: float = 0.3,
        embedding_rank: int = 0,
        scores: str = "logits",
        units: str = "all",
    ):
        super().__init__()
        number(density, "between 0 and 1", "density")
        number(smoothing, "between 0 and 1", "smoothing")
        if not is_number(begin) or not is_number(end) or not 0 <= begin < end <= 0.9:
            raise UserError(
                f"{begin!r} and end={end!r} must be fractions of the steps: 0 <= begin < end <= 0.9",
                argument="begin",
            )
        number(structure, "from 0", "structure")
        choose(scores, SCORES, "scores")
        choose(units, UNITS, "units")
        self.embedding_rank = whole(embedding_rank, 0, None, "embedding_rank")
        if units == "feed_forward" and embedding_rank:
            raise UserError(
                f"{embedding_rank} makes factors, which stock BERT does not hold; set it to 0, or units to all",
                argument="embedding_rank",
            )
        self.pruning = Pruning(density, begin, end, smoothing, structure, scores, units)
        self.pruner: Pruner

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse students of other kinds, losses that leave the logits alone, and densities out of reach."""
        super().check(task, student, spec)
        check_type(student, ("bert",), "is not of the kind that grain prunes")
        if not spec.logits:
            raise UserError(
                "grain scores units by losses on the teacher's logits, and there are none; add soft_labels",
                argument="losses",
            )
        config: Any = student
        if self.embedding_rank >= config.hidden_size:
            raise UserError(
                f"{self.embedding_rank} must be below the width, {config.hidden_size}",
                argument="method.grain.embedding_rank",
            )
        units = Units.of(config)
        density = self.pruning.density
        if self.pruning.feed_forward_alone and units.feed_forward_left(density) < 1:
            least = 1 - units.layers * (units.feed_forward - 1) * units.sizes["feed_forward"] / units.weights
            raise UserError(
                f"{density} is out of reach of feed-forward units alone; give {least + 0.001:.3f} or more, or set "
                "units to all",
                argument="method.grain.density",
            )

    def check_plan(self, plan: StageToCheck) -> None:
        """Refuse a training that may end before all units that go are gone."""
        super().check_plan(plan)
        if plan.patience:
            raise UserError(
                f"{plan.patience} may end the training before the units are gone; set it to 0",
                argument="training.patience",
            )

    def begin(self, stage: Stage, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The student with all of its units, and the tokenizer of its rows."""
        student, tokenizer = super().begin(stage, task)
        if isinstance(student.config, PrunedBertConfig):
            raise UserError(
                "begins as a student that is pruned already; begin from one that is not",
                argument="student.init",
            )
        if stage.options.get("student", {}).get("init") == "teacher-layers":
            teacher = load_classifier(stage.model("teacher"), task.kind)
            inside = f"{student.base_model_prefix}."
            head = {name: w for name, w in teacher.state_dict().items() if not name.startswith(inside)}
            student.load_state_dict(head, strict=False)
        if not self.pruning.feed_forward_alone:
            student = prunable(student, self.embedding_rank)
        return student, tokenizer

    def step(self, model: Distillation, training: Training) -> Step:
        """Scores from the gradients of the losses on logits, masks after the optimiser's step."""
        model.pruner = self.pruner = pruner = Pruner(model, self.pruning)
        for module in model.losses.modules():  # projections begin as the identity, as published
            if isinstance(module, nn.Linear) and module.in_features == module.out_features:
                nn.init.eye_(module.weight)
                nn.init.zeros_(module.bias)
        scored, others = Pass("logits", hook=pruner.score), Pass("layers")
        if self.pruning.scores != "logits":
            return Step((Pass(hook=pruner.score),), after_step=pruner.prune)
        losses: list[Any] = list(model.losses)
        for loss in losses:
            loss.tag = scored.tag if loss.student_capture.logits else others.tag
        both = any(loss.tag == others.tag for loss in losses)
        return Step((scored, others) if both else (scored,), after_step=pruner.prune)

    def step_kind(self, losses: Iterable[Loss]) -> StepKind:
        """A hook reads the gradients, masks are applied after the step."""
        return StepKind(passes=True, after_step=True)

    def evaluation(self, model: Distillation, evaluate: Callable[[], float]) -> Callable[[], float]:
        """The weights that are kept are of a step after all units that go are gone."""
        return lambda: evaluate() if self.pruner.is_done else math.nan

    def finish(self, model: Distillation) -> nn.Module:
        """The student without its pruned units."""
        pruner, student = self.pruner, model.student
        if not pruner.is_done:
            raise UserError(f"ends before the density {self.pruning.density} is reached: give more rows or epochs",
                            argument="training.epochs")  # fmt: skip
        kept = _, values_NHD, _ = pruner.units.parts(pruner.kept_U)
        left = {"density": (pruner.kept_U * pruner.sizes_U).sum() / pruner.units.weights}
        left |= {"heads left": values_NHD.any(-1).float().mean()}
        names = ("queries left", "values left", "feed-forward left")
        left |= {name: part.float().mean() for name, part in zip(names, kept, strict=True)}
        self.found = {name: value.item() for name, value in left.items()}
        assert isinstance(student, PreTrainedModel)
        return shrunk(student, *kept)
