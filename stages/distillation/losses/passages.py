"""Losses of dual encoders, on scores of a batch's questions against all candidates of the batch (LEAD, arXiv 2212.05225).

Axes in names: K layers, N questions of the global batch, P candidates of each, B questions of this rank.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.gather import gather_rows
from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.settings import choose, number, whole
from stages.distillation.students.dual_encoder import best_matches
from stages.tasks.batches import Batch

SCORES = CaptureSpec(logits=True)
BOTH = CaptureSpec(logits=True, named=frozenset({"queries", "passages"}))
VECTORS = CaptureSpec(named=BOTH.named)


def scores_of_batch(outputs: ModelOutputs, batch: Batch, layers: list[int]) -> Tensor:
    """The scores of every question of the global batch for every candidate in it, (K, N, N P) in fp32.

    Args:
        outputs: the outputs of a dual encoder, for rows of a question with P candidates.
        batch: the weights of its rows; those of weight 0 are left out.
        layers: K of them, from 1.
    """
    queries, passages = (outputs.named[name] for name in ("queries", "passages"))
    places = [layer - 1 for layer in layers]
    queries = torch.stack([queries[:, place] for place in places], 1).float()
    passages = torch.stack([passages[:, :, place] for place in places], 2).float()
    (queries, _), (passages, _) = (gather_rows(batch.at_counted(x)) for x in (queries, passages))
    passages = passages.flatten(0, 1)
    with torch.autocast(queries.device.type, enabled=False):
        products = torch.einsum("nktw,pkuw->knptu", queries, passages)
    return best_matches(products, passages.transpose(0, 1)[:, None])


def right_of_batch(batch: Batch, candidates: int) -> tuple[Tensor, Tensor]:
    """Whether each candidate of the global batch is known to be right for each question, (N, N P); this rank's, (B,).

    A row's first candidate is right, for all rows with the same question: that is the label of a row.
    """
    labels_N, own_B = gather_rows(batch.at_counted(batch.labels))
    same_NN = labels_N[:, None] == labels_N
    first_P = torch.arange(candidates, device=same_NN.device) == 0
    return (same_NN[:, :, None] & first_P).flatten(1), own_B


def negative_log_likelihood(scores_KNM: Tensor, right_NM: Tensor) -> Tensor:
    """(K, N): -log of the probability of the right ones, if one of all is drawn by the softmax of the scores."""
    right = scores_KNM.masked_fill(~right_NM, -torch.inf)
    return scores_KNM.logsumexp(-1) - right.logsumexp(-1)


class InBatchNegatives(Loss):
    """-log of the probability of a question's right candidates: the softmax of the last layer's scores in the batch.

    The candidates of the other questions are taken to be wrong. Where a question is in the batch more than once, the
    probabilities of its right candidates add up; in LEAD and DPR (Karpukhin et al., arXiv 2004.04906, equation 2) a
    question has one.

    Args:
        of: "student", or "teacher": the loss of a teacher that trains along.
        weight: factor of the loss in the sum of losses; a number or a schedule.

    Example:
        Two questions with one candidate each; the scores are 0.

        >>> zeros = {"queries": torch.zeros(2, 3, 1, 4), "passages": torch.ones(2, 1, 3, 1, 4)}
        >>> round(InBatchNegatives()(ModelOutputs(named=zeros), labels=torch.tensor([7, 9])).item(), 4)   # log 2
        0.6931
    """

    whole_batch = one_label = True
    student_capture = BOTH

    def __init__(self, of: str = "student", weight: Any = 1.0):
        super().__init__(weight)
        self.of = choose(of, ("student", "teacher"), "of")
        self.teacher_capture = VECTORS if of == "teacher" else CaptureSpec()

    def terms(self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Batch) -> dict[str, LossTerm]:
        outputs: Any = teacher if self.of == "teacher" else student
        passages = outputs.named["passages"]
        right, own_B = right_of_batch(batch, passages.shape[1])
        losses_KN = negative_log_likelihood(scores_of_batch(outputs, batch, [passages.shape[2]]), right)
        losses_B = losses_KN[0, own_B] * batch.at_counted(batch.weight)
        name = "in_batch_negatives" + ("_of_teacher" if self.of == "teacher" else "")
        return {name: LossTerm(losses_B.sum(), "rows", self.weight)}


class ScoreDistributions(Loss):
    """KL divergence of the student's distribution over all candidates of a batch from the teacher's, layer by layer.

    A distribution is the softmax of a layer's scores. So vocabularies, widths and numbers of layers may differ. For layers
    s_k of the student and t_k of the teacher the loss is sum_k lambda_k KL(P^T_{t_k} || P^S_{s_k}). The weights lambda are
    the softmax over k of -NLL(P^T_{t_k}) / tau, of the mean negative log-likelihood of the right candidates in the batch:
    teacher layers that rank well teach more. No gradient flows through them. By default there is one pair, the last layers.

    Args:
        layers: "last": the last `pairs` layers of both models. "random": `pairs` layers of each, paired in their order;
            others are drawn after every `every` steps.
        pairs: number of pairs (LEAD: 5 for passages).
        weighted: whether pairs have the weights lambda; if not, each has 1 / pairs. (The published code gives each 1: its
            ablation also changes the sum of the weights.)
        tau: temperature of the weights.
        every: steps between two draws.
        reverse: KL(P^S || P^T) instead, for a teacher that is trained, too, and learns from the student.
        seed: seed of the draws; the method `lead` sets the stage's.
        weight: factor of the loss in the sum of losses; a number or a schedule.
        student: its config.

    Example:
        >>> vectors = {"queries": torch.randn(2, 3, 1, 4), "passages": torch.randn(2, 2, 3, 1, 4)}
        >>> same = ModelOutputs(named=vectors)
        >>> abs(ScoreDistributions("random", pairs=3)(same, same, labels=torch.tensor([7, 9])).item())
        0.0
    """

    whole_batch = True
    student_capture, teacher_capture = BOTH, VECTORS

    def __init__(
        self,
        layers: str = "last",
        pairs: int = 1,
        weighted: bool = True,
        tau: float = 10.0,
        every: int = 10,
        reverse: bool = False,
        seed: int = 0,
        weight: Any = 1.0,
        student: PretrainedConfig | None = None,
    ):
        super().__init__(weight)
        self.layers = choose(layers, ("last", "random"), "layers")
        self.pairs, self.every = whole(pairs, 1, None, "pairs"), whole(every, 1, None, "every")
        self.tau = number(tau, "above 0", "tau")
        if pairs > getattr(student, "num_hidden_layers", pairs):
            raise UserError(f"{pairs} pairs of layers of a student that has {student.num_hidden_layers}; lower it",
                            argument="pairs")  # fmt: skip
        self.weighted, self.reverse, self.seed = weighted, reverse, seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def chosen(self, layers: int, side: int) -> list[int]:
        """The layers to compare, of a model with that number of layers; `side` is 0 for the student, 1 for the teacher."""
        if self.pairs > layers:
            raise UserError(f"{self.pairs} pairs of layers of a model that has {layers}; lower it",
                            argument="losses.score_distributions.pairs")  # fmt: skip
        if self.layers == "last":
            return list(range(layers - self.pairs + 1, layers + 1))
        draw = np.random.default_rng((self.seed, int(self.step) // self.every, side))
        return sorted(int(i) + 1 for i in draw.permutation(layers)[: self.pairs])

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        ours_KNM, theirs_KNM = (
            scores_of_batch(outputs, batch, self.chosen(outputs.named["queries"].shape[1], side))
            for side, outputs in enumerate((student, teacher))
        )
        right, own_B = right_of_batch(batch, student.named["passages"].shape[1])
        log_s, log_t = (scores[:, own_B].log_softmax(-1) for scores in (ours_KNM, theirs_KNM))
        target, said = (log_s, log_t) if self.reverse else (log_t, log_s)
        losses_KB = (target.exp() * (target - said)).sum(-1)
        weight_K = losses_KB.new_full((self.pairs,), 1 / self.pairs)
        if self.weighted:
            weight_K = (-negative_log_likelihood(theirs_KNM.detach(), right).mean(-1) / self.tau).softmax(0)
        losses_B = weight_K @ losses_KB * batch.at_counted(batch.weight)
        if self.training:
            self.step += 1
        name = f"{self.layers}_layers" if (self.layers, self.pairs) != ("last", 1) else "last_layer"
        return {name + ("_reversed" if self.reverse else ""): LossTerm(losses_B.sum(), "rows", self.weight)}


class CandidateScores(Loss):
    """KL divergence of the student's distribution over a question's own candidates from the teacher's.

    A distribution is the softmax of final scores. A score is the log-odds of right, the second of two logits minus the
    first. Only final scores are compared, so the teacher may also be a cross-encoder (as in LEAD), which has no vector of
    the question alone.

    Args:
        weight: factor of the loss in the sum of losses; a number or a schedule.

    Example:
        A question with two candidates, of which the teacher gives the first odds of four to one:

        >>> student = ModelOutputs(logits_BC=torch.zeros(1, 2, 2))
        >>> teacher = ModelOutputs(logits_BC=torch.tensor([[[0.0, 3.0], [0.0, 0.0]]]).log1p())
        >>> round(CandidateScores()(student, teacher).item(), 4)   # 0.8 log(0.8 / 0.5) + 0.2 log(0.2 / 0.5)
        0.1927
    """

    # Only a dual encoder shows vectors, and answers for candidates.
    student_capture, teacher_capture = BOTH, SCORES

    def terms(self, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> dict[str, LossTerm]:
        log_s, log_t = (
            (of.logits_BC[..., 1] - of.logits_BC[..., 0]).float().log_softmax(-1) for of in (student, teacher)
        )
        losses_B = (log_t.exp() * (log_t - log_s)).sum(-1)
        return {"candidate_scores": LossTerm(batch.sum(losses_B), "rows", self.weight)}
