"""One of several classes, of a node in a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from stages.tasks.kinds.base import Head
from stages.tasks.kinds.classes import Classes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from stages.tasks.graph_rows import Graph


@dataclass(frozen=True)
class Nodes(Classes):
    """A node has one class. The graph is one row, and all its nodes are read at once.

    Attributes:
        graph: the nodes' graph; None if a config or a run's record gives the kind.
        class_weights: each class's weight in the gold-label loss; also in the config.
    """

    graph: Graph | None = field(default=None, kw_only=True, compare=False, repr=False)
    class_weights: tuple[float, ...] = field(default=(), kw_only=True)

    name: ClassVar[str] = "nodes"
    head: ClassVar[Head] = "NodeClassification"
    reported: ClassVar[tuple[str, ...]] = ("f1", "accuracy")

    def configure(self, config: PretrainedConfig) -> None:
        """Note in a model's config the classes with their weights, the types of nodes and the relations."""
        super().configure(config)
        if self.graph:
            config.class_weights = list(self.class_weights)
            config.node_types = list(self.graph.nodes)
            config.node_counts = [len(ids) for ids in self.graph.nodes.values()]
            config.relations = [[*types, len(pairs)] for types, pairs in self.graph.edges.items()]
