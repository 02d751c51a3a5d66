"""A discriminator of features, against which a student with branches learns (after Liu et al., arXiv 2111.14356)."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.settings import choose
from stages.distillation.students.branches import last_hidden, width_of
from stages.tasks.batches import Batch

FEATURES = "features"
"""The field of a student's output with the features of its learners and of their fusion, (B, K + 1, W)."""


class Adversary(Loss):
    """A discriminator D tells features apart; the student learns to mislead it.

    `teacher` (the default): D tells the teacher's features t from the fused ones f of the student, which a linear layer P
    of the student brings to the teacher's width. D learns -log D(t) - log(1 - D(P f)), the student -log D(P f).
    `branches`: D tells the features of the first learner from those of the others, and each wants to be taken for the
    other: D learns -log D(m) - mean log(1 - D(b)), the student -log(1 - D(m)) - mean log D(b).

    D's term has the tag `discriminator`: a backward pass of its own, which trains D alone (the method
    `auxiliary_branches` declares the pass).

    Args:
        student, teacher: the models' configs.
        between: `teacher` or `branches`.
        weight: gamma, factor of the student's term; a number or a schedule.

    Example:
        >>> loss = Adversary(student.config, teacher.config)
        >>> with capture(teacher, loss, side="teacher") as theirs:
        ...     _ = teacher(**batch)
        >>> mine = ModelOutputs(named={"features": torch.randn(3, 2, student.config.hidden_size)})
        >>> loss(mine, theirs).backward()   # both terms at once; the method gives each a backward pass of its own
    """

    def __init__(
        self,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        between: str = "teacher",
        weight: Any = 1.0,
    ):
        super().__init__(weight)
        self.between = choose(between, ("teacher", "branches"), "between")
        self.student_capture = CaptureSpec(named=frozenset([FEATURES]))
        width = width_of(student)
        if between == "teacher":
            self.layer = last_hidden(teacher)
            self.teacher_capture = CaptureSpec(hidden=frozenset([self.layer]))
            self.projection = nn.Linear(width, width_of(teacher))
            width = width_of(teacher)
        self.discriminator = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        features_BKW = student.named[FEATURES].float()
        if self.between == "teacher":
            real_BKW = pooled(teacher.hidden_BLW[self.layer]).float()[:, None]
            made_BKW = self.projection(features_BKW[:, -1:])
        else:
            real_BKW, made_BKW = features_BKW[:, :1], features_BKW[:, 1:-1]

        def mean(scores_BK1: Tensor) -> Tensor:
            """(B,) of -log D, for scores of real features, or of the others' with the other sign."""
            return functional.softplus(-scores_BK1).mean((1, 2))

        judged = mean(self.discriminator(real_BKW.detach())) + mean(-self.discriminator(made_BKW.detach()))
        fooled = mean(self.discriminator(made_BKW))
        if self.between == "branches":
            fooled = fooled + mean(-self.discriminator(real_BKW))
        return {
            "discriminator": LossTerm(batch.sum(judged), "rows", tag="discriminator"),
            "adversary": LossTerm(batch.sum(fooled), "rows", self.weight),
        }


def pooled(hidden: Tensor) -> Tensor:
    """(B, W) of hidden states: the mean over the pixels (B, W, height, width), or the first token (B, L, W)."""
    return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, 0]
