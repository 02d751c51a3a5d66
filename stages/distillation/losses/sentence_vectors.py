"""Losses on sentence vectors: those of DisCo (Gao et al., arXiv 2112.05638), and what it compares them with.

Axes in names: B rows of this rank that count, N rows of the global batch, K keys, Q places of the queue, W width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.gather import gather_rows
from stages.distillation.losses.base import Loss, LossTerm, mapped_layers
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.sentence_vectors import pool, pooling_of
from stages.distillation.settings import is_number, number
from stages.tasks.batches import Batch


class _OfVectors(Loss):
    """What losses on the vectors of texts share: a linear layer takes the student's to the teacher's width, and is not kept."""

    def __init__(self, student: PretrainedConfig, teacher: PretrainedConfig, weight: Any = 1.0):
        super().__init__(weight)
        self.last = max(mapped_layers(student, teacher, "last").items())
        self.pooling = pooling_of(student), pooling_of(teacher)
        self.student_capture, self.teacher_capture = (CaptureSpec(hidden=frozenset({i})) for i in self.last)
        self.projection = nn.Linear(student.hidden_size, teacher.hidden_size)

    def vectors(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's vectors in the teacher's width, and the teacher's: (rows, W) each."""
        mine, theirs = (
            pool(outputs.hidden_BLW[layer], batch.attention_mask, how)
            for outputs, layer, how in zip((student, teacher), self.last, self.pooling, strict=True)
        )
        return self.projection(mine), theirs


class MatchedVectors(_OfVectors):
    """Mean squared difference of the sentence vectors, over texts and width, after a learned projection of the student's.

    The plain distillation that DisCo is compared with.

    Args:
        student, teacher: configs.
        weight: factor of the loss in the sum of losses; a number or a schedule.

    Example:
        >>> loss = MatchedVectors(student.config, teacher.config)
        >>> with capture(student, loss) as mine, capture(teacher, loss, side="teacher") as theirs:
        ...     _ = student(**batch), teacher(**batch)
        >>> loss(mine, theirs, batch["attention_mask"]).backward()
    """

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        mine, theirs = self.vectors(student, teacher, batch)
        losses = (mine.float() - theirs).square().mean(-1)
        return {"matched_vectors": LossTerm(batch.sum(losses), "rows", self.weight)}


class ContrastiveVectors(_OfVectors):
    """Contrastive knowledge distillation (CKD): find the teacher's vector of a text among those of other texts.

    Cross-entropy of softmax(e^s cos(P v_S, k)) over keys k: the teacher's vectors of the global batch, and of the texts
    before it, from a queue that holds the newest. The right key is the teacher's vector of the text itself. P and s are
    learned. The authors' queue is one for each process; this one is of the global batch. A text's own vector in the queue,
    from the epoch before, is no key for it.

    Args:
        student, teacher: configs.
        queue: vectors that the queue holds (published: 65,536); 0: the texts of the batch alone.
        scale: e^s at the beginning (published: e).
        weight: factor of the loss in the sum of losses; a number or a schedule.

    Example:
        >>> loss = ContrastiveVectors(student.config, teacher.config, queue=1024)
        >>> with capture(student, loss) as mine, capture(teacher, loss, side="teacher") as theirs:
        ...     _ = student(**batch), teacher(**batch)
        >>> loss(mine, theirs, batch["attention_mask"]).backward()
    """

    whole_batch = True

    def __init__(
        self,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        queue: int = 65536,
        scale: float = math.e,
        weight: Any = 1.0,
    ):
        super().__init__(student, teacher, weight)
        if not isinstance(queue, int) or queue < 0:
            raise UserError(f"{queue!r} must be a number of vectors, 0 or more", argument="queue")
        self.log_scale = log_scale(scale)
        self.queue_QW: Tensor
        self.queued_Q: Tensor
        self.register_buffer("queue_QW", torch.zeros(queue, teacher.hidden_size))
        self.register_buffer("queued_Q", torch.full((queue,), -1))  # the rows that they are of; -1: none yet

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        mine, theirs = self.vectors(student, teacher, batch)
        keys_NW, own_B = gather_rows(batch.at_counted(functional.normalize(theirs, dim=-1)))
        rows_B = batch.at_counted(batch.rows)
        rows_N, _ = gather_rows(rows_B)
        queries_BW = functional.normalize(batch.at_counted(mine).float(), dim=-1)
        keys_KW = torch.cat([keys_NW, self.queue_QW])  # a copy: the queue moves on before the backward pass
        left_out_BQ = (self.queued_Q < 0) | (self.queued_Q == rows_B[:, None])
        left_out_BK = functional.pad(left_out_BQ, (len(keys_NW), 0))
        with torch.autocast(keys_KW.device.type, enabled=False):
            scores_BK = (self.log_scale.exp() * queries_BW @ keys_KW.T).masked_fill(left_out_BK, -torch.inf)
        losses_B = functional.cross_entropy(scores_BK.float(), own_B, reduction="none")
        if self.training:
            self.queue_QW.copy_(keys_KW[: len(self.queue_QW)])
            self.queued_Q.copy_(torch.cat([rows_N, self.queued_Q])[: len(self.queued_Q)])
        total = (losses_B * batch.at_counted(batch.weight)).sum()
        return {"contrastive_vectors": LossTerm(total, "rows", self.weight)}


class ContrastivePairs(Loss):
    """In-batch negatives: find the second text of a pair among the second texts of the global batch, by cosines.

    Cross-entropy of softmax(e^s cos(a, b)) over all b, of the pairs whose label is at least `positive`. The second
    texts of all other pairs are negatives, those of pairs with a low label hard ones. s is learned. It reads no
    teacher. A text that is in the batch twice is its own negative.

    Args:
        positive: the lowest label of pairs that belong together.
        scale: e^s at the beginning (published: 20).
        weight: factor of the loss in the sum of losses; a number or a schedule.

    Example:
        >>> vectors = torch.eye(3)
        >>> outputs = ModelOutputs(named={"first_BW": vectors, "second_BW": vectors})
        >>> loss = ContrastivePairs(scale=1.0)
        >>> round(loss(outputs, labels=torch.tensor([1.0, 1.0, 0.0])).item(), 4)   # 2/3 log(1 + 2/e)
        0.3676
    """

    student_capture = CaptureSpec(logits=True, named=frozenset({"first_BW", "second_BW"}))
    whole_batch = one_label = True

    def __init__(self, positive: float = 0.8, scale: float = 20.0, weight: Any = 1.0):
        super().__init__(weight)
        if not is_number(positive):
            raise UserError(f"{positive!r} must be a number, the least label of a pair", argument="positive")
        self.positive, self.log_scale = positive, log_scale(scale)

    def terms(self, student: ModelOutputs, teacher: Any, batch: Batch) -> dict[str, LossTerm]:
        if batch.labels is None:
            raise UserError(
                "None; the loss knows by the scores which pairs belong together: give each pair a score",
                argument="labels",
            )
        first, second = (
            functional.normalize(student.named[n].float(), dim=-1) for n in ("first_BW", "second_BW")
        )
        keys_NW, own_B = gather_rows(batch.at_counted(second))
        with torch.autocast(keys_NW.device.type, enabled=False):
            scores_BN = self.log_scale.exp() * (batch.at_counted(first) @ keys_NW.T)
        losses_B = functional.cross_entropy(scores_BN.float(), own_B, reduction="none")
        weights = batch.weight * (batch.labels >= self.positive)
        return {
            "contrastive_pairs": LossTerm((losses_B * batch.at_counted(weights)).sum(), "rows", self.weight)
        }


def log_scale(scale: float) -> nn.Parameter:
    """The learned logarithm of the factor of cosines."""
    return nn.Parameter(torch.tensor([math.log(number(scale, "above 0", "scale"))]))
