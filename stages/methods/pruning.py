"""Which units of a BERT matter, and how the others are taken away while it trains (GRAIN, arXiv 2212.07634).

Axes in names: N layers, H heads, D width of a head, F feed-forward width, U units of all kinds.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.distillation.distillation import Distillation


@dataclass(frozen=True)
class Pruning:
    """Which units go, and when; `stages.methods.grain.Grain` says what each setting is."""

    density: float
    begin: float
    end: float
    smoothing: float
    structure: float
    scores: str
    units: str

    @property
    def feed_forward_alone(self) -> bool:
        """Whether attention keeps all of its units, and each layer as many feed-forward units."""
        return self.units == "feed_forward"


class Units:
    """The units of a BERT, and how they lie in one vector: queries, values, feed-forward, each layer by layer.

    Args:
        layers, heads, head_width, feed_forward, width: those of the BERT.

    Attributes:
        sizes: how many weights a unit of each kind has: a row of W_Q and W_K with their biases; a row of W_V with its
            bias and a column of W_O; a row of the first feed-forward layer with its bias and a column of the second.
        weights: how many weights all units have together.

    Example:
        >>> units = Units(layers=2, heads=2, head_width=4, feed_forward=16, width=8)
        >>> [tuple(part.shape) for part in units.parts(torch.zeros(units.count))]
        [(2, 2, 4), (2, 2, 4), (2, 16)]
    """

    def __init__(self, layers: int, heads: int, head_width: int, feed_forward: int, width: int):
        self.layers, self.heads, self.head_width, self.feed_forward = layers, heads, head_width, feed_forward
        self.sizes = {"queries": 2 * width + 2, "values": 2 * width + 1, "feed_forward": 2 * width + 1}
        self.of_heads = layers * heads * head_width
        self.count = 2 * self.of_heads + layers * feed_forward
        self.weights = int(self.sizes_U().sum())

    @classmethod
    def of(cls, config: Any) -> "Units":
        """Those of a config of BERT's kind."""
        heads = config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            heads,
            config.hidden_size // heads,
            config.intermediate_size,
            config.hidden_size,
        )

    def sizes_U(self) -> Tensor:
        """(U,) how many weights each unit has."""
        counts = (self.of_heads, self.of_heads, self.layers * self.feed_forward)
        return torch.repeat_interleave(torch.tensor([*self.sizes.values()]), torch.tensor(counts))

    def parts(self, x_U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, H, D) of queries, (N, H, D) of values and (N, F) of feed-forward units; views."""
        each = x_U.split((self.of_heads, self.of_heads, self.layers * self.feed_forward))
        heads = (self.layers, self.heads, self.head_width)
        return each[0].view(heads), each[1].view(heads), each[2].view(self.layers, self.feed_forward)

    def feed_forward_left(self, density: float) -> int:
        """Feed-forward units of each layer if they alone are pruned."""
        attention = self.of_heads * (self.sizes["queries"] + self.sizes["values"])
        return math.floor((density * self.weights - attention) / (self.layers * self.sizes["feed_forward"]))


class Pruner(nn.Module):
    """Scores the units of a student and removes the least important ones.

    Attributes:
        progress: the fraction of the steps that are done.
        scores_U: running means.
        kept_U: whether a unit is left. A unit that is gone never returns.
    """

    is_scheduled = True
    scores_U: Tensor
    kept_U: Tensor
    sizes_U: Tensor

    def __init__(self, model: Distillation, settings: Pruning):
        super().__init__()
        self.settings, self.progress = settings, 0.0
        student: Any = model.student
        self.units = Units.of(student.config)
        stem = f"student.{student.base_model_prefix}.encoder.layer."
        self._layers = [f"{stem}{i}." for i in range(self.units.layers)]
        self._weights = {name: p for name, p in model.named_parameters() if name.startswith(stem)}
        self.register_buffer("scores_U", torch.zeros(self.units.count))
        self.register_buffer("kept_U", torch.ones(self.units.count, dtype=torch.bool))
        self.register_buffer("sizes_U", self.units.sizes_U(), persistent=False)

    @property
    def density(self) -> float:
        """s(t): 1, then s_f + (1 - s_f) (1 - (t - begin) / (end - begin))^3, then s_f."""
        of = self.settings
        gone = min(1.0, max(0.0, (self.progress - of.begin) / (of.end - of.begin)))
        return of.density + (1 - of.density) * (1 - gone) ** 3

    @property
    def is_done(self) -> bool:
        """Whether the last step had the final density."""
        return self.progress >= self.settings.end

    @torch.no_grad()
    def score(self, gradients: dict[str, Tensor]) -> None:
        """Add a step's |sum of gradient x weight| to the running means, unless one is not finite.

        Queries: over the row of W_Q and its bias. Values and feed-forward: over the column of the layer that reads them.
        """
        new_U = torch.rand_like(self.scores_U)
        queries_NHD, values_NHD, feed_forward_NF = self.units.parts(new_U)
        if self.settings.scores != "random":

            def products(layer: str, name: str) -> Tensor:
                return gradients[layer + name].float() * self._weights[layer + name]

            for n, layer in enumerate(self._layers):
                rows = products(layer, "attention.self.query.weight").sum(1)
                rows += products(layer, "attention.self.query.bias")
                queries_NHD[n] = rows.abs().view_as(queries_NHD[n])
                columns = products(layer, "attention.output.dense.weight").sum(0)
                values_NHD[n] = columns.abs().view_as(values_NHD[n])
                feed_forward_NF[n] = products(layer, "output.dense.weight").sum(0).abs()
        if alpha := self.settings.structure:
            _, kept_NHD, _ = self.units.parts(self.kept_U)
            values_NHD *= torch.tanh(kept_NHD.float().mean(-1, keepdim=True) / alpha)
        beta = self.settings.smoothing
        means_U = beta * self.scores_U + (1 - beta) * new_U
        self.scores_U.copy_(torch.where(new_U.isfinite().all(), means_U, self.scores_U))

    @torch.no_grad()
    def prune(self) -> None:
        """Take units away down to the density of this step, and set the weights of all that are gone to 0."""
        density = self.density
        if density == 1:
            return
        if self.settings.feed_forward_alone:
            self._keep_in_each_layer(self.units.feed_forward_left(density))
        else:
            self._keep(math.floor(density * self.units.weights))
        queries_NHD, values_NHD, feed_forward_NF = self.units.parts(self.kept_U)
        queries_NHD &= values_NHD.any(-1, keepdim=True)
        for n, layer in enumerate(self._layers):
            queries, values, feed_forward = (
                x[n].flatten() for x in (queries_NHD, values_NHD, feed_forward_NF)
            )
            for name, kept in (
                ("attention.self.query", queries),
                ("attention.self.key", queries),
                ("attention.self.value", values),
                ("intermediate.dense", feed_forward),
            ):
                self._weights[f"{layer}{name}.weight"].mul_(kept[:, None])
                self._weights[f"{layer}{name}.bias"].mul_(kept)
            self._weights[f"{layer}attention.output.dense.weight"].mul_(values)
            self._weights[f"{layer}output.dense.weight"].mul_(feed_forward)

    def _keep(self, weights: int) -> None:
        """Of the units that are left those with the highest scores, up to so many weights."""
        order_U = torch.where(self.kept_U, self.scores_U, -math.inf).argsort(stable=True, descending=True)
        fits_U = self.sizes_U[order_U].cumsum(0) <= weights
        self.kept_U &= torch.empty_like(fits_U).scatter_(0, order_U, fits_U)

    def _keep_in_each_layer(self, count: int) -> None:
        """Of each layer so many feed-forward units, those with the highest scores."""
        kept_NF = self.units.parts(self.kept_U)[2]
        scores_NF = torch.where(kept_NF, self.units.parts(self.scores_U)[2], -math.inf)
        best_NF = scores_NF.argsort(stable=True, dim=1, descending=True)[:, :count]
        kept_NF &= torch.zeros_like(kept_NF).scatter_(1, best_NF, True)
