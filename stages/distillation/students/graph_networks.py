"""Networks that label nodes of a heterogeneous graph: R-GCN (arXiv 1703.06103), and one with attention after HAN (1903.07293).

A model has an embedding for each node, so that it is bound to one graph. Node types and relations stand in its config.

Axes in names: N nodes of all types, M nodes of the type that has classes, n nodes of some type, E edges of one relation in
one direction, H heads, W width, C classes.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping

from checkpoints.errors import UserError

Ends = tuple[Tensor, Tensor]
"""(E,) int64 numbers of source and target nodes within their types."""


class AutoModelForNodeClassification(_BaseAutoModelClass):
    """Loads a model of nodes by its config, as transformers' own Auto classes do for their heads."""

    _model_mapping: Any = _LazyAutoMapping(OrderedDict(), OrderedDict())


@dataclass
class NodeClassifierOutput(ModelOutput):
    """What a model of nodes returns; the first axis is the one graph.

    Attributes:
        logits: (1, M, C), of the M nodes whose type has classes.
        hidden_states: the embeddings, and what each layer makes of them, (1, N, W) each, of all N nodes; or None.
        edges: (1, 3, E of all relations), as given.
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    edges: Tensor | None = None


class RGCNConfig(PretrainedConfig):
    """Sizes: `layers`, `width`. The graph's fields are those that `stages.tasks.kinds.Nodes` notes."""

    model_type = "rgcn"
    sizes = {"layers": "num_hidden_layers", "width": "hidden_size"}
    of_teacher = ("node_types", "node_counts", "relations")

    hidden_size: int = 64
    num_hidden_layers: int = 2
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.1
    node_types: list | None = None
    node_counts: list | None = None
    relations: list | None = None

    def check(self) -> None:
        """Raises UserError for what cannot be."""
        if not self.node_types:
            raise UserError(
                f"a {self.model_type} reads graphs, and the teacher does not; leave it out", argument="kind"
            )

    @property
    def nodes(self) -> list[slice]:
        """Of each type the numbers of its nodes."""
        ends = torch.tensor([0, *(self.node_counts or ())]).cumsum(0).tolist()
        return [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]

    def forward_flops(self, tokens: float) -> float:
        """The products of each node with its own matrix and with one for each direction of its relations; a graph is one token."""
        counts = dict(zip(self.node_types or (), self.node_counts or (), strict=True))
        rows = sum(counts.values()) + sum(counts[a] + counts[b] for a, _, b, _ in self.relations or ())
        return 2 * self.hidden_size**2 * self.num_hidden_layers * rows * tokens


class HANConfig(RGCNConfig):
    """Sizes: also `heads`, of the attention over neighbours."""

    model_type = "han"
    sizes = RGCNConfig.sizes | {"heads": "num_attention_heads"}

    num_attention_heads: int = 4

    def check(self) -> None:
        """Raises UserError for what cannot be."""
        super().check()
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{self.hidden_size} must be a multiple of heads={self.num_attention_heads}; change one",
                argument="width",
            )


class MeanOfNeighbours(nn.Module):
    """R-GCN's message along a relation (equation 2): the mean over the neighbours, times a matrix."""

    def __init__(self, config: RGCNConfig):
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, sources_nW: Tensor, targets_nW: Tensor, ends: Ends) -> Tensor:
        source_E, target_E = ends
        sums_nW = torch.zeros_like(targets_nW).index_add(0, target_E, sources_nW.index_select(0, source_E))
        degrees_n = torch.bincount(target_E, minlength=len(targets_nW)).clamp(min=1)
        return self.linear(sums_nW / degrees_n[:, None])


class AttentionOverNeighbours(nn.Module):
    """HAN's node-level attention (equations 2 to 5), over the neighbours along a relation instead of a meta-path."""

    def __init__(self, config: HANConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.linear = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.of_source, self.of_target = (nn.Linear(config.hidden_size, self.heads) for _ in range(2))

    def forward(self, sources_nW: Tensor, targets_nW: Tensor, ends: Ends) -> Tensor:
        with torch.autocast(targets_nW.device.type, enabled=False):
            return self._message(sources_nW.float(), targets_nW.float(), *ends)

    def _message(self, sources_nW: Tensor, targets_nW: Tensor, source_E: Tensor, target_E: Tensor) -> Tensor:
        scores_EH = functional.leaky_relu(
            self.of_source(sources_nW).index_select(0, source_E)
            + self.of_target(targets_nW).index_select(0, target_E),
            0.2,
        )
        most_nH = scores_EH.new_full((len(targets_nW), self.heads), -torch.inf)
        target_EH = target_E[:, None].expand_as(scores_EH)
        most_nH = most_nH.scatter_reduce(0, target_EH, scores_EH.detach(), "amax")
        weights_EH = (scores_EH - most_nH.index_select(0, target_E)).exp()
        totals_nH = weights_EH.new_zeros(len(targets_nW), self.heads).index_add(0, target_E, weights_EH)
        values_EHD = self.linear(sources_nW).index_select(0, source_E).unflatten(-1, (self.heads, -1))
        sums_nHD = values_EHD.new_zeros(len(targets_nW), *values_EHD.shape[1:])
        sums_nHD = sums_nHD.index_add(0, target_E, weights_EH[..., None] * values_EHD)
        return (sums_nHD / totals_nH.clamp(min=1e-9)[..., None]).flatten(1)


class Layer(nn.Module):
    """New states of all nodes: of their own, and of a message along each relation, in both directions.

    R-GCN adds the messages. HAN weighs them by its semantic attention (equations 7 to 9), here for each type of nodes.
    """

    def __init__(self, config: RGCNConfig):
        super().__init__()
        width: int = config.hidden_size
        message: type[nn.Module] = MeanOfNeighbours
        self.own, self.semantic = nn.Linear(width, width), None
        if isinstance(config, HANConfig):
            message = AttentionOverNeighbours
            self.semantic = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))
        self.messages = nn.ModuleList(message(config) for _ in range(2 * len(config.relations or ())))

    def forward(self, states: list[Tensor], paths: list[tuple[int, int, Ends]]) -> list[Tensor]:
        received: list[list[Tensor]] = [[self.own(states_nW)] for states_nW in states]
        for message, (source, target, ends) in zip(self.messages, paths, strict=True):
            received[target].append(message(states[source], states[target], ends))
        return [self._together(torch.stack(of)) for of in received]

    def _together(self, received_RnW: Tensor) -> Tensor:
        if self.semantic is None:
            return received_RnW.sum(0)
        weights_R11 = self.semantic(received_RnW).mean(1, keepdim=True).softmax(0)
        return (weights_R11 * received_RnW).sum(0)


class RGCNForNodeClassification(PreTrainedModel):
    """Embeddings of the nodes, layers with ReLU between them, and a linear head over the first type of nodes."""

    config_class = RGCNConfig
    _supports_sdpa = True  # it has no such attention; all models are made with the capturing function

    def __init__(self, config: RGCNConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(sum(config.node_counts or ()), config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        labels: Any = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def forward(self, edges: Tensor, output_hidden_states: bool = False) -> NodeClassifierOutput:
        """Label the nodes of the first type.

        Args:
            edges: (3, E) int64: relation, source node, target node.
            output_hidden_states: whether the states are returned.
        """
        nodes, types = self.config.nodes, self.config.node_types
        states = [self.embeddings.weight[of] for of in nodes]
        hidden, paths = [torch.cat(states)], []
        for number, (source, _, target, _) in enumerate(self.config.relations):
            a, b = types.index(source), types.index(target)
            _, source_E, target_E = edges[:, edges[0] == number]
            source_E, target_E = source_E - nodes[a].start, target_E - nodes[b].start
            paths += [(a, b, (source_E, target_E)), (b, a, (target_E, source_E))]
        for layer in self.layers:
            states = layer([self.dropout(states_nW) for states_nW in states], paths)
            hidden.append(torch.cat(states))
            states = [functional.relu(states_nW) for states_nW in states]
        logits_MC = self.classifier(self.dropout(states[0]))
        shown = tuple(states_NW[None] for states_NW in hidden) if output_hidden_states else None
        return NodeClassifierOutput(logits=logits_MC[None], hidden_states=shown, edges=edges[None])


class HANForNodeClassification(RGCNForNodeClassification):
    config_class = HANConfig


GRAPHS = ("rgcn", "han")
"""Kinds of models that read graphs."""

for _config, _model in ((RGCNConfig, RGCNForNodeClassification), (HANConfig, HANForNodeClassification)):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForNodeClassification.register(_config, _model)
