"""Relation-level distillation of heterogeneous graphs (after HIRE, arXiv 2207.11887, of which the abstract was read)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.settings import check_type, choose
from stages.distillation.students.graph_networks import GRAPHS
from stages.tasks.batches import Batch


class TypedRelations(Loss):
    """The student's states of nodes of different types must correlate as the teacher's do.

    The mean squared difference of a statistic that does not depend on the width of the states, of the last layer. HIRE's
    own statistic is not known; both forms are inferred from "correlation between node embeddings of different types":

    - `classes`: the correlations (cosines after the mean is taken off) between the mean states of each type of nodes in
      each class. A labelled node counts for its class, another by the teacher's probabilities of the classes. A node
      of a type without classes counts by the mean probabilities of its neighbours.
    - `edges`: for each node and each relation in each direction, the cosine of its state with the mean state of its
      neighbours.

    A graph is a row: the loss is averaged over rows.

    Args:
        student: its config, which has the types of nodes.
        statistic: "classes" or "edges".
        weight: factor of the loss; a number or a schedule.

    Example:
        >>> from stages.distillation.students.graph_networks import RGCNConfig
        >>> config = RGCNConfig(node_counts=[2, 1], num_hidden_layers=1)   # two films and their director
        >>> edges = {"edges": torch.tensor([[[0, 0], [0, 1], [2, 2]]])}
        >>> apart = {1: torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])}
        >>> alike = {1: torch.ones(1, 3, 2)}
        >>> loss = TypedRelations(config, statistic="edges")
        >>> student = ModelOutputs(hidden_BLW=alike, named=edges)
        >>> teacher = ModelOutputs(torch.zeros(1, 2, 2), hidden_BLW=apart)
        >>> round(loss(student, teacher, labels=torch.tensor([[0, 1]])).item(), 3)   # cosines 1, 0 and 0.707 to 1, 1 and 1
        0.362
    """

    teacher_capture = CaptureSpec()

    def __init__(self, student: Any, teacher: Any = None, statistic: str = "classes", weight: Any = 1.0):
        super().__init__(weight)
        for config in (student, teacher or student):
            check_type(config, GRAPHS, "has no types of nodes", argument="losses.typed_relations")
        self.statistic, self.nodes = choose(statistic, ("classes", "edges"), "statistic"), student.nodes
        self.last = student.num_hidden_layers, (teacher or student).num_hidden_layers
        self.student_capture = CaptureSpec(hidden=frozenset({self.last[0]}), named=frozenset({"edges"}))
        self.teacher_capture = CaptureSpec(logits=True, hidden=frozenset({self.last[1]}))

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        mine_BNW = student.hidden_BLW[self.last[0]].float()
        theirs_BNW = teacher.hidden_BLW[self.last[1]].float()
        with torch.autocast(mine_BNW.device.type, enabled=False):
            losses = self._of_rows(student, teacher, batch, mine_BNW, theirs_BNW)
        return {"typed_relations": LossTerm(batch.sum(torch.stack(losses)), "rows", self.weight)}

    def _of_rows(
        self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch, mine_BNW: Tensor, theirs_BNW: Tensor
    ) -> list[Tensor]:
        losses = []
        for row, edges_3E in enumerate(student.named["edges"]):
            ends = torch.cat([edges_3E[1:], edges_3E[1:].flip(0)], 1)
            if self.statistic == "classes":
                known = functional.one_hot(
                    batch.labels[row].clamp(min=0), teacher.logits_BC.shape[-1]
                ).float()
                said = teacher.logits_BC[row].float().softmax(-1)
                of_NC = self._classes(torch.where(batch.labelled[row][:, None], known, said), ends)
                mine, theirs = (self._correlations(states[row], of_NC) for states in (mine_BNW, theirs_BNW))
            else:
                paths = torch.cat([2 * edges_3E[0], 2 * edges_3E[0] + 1])
                mine, theirs = (
                    _with_neighbours(states[row], paths, ends) for states in (mine_BNW, theirs_BNW)
                )
            losses.append((mine - theirs).square().mean())
        return losses

    def _classes(self, of_labelled_MC: Tensor, ends: Tensor) -> Tensor:
        """(N, C): what share of a node is in each class; zeros where no path leads to a node that has classes."""
        nodes = self.nodes[-1].stop
        of_NC = of_labelled_MC.new_zeros(nodes, of_labelled_MC.shape[1])
        of_NC[: len(of_labelled_MC)] = of_labelled_MC
        for _ in self.nodes[1:]:  # the longest way to a type leads over all others
            near_NC = torch.zeros_like(of_NC).index_add(0, ends[1], of_NC[ends[0]])
            near_NC = near_NC / near_NC.sum(1, keepdim=True).clamp(min=1e-9)
            of_NC = torch.where(of_NC.sum(1, keepdim=True) > 0, of_NC, near_NC)
        return of_NC

    def _correlations(self, states_NW: Tensor, of_NC: Tensor) -> Tensor:
        """(types x classes)^2 correlations of mean states."""
        means = [
            of_NC[nodes].T @ states_NW[nodes] / of_NC[nodes].sum(0)[:, None].clamp(min=1e-9)
            for nodes in self.nodes
        ]
        means_KW = torch.cat(means)
        directions_KW = functional.normalize(means_KW - means_KW.mean(0), dim=-1)
        return directions_KW @ directions_KW.T


def _with_neighbours(states_NW: Tensor, paths_E: Tensor, ends: Tensor) -> Tensor:
    """The cosines of nodes with the mean of their neighbours, path by path; a path is a relation in one direction."""
    found = []
    for path in paths_E.unique():
        source_E, target_E = ends[:, paths_E == path]
        sums_NW = torch.zeros_like(states_NW).index_add(0, target_E, states_NW.index_select(0, source_E))
        targets = target_E.unique()
        found.append(torch.cosine_similarity(states_NW[targets], sums_NW[targets], dim=-1))
    return torch.cat(found)
