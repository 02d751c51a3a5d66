"""A heterogeneous graph as one row: nodes of several types, relations between them, and classes of the nodes of one type.

Axes in names: N nodes, M nodes of the type that has classes, E edges, B rows of a batch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from checkpoints import store
from checkpoints.errors import UserError
from stages.tasks.batches import Batch, normalizers
from stages.tasks.task_rows import TaskRows
from stages.tasks.types import IGNORE_INDEX, Split

if TYPE_CHECKING:
    import torch

GRAPH_FILE = "graph.json"


@dataclass(frozen=True)
class Graph:
    """Nodes and edges. A model of nodes is bound to its graph, which therefore lies beside its weights.

    Attributes:
        nodes: type -> the ids of its nodes. Nodes are numbered type after type; those of the first type have classes.
        edges: (source type, name, target type) of a relation -> its edges, pairs of numbers of nodes within their types.
    """

    nodes: dict[str, list[str]]
    edges: dict[tuple[str, str, str], list[tuple[int, int]]]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Id -> number of the nodes that have classes."""
        return {name: number for number, name in enumerate(next(iter(self.nodes.values())))}

    @cached_property
    def edges_3E(self) -> torch.Tensor:
        """(3, E) int64: relation, source node, target node."""
        import torch

        counts = [len(ids) for ids in self.nodes.values()]
        begins = dict(zip(self.nodes, np.cumsum([0, *counts]), strict=False))
        parts = []
        for number, ((source, _, target), pairs) in enumerate(self.edges.items()):
            ends_2E = np.array(pairs, np.int64).reshape(-1, 2).T + [[begins[source]], [begins[target]]]
            parts.append(np.vstack([np.full(len(pairs), number), ends_2E]))
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def save_pretrained(self, directory: Path) -> None:
        """Write the graph beside a model."""
        edges = [[*types, pairs] for types, pairs in self.edges.items()]
        store.write_json(directory / GRAPH_FILE, {"nodes": list(self.nodes.items()), "edges": edges})

    @classmethod
    def load(cls, directory: Path) -> Graph:
        """Read the graph that lies beside a model.

        Raises:
            UserError: there is none, or it is not of this form.
        """
        path = directory / GRAPH_FILE
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            edges = {(*types,): [(int(i), int(j)) for i, j in pairs] for *types, pairs in given["edges"]}
            return cls(dict(given["nodes"]), edges)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read as a graph ({type(error).__name__}); give a model of nodes that this project made"
            ) from error


@dataclass(frozen=True)
class NodeRows(TaskRows):
    """A graph as one row, whose targets are nodes; a job trains on it (`stages.training.rows`), evaluation predicts it.

    Attributes:
        graph: all of it, whatever the split.
        labels: (M,) int64 class ids; UNLABELLED of targets whose class is not known, IGNORE_INDEX of nodes that are no
            targets.
    """

    graph: Graph
    labels: np.ndarray

    unit: ClassVar[str] = "graph"
    max_ranks: ClassVar[int] = 1

    @classmethod
    def of(cls, graph: Graph, split: Split, others: int = IGNORE_INDEX) -> NodeRows:
        """The targets of a split, in the order of the graph.

        Args:
            others: what the nodes of the other splits are; UNLABELLED: targets, too, as in training.
        """
        labels = np.full(len(graph.numbers), others, np.int64)
        labels[[graph.numbers[name] for name in split.text_a]] = split.labels
        return cls(graph, labels)

    def __len__(self) -> int:
        return 1

    @cached_property
    def lengths(self) -> np.ndarray:  # type: ignore[override]
        """(1,) 1: the graph is the only row, so its length does not matter."""
        return np.ones(1, np.int64)

    @cached_property
    def targets(self) -> np.ndarray:
        """(1,) the number of targets."""
        return np.array([(self.labels != IGNORE_INDEX).sum()])

    def normalizers(self, indices: np.ndarray) -> dict[str, float]:
        times = len(indices)
        return normalizers(
            np.repeat(self.lengths, times),
            np.repeat(self.targets, times),
            np.repeat((self.labels >= 0).sum(), times),
        )

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Batch:
        """The graph as a batch: `edges` (3, E), and labels (B, M)."""
        import torch

        labels_BM = torch.from_numpy(self.labels).expand(len(indices), -1)
        rows = torch.from_numpy(np.asarray(indices, np.int64))
        edges_3E = self.graph.edges_3E
        return Batch({"edges": edges_3E}, labels_BM, torch.from_numpy(weights), rows, padded=False)
