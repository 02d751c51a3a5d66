"""Prediction-layer distillation (TinyBERT, equation 10, and on the logits), and the plain losses on gold labels.

One target a row, or one a word at token level, where logits_BC is (B, L, C). Where a question's answer is looked for in a
window of its context, logits_BC is (B, L, 2): the two outputs are distributions over the places that may be answered
(the context's tokens, and the first token, which stands for no answer), and the loss of a window is the mean of both.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from checkpoints.errors import UserError
from stages.distillation.losses.base import Loss, LossTerm, compared_logits
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.tasks.batches import Batch


class SoftLabels(Loss):
    """Cross-entropy with the teacher's distribution at temperature tau: -softmax(z_T/tau) . log_softmax(z_S/tau).

    TinyBERT's equation 10, with the logits z_T of the teacher and z_S of the student. It is summed over classes and
    averaged over targets. It is not multiplied by tau^2 (give that as the weight). The published code divides it by the
    number of classes, which this loss does not. If the models have one output (a score), it is the mean squared error.
    `MatchedLogits` compares the logits instead.

    If a row has several labels, each label is a distribution of its own. The loss is then the mean over the C labels of
    the binary cross-entropy with q = sigmoid(z_T/tau): -(q log sigmoid(z_S/tau) + (1 - q) log(1 - sigmoid(z_S/tau))).

    Args:
        temperature: tau, of student and teacher; a number or a schedule.
        weight: factor of the loss in the sum of losses; a number or a schedule.
        problem_type: as in the student's config; "multi_label_classification" if a row has several labels.

    Example:
        >>> loss = SoftLabels(temperature=2.0, weight=4.0)   # tau^2, as Hinton et al., arXiv 1503.02531
        >>> outputs = ModelOutputs(logits_BC=torch.zeros(3, 2))
        >>> round(loss(outputs, outputs).item(), 4)   # 4 log 2
        2.7726
    """

    student_capture = teacher_capture = CaptureSpec(logits=True)

    def __init__(self, temperature: Any = 1.0, weight: Any = 1.0, problem_type: str | None = None):
        super().__init__(weight)
        self.temperature = self.schedule(temperature, "temperature", above_zero=True)
        self.several_labels = problem_type == "multi_label_classification"

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        z_student, z_teacher = compared_logits(student, teacher)
        temperature = self.temperature(self.progress)
        if batch.has_spans:
            target = _log_over_places(z_teacher / temperature, batch).exp()
            losses = _over_places(-target * _log_over_places(z_student / temperature, batch), batch)
        elif self.several_labels:
            target = torch.sigmoid(z_teacher / temperature)
            losses = _binary_cross_entropy(z_student / temperature, target)
        elif z_student.shape[-1] == 1:
            losses = (z_student - z_teacher).square().sum(-1)
        else:
            target = torch.softmax(z_teacher / temperature, -1)
            losses = -(target * torch.log_softmax(z_student / temperature, -1)).sum(-1)
        return {"soft_labels": LossTerm(batch.sum(losses), "targets", self.weight)}


class MatchedLogits(Loss):
    """Mean squared difference of logits, over classes and targets (Ba and Caruana, arXiv 1312.6184, equation 1).

    For a question's window it is the mean over the positions that may hold the answer.

    Args:
        weight: factor of the loss in the sum of losses; a number or a schedule.

    Example:
        >>> MatchedLogits()(ModelOutputs(torch.tensor([[1.0, 3.0]])), ModelOutputs(torch.tensor([[1.0, 1.0]])))
        tensor(2.)
    """

    student_capture = teacher_capture = CaptureSpec(logits=True)

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        z_student, z_teacher = compared_logits(student, teacher)
        losses = (z_student - z_teacher).square().mean(-1)
        return {"matched_logits": LossTerm(batch.sum(losses), "targets", self.weight)}


class Continuation(Loss):
    """max(0, ||z_S - phi z_T||^2 - m phi), averaged over targets.

    Continuation-KD (Jafari et al., arXiv 2212.05998, equations 4 to 6): the teacher's logits are scaled by phi.

    phi rises to 1, so the student first learns from a smoothed teacher. A squared distance up to m phi counts as 0,
    as noise of the teacher. With m = 0 the loss is the first phase of Annealing-KD (arXiv 2104.07163). With m = 0 and
    phi = 1 it is `MatchedLogits` times the number of classes.

    Args:
        phi: factor of the teacher's logits; a number, or a schedule from near 0 to 1.
        margin: m; a number or a schedule.
        weight: factor of the loss, 1 - psi in the paper; a number or a schedule.

    Example:
        >>> loss = Continuation(phi={"linear": [0.1, 1.0]}, margin=0.5)
        >>> loss(ModelOutputs(torch.tensor([[1.0, 0.0]])), ModelOutputs(torch.tensor([[10.0, 0.0]])))
        tensor(0.)
    """

    student_capture = teacher_capture = CaptureSpec(logits=True)

    def __init__(self, phi: Any = 1.0, margin: Any = 0.0, weight: Any = 1.0):
        super().__init__(weight)
        self.phi, self.margin = self.schedule(phi, "phi"), self.schedule(margin, "margin")

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        phi = self.phi(self.progress)
        z_student, z_teacher = compared_logits(student, teacher)
        distance = (z_student - phi * z_teacher).square().sum(-1)
        losses = (distance - self.margin(self.progress) * phi).clamp(min=0)
        return {"continuation": LossTerm(batch.sum(losses), "targets", self.weight)}


class GoldLabels(Loss):
    """Cross-entropy with the gold class, or squared error with the gold score. It reads no teacher.

    For strings it is the CTC loss, -log p(string), over the number of frames (Graves et al. 2006, equation 8).

    Targets without a label are left out. If a row has several labels (`labels` has the shape of the logits), the loss is
    the mean over the labels of the binary cross-entropy.

    Args:
        weight: factor of the loss in the sum of losses; a number or a schedule.
        class_weights: factor of the loss at each class, as in the student's config; none: 1.
        problem_type: as in the student's config; "multi_label_classification" tells that a single output is the only one
            of several labels, not a score.

    Example:
        >>> outputs = ModelOutputs(logits_BC=torch.zeros(2, 2))
        >>> round(GoldLabels()(outputs, labels=torch.tensor([1, -1])).item(), 4)   # the second is unlabelled
        0.6931
    """

    student_capture = CaptureSpec(logits=True)

    def __init__(
        self, weight: Any = 1.0, class_weights: Sequence[float] | None = None, problem_type: str | None = None
    ):
        super().__init__(weight)
        self.several_labels = problem_type == "multi_label_classification"
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def terms(self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Batch) -> dict[str, LossTerm]:
        logits, labels = student.logits_BC.float(), batch.labels
        if batch.symbols is not None:
            of_strings = batch.sum(ctc_losses(logits, batch.symbols))
            return {"gold_labels": LossTerm(of_strings, "labels", self.weight)}
        if labels is None:
            raise UserError("None; a loss on gold labels needs them", argument="labels")
        if batch.has_spans:
            losses = _over_places(-_log_over_places(logits, batch) * (labels == 1), batch)
        elif labels.shape == logits.shape and (self.several_labels or logits.shape[-1] > 1):
            losses = _binary_cross_entropy(logits, labels.nan_to_num())
        elif logits.shape[-1] == 1:
            losses = (logits[..., 0] - labels.view(logits.shape[:-1]).nan_to_num()).square()
        else:
            weights: Any = self.class_weights
            losses = class_losses(logits, batch, weights if weights is None else weights.to(logits.device))
        return {
            "gold_labels": LossTerm(batch.sum(losses * batch.labelled.view_as(losses)), "labels", self.weight)
        }


def class_losses(logits_BC: Tensor, batch: Batch, weights_C: Tensor | None = None) -> Tensor:
    """(B,), or (B, L) at token level: cross-entropy with the gold class; of mixed images with both classes, by their ratio.

    Args:
        logits_BC: (B, C), or (B, L, C).
        batch: with the labels; where they are not known, the loss is undefined.
        weights_C: factor of the loss at each class; None: 1.
    """

    def of(labels: Any) -> Tensor:
        classes = labels.clamp(min=0).flatten()
        losses = functional.cross_entropy(logits_BC.flatten(0, -2), classes, weights_C, reduction="none")
        return losses.view_as(labels)

    if batch.mixed is None:
        return of(batch.labels)
    others_B, own_B = batch.mixed
    return own_B * of(batch.labels) + (1 - own_B) * of(others_B)


def ctc_losses(logits_BTC: Tensor, symbols_BL: Tensor) -> Tensor:
    """(B,) -log p(string), p summed over all frame paths that give it; 0 where the string is unknown.

    Args:
        logits_BTC: the logits of T frames; the first class is the blank.
        symbols_BL: class ids, then negative numbers.
    """
    lengths_B = (symbols_BL >= 0).sum(1)
    frames_B = torch.full_like(lengths_B, logits_BTC.shape[1])
    logs_TBC = logits_BTC.float().log_softmax(-1).transpose(0, 1)
    losses_B = functional.ctc_loss(logs_TBC, symbols_BL.clamp(min=0), frames_B, lengths_B, reduction="none")
    return torch.where(lengths_B > 0, losses_B, 0.0)


def _log_over_places(logits_BLC: Tensor, batch: Batch) -> Tensor:
    """(B, L, C) log-probabilities over the places of each row that may be answered; -inf at the others."""
    return logits_BLC.masked_fill(~batch.label_mask[..., None], -torch.inf).log_softmax(1)


def _over_places(losses_BLC: Tensor, batch: Batch) -> Tensor:
    """(B,) sums over the places that may be answered, and means over the outputs: of start and end."""
    return losses_BLC.masked_fill(~batch.label_mask[..., None], 0).sum(1).mean(-1)


def _binary_cross_entropy(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    """(B,) means over the labels."""
    return functional.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none").mean(-1)
