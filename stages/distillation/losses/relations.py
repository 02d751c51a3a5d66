"""Self-relations of queries, keys or values (MiniLMv2, arXiv 2012.15828, section 3.1)."""

import math
from typing import Any

import torch
from transformers import PretrainedConfig

from stages.distillation.losses.attention import attended, log_softmax, split_heads
from stages.distillation.losses.base import Loss, LossTerm, attention_heads, mapped_layers
from stages.distillation.outputs import CaptureSpec, ModelOutputs, scaled_products
from stages.distillation.settings import choose
from stages.tasks.batches import Batch


class Relations(Loss):
    """KL(softmax(X_T X_T^T / sqrt(D)) || softmax(X_S X_S^T / sqrt(D))), for X the queries, keys or values of a layer.

    X_T are the teacher's and X_S the student's. The loss is a mean over relation heads and real tokens, summed over mapped
    layers. The concatenated heads are split into gcd(student heads, teacher heads) relation heads, so that widths and
    numbers of heads may differ.

    Args:
        student, teacher: the models' configs.
        of: queries, keys or values.
        layer_map: which teacher layer each student layer learns from: uniform, last, first or a list.
        weight: factor of the loss in the sum of losses; a number or a schedule.

    Raises:
        ValueError: the layer counts do not fit the map, or the student has no attention.

    Example:
        >>> loss = Relations(student.config, teacher.config, of="values", layer_map="last")
        >>> with capture(student, loss, side="student") as s, capture(teacher, loss, side="teacher") as t:
        ...     _ = student(**batch), teacher(**batch)
        >>> loss(s, t, attention_mask=batch["attention_mask"]).shape
        torch.Size([])
    """

    def __init__(
        self,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        of: str = "values",
        layer_map: Any = "uniform",
        weight: Any = 1.0,
    ):
        super().__init__(weight)
        self.of = choose(of, ("queries", "keys", "values"), "of")
        self.layers = mapped_layers(student, teacher, layer_map, embedding=False)
        self.heads = math.gcd(*attention_heads(student, teacher))
        asked = "values" if of == "values" else "queries_keys"
        self.student_capture = CaptureSpec(**{asked: frozenset(self.layers)})
        self.teacher_capture = CaptureSpec(**{asked: frozenset(self.layers.values())})

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        total, mask_BL = 0.0, batch.mask_BL
        mine, theirs = (getattr(outputs, f"{self.of}_BHLD") for outputs in (student, teacher))
        with torch.autocast(mask_BL.device.type, enabled=False):
            for s, t in self.layers.items():
                p_student, p_teacher = (
                    log_softmax(scaled_products(x, x), attended(batch.attention_mask))
                    for x in (split_heads(mine[s], self.heads), split_heads(theirs[t], self.heads))
                )
                distance = (p_teacher.exp() * (p_teacher - p_student)).sum(-1).mean(1)
                total = total + (distance * mask_BL).sum()
        return {self.of: LossTerm(total, "tokens", self.weight)}
