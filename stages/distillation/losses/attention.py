"""Attention distillation: on raw scores, as in the paper, on probabilities, and on self-relations (arXiv 2012.15828, 3.1).

Axes in names: B rows, H heads, L positions, D width of a head.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from stages.distillation.layer_maps import attention_window
from stages.distillation.losses.base import Loss, LossTerm, attention_heads, mapped_layers
from stages.distillation.outputs import CaptureSpec, ModelOutputs, scaled_products
from stages.distillation.settings import choose
from stages.tasks.batches import Batch

MAPS_UP_TO = {"cpu": 128, "cuda": 512}
"""Length up to which the L x L maps of heads 26 and 64 wide are faster than D x D products (measured)."""


class AttentionScores(Loss):
    """Mean squared difference of raw attention scores Q K^T / sqrt(D), before softmax (TinyBERT, equation 7).

    The loss is sum_m ||S_m - T_g(m)||^2 / (H * sum of squared lengths), over pairs of real tokens. S_m are the student's
    scores of layer m, T_g(m) those of the teacher's layer for it, and H is the number of heads. Pairs further apart than
    the attention window of either layer (ModernBERT) add 0. If the numbers of heads differ, the concatenated queries and
    keys are split into gcd(student heads, teacher heads) heads. `AttentionMaps` compares probabilities
    instead. `Relations` compares queries with queries, keys with keys, or values with values.

    Args:
        student, teacher: the models' configs.
        layer_map: which teacher layer each student layer learns from: uniform, last, first or a list.
        weight: factor of the loss in the sum of losses; a number or a schedule.
        form: "maps" builds the L x L maps, "traces" D x D products in memory linear in L; "auto" takes the faster. The value
            is the same. Attention windows and cached teacher scores always take maps.

    Raises:
        ValueError: the layer counts do not fit the map, or the student has no attention.

    Example:
        >>> loss = AttentionScores(student.config, teacher.config)
        >>> with capture(student, loss, side="student") as s, capture(teacher, loss, side="teacher") as t:
        ...     _ = student(**batch), teacher(**batch)
        >>> loss(s, t, attention_mask=batch["attention_mask"]).shape
        torch.Size([])
    """

    def __init__(
        self,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        layer_map: Any = "uniform",
        weight: Any = 1.0,
        form: str = "auto",
    ):
        super().__init__(weight)
        self.layers = mapped_layers(student, teacher, layer_map, embedding=False)
        self.heads = math.gcd(*attention_heads(student, teacher))
        self.form = choose(form, ("auto", "maps", "traces"), "form")
        self.windows = joint_windows(student, teacher, self.layers)
        self.student_capture = CaptureSpec(queries_keys=frozenset(self.layers))
        asked = "scores" if self.heads == attention_heads(student, teacher)[1] else "queries_keys"
        self.teacher_capture = CaptureSpec(**{asked: frozenset(self.layers.values())})

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        total, device = 0.0, batch.weight.device.type
        with torch.autocast(device, enabled=False):
            for s, t in self.layers.items():
                mine = self._masked(student.queries_BHLD[s], student.keys_BHLD[s], batch)
                length, window = mine[0].shape[-2], self.windows[s]
                window = None if window is None or window >= length - 1 else window
                if t in teacher.scores_BHLL:
                    theirs_BHLL = teacher.attention_scores(t) * _pairs(batch.mask_BL)
                    total = total + _ScoreDistance.apply(*mine, theirs_BHLL, 1.0, window)
                    continue
                theirs = self._masked(teacher.queries_BHLD[t], teacher.keys_BHLD[t], batch)
                by_maps = self.form == "maps" or self.form == "auto" and length <= MAPS_UP_TO[device]
                if by_maps or window is not None:
                    total = total + score_distance_by_maps(*mine, *theirs, window)
                else:
                    total = total + score_distance_by_traces(*mine, *theirs)
        return {"attention": LossTerm(total / self.heads, "pairs", self.weight)}

    def _masked(self, q_BHLD: Tensor, k_BHLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Queries and keys in fp32, in relation heads, with masked positions set to zero."""
        q, k = (split_heads(x, self.heads).float() for x in (q_BHLD, k_BHLD))
        mask_B1L1 = batch.mask_BL[:, None, :, None]
        return (q * mask_B1L1, k * mask_B1L1) if batch.padded else (q, k)


class AttentionMaps(Loss):
    """Distance of attention probabilities, softmax(Q K^T / sqrt(D)), over real tokens.

    `mse` is the mean squared difference over heads and token pairs. `kl` is KL(teacher || student) of each token's row, the
    mean over heads and tokens. Both are summed over mapped layers. If the numbers of heads differ, the maps of each model are averaged over its heads first.
    TinyBERT's authors found `AttentionScores` better.

    Args:
        student, teacher: the models' configs.
        layer_map: which teacher layer each student layer learns from: uniform, last, first or a list.
        weight: factor of the loss in the sum of losses; a number or a schedule.
        distance: mse or kl.

    Raises:
        ValueError: the layer counts do not fit the map, or the student has no attention.

    Example:
        >>> loss = AttentionMaps(student.config, teacher.config, layer_map="last", distance="kl")
        >>> with capture(student, loss, side="student") as s, capture(teacher, loss, side="teacher") as t:
        ...     _ = student(**batch), teacher(**batch)
        >>> loss(s, t, attention_mask=batch["attention_mask"]).shape
        torch.Size([])
    """

    def __init__(
        self,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        layer_map: Any = "uniform",
        weight: Any = 1.0,
        distance: str = "mse",
    ):
        super().__init__(weight)
        self.layers = mapped_layers(student, teacher, layer_map, embedding=False)
        self.distance = choose(distance, ("mse", "kl"), "distance")
        self.averaged = len(set(attention_heads(student, teacher))) > 1
        self.windows = joint_windows(student, teacher, self.layers)
        self.student_capture = CaptureSpec(queries_keys=frozenset(self.layers))
        self.teacher_capture = CaptureSpec(scores=frozenset(self.layers.values()))

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        total = 0.0
        mask_BL = batch.mask_BL
        with torch.autocast(mask_BL.device.type, enabled=False):
            for s, t in self.layers.items():
                mask_BLL = attended(batch.attention_mask, self.windows[s])
                mine = self._maps(student.attention_scores(s), mask_BLL)
                theirs = self._maps(teacher.attention_scores(t), mask_BLL)
                if self.distance == "mse":
                    distance = (mine.exp() - theirs.exp()).square().sum(-1)
                else:
                    distance = (theirs.exp() * (theirs - mine)).sum(-1)
                total = total + (distance.mean(1) * mask_BL).sum()
        return {"maps": LossTerm(total, "pairs" if self.distance == "mse" else "tokens", self.weight)}

    def _maps(self, scores_BHLL: Tensor, mask_BLL: Tensor) -> Tensor:
        """Logarithms of the probabilities."""
        maps_BHLL = log_softmax(scores_BHLL, mask_BLL)
        if self.averaged:
            return maps_BHLL.logsumexp(1, keepdim=True) - math.log(maps_BHLL.shape[1])
        return maps_BHLL


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


def split_heads(x_BHLD: Tensor, heads: int) -> Tensor:
    """The concatenated heads, split into another number of them."""
    b, h, length, d = x_BHLD.shape
    if h == heads:
        return x_BHLD
    return x_BHLD.transpose(1, 2).reshape(b, length, heads, h * d // heads).transpose(1, 2)


def joint_windows(
    student: PretrainedConfig, teacher: PretrainedConfig, layers: dict[int, int]
) -> dict[int, int | None]:
    """{student layer: the smaller attention window of it and its teacher layer}; None: no limit."""
    windows = {s: (attention_window(student, s), attention_window(teacher, t)) for s, t in layers.items()}
    return {s: min((w for w in pair if w is not None), default=None) for s, pair in windows.items()}


def attended(mask_BL: Tensor, window: int | None = None) -> Tensor:
    """(B, 1 or L, L), 1 where the first token attends to the second."""
    if window is None:
        return mask_BL[:, None, :]
    places_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    return mask_BL[:, None, :] * ((places_L[:, None] - places_L).abs() <= window)


def log_softmax(scores_BHLL: Tensor, mask_BLL: Tensor) -> Tensor:
    """Logarithms of the probabilities over the positions that are attended to."""
    return scores_BHLL.masked_fill(mask_BLL[:, None] == 0, torch.finfo(torch.float32).min).log_softmax(-1)


def _pairs(mask_BL: Tensor) -> Tensor:
    """(B, 1, L, L), 1 for pairs of real tokens."""
    return (mask_BL[:, :, None] * mask_BL[:, None, :])[:, None]


class _ScoreDistance(torch.autograd.Function):
    """The gradient is found along with the value, so that the (B, H, L, L) map is gone when the forward pass ends.

    The teacher's map, which `their_scale` is still to be multiplied with, is overwritten.
    """

    @staticmethod
    def forward(
        ctx: Any, qs: Tensor, ks: Tensor, theirs_BHLL: Tensor, their_scale: float, window: int | None
    ) -> Tensor:
        shape, (qs, ks, map_NLL) = qs.shape, (x.flatten(0, 1) for x in (qs, ks, theirs_BHLL))
        scale = qs.shape[-1] ** -0.5
        map_NLL.baddbmm_(qs, ks.transpose(1, 2), beta=-their_scale, alpha=scale)
        if window is not None:
            map_NLL.triu_(-window).tril_(window)
        if any(ctx.needs_input_grad):
            gradients = torch.bmm(map_NLL, ks), torch.bmm(map_NLL.transpose(1, 2), qs)
            ctx.save_for_backward(*(x.mul_(2 * scale).view(shape) for x in gradients))
        return torch.linalg.vector_norm(map_NLL, dim=-1).square().sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *(x * upstream[0] for x in ctx.saved_tensors), None, None, None


def score_distance_by_maps(
    qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor, window: int | None = None
) -> Tensor:
    """sum_ij (qs_i.ks_j / sqrt(Ds) - qt_i.kt_j / sqrt(Dt))^2 of (B, H, L, D) in fp32. Masked positions are zeros.

    The teacher's get no gradient.

    Args:
        window: only pairs that are at most so far apart.
    """
    theirs_BHLL = qt.detach() @ kt.detach().transpose(-1, -2)
    return _ScoreDistance.apply(qs, ks, theirs_BHLL, qt.shape[-1] ** -0.5, window)


def score_distance_by_traces(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> Tensor:
    """The same number from D x D products, in memory linear in L.

    With Qs and Qt divided by the square roots of their widths:
    sum_ij (qs_i.ks_j - qt_i.kt_j)^2 = <Qs'Qs, Ks'Ks> - 2 <Qs'Qt, Ks'Kt> + <Qt'Qt, Kt'Kt>
    """
    qs, qt = (q / q.shape[-1] ** 0.5 for q in (qs, qt))

    def product(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return ((a.transpose(-1, -2) @ b) * (c.transpose(-1, -2) @ d)).sum()

    total = product(qs, qs, ks, ks) - 2 * product(qs, qt, ks, kt) + product(qt, qt, kt, kt)
    return total + (total.clamp(min=0) - total).detach()  # nearly equal maps: rounding may leave less than 0
