"""Losses on the scores of a batch, against plain loops; which layers are compared, and when others are drawn."""

import math

import pytest
import torch

from checkpoints.errors import UserError
from stages.distillation.losses import build
from stages.distillation.losses.passages import CandidateScores, InBatchNegatives, ScoreDistributions
from stages.distillation.outputs import ModelOutputs
from tests.conftest import tiny_config

LABELS = torch.tensor([4, 7, 4])
"""The questions of three rows; the first and the last are the same."""


def drawn(seed: int, layers: int, width: int, tokens: int = 2, candidates: int = 2) -> ModelOutputs:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(3, layers, tokens, width, generator=generator)
    of_passages = torch.randn(3, candidates, layers, tokens + 1, width, generator=generator)
    of_passages[1, 0, :, -1] = 0.0  # padding
    return ModelOutputs(named={"queries": queries, "passages": of_passages})


def probabilities(outputs: ModelOutputs, layer: int, query: int) -> list[float]:
    """Of the six candidates of the batch, by loops."""
    scores = []
    for row in range(3):
        for candidate in range(2):
            score = 0.0
            for q in outputs.named["queries"][query, layer - 1]:
                tokens = [p for p in outputs.named["passages"][row, candidate, layer - 1] if p.any()]
                score += max(float(q @ p) for p in tokens)
            scores.append(score)
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def plain_nll(outputs: ModelOutputs, layer: int) -> float:
    right = [[0, 4], [2], [0, 4]]
    return -sum(math.log(sum(probabilities(outputs, layer, q)[i] for i in right[q])) for q in range(3)) / 3


def plain_divergence(theirs: ModelOutputs, ours: ModelOutputs, t: int, s: int) -> float:
    pairs = [zip(probabilities(theirs, t, q), probabilities(ours, s, q), strict=True) for q in range(3)]
    return sum(p * math.log(p / r) for of in pairs for p, r in of) / 3


def test_the_right_candidates_of_a_question_are_told_from_all_others():
    student, teacher = drawn(0, 3, 4), drawn(1, 5, 6, tokens=3)
    assert InBatchNegatives()(student, labels=LABELS).item() == pytest.approx(plain_nll(student, 3), rel=1e-4)
    found = InBatchNegatives("teacher")(student, teacher, labels=LABELS).item()
    assert found == pytest.approx(plain_nll(teacher, 5), rel=1e-4)


@pytest.mark.parametrize("weighted", [True, False])
def test_layers_teach_by_how_well_they_rank(weighted):
    student, teacher = drawn(0, 3, 4), drawn(1, 5, 6, tokens=3)
    found = ScoreDistributions("last", pairs=2, weighted=weighted, tau=2.0)(student, teacher, labels=LABELS)
    factors = [math.exp(-plain_nll(teacher, t) / 2.0) if weighted else 1.0 for t in (4, 5)]
    each = [plain_divergence(teacher, student, t, s) for t, s in ((4, 2), (5, 3))]
    wanted = sum(f * d for f, d in zip(factors, each, strict=True)) / sum(factors)
    assert found.item() == pytest.approx(wanted, rel=1e-3)
    reverse = ScoreDistributions(reverse=True)(student, teacher, labels=LABELS).item()
    assert reverse == pytest.approx(plain_divergence(student, teacher, 3, 5), rel=1e-3)


def test_final_scores_are_compared_among_a_questions_own_candidates():
    student, teacher = (
        torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    wanted = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        odds = [[math.exp(right - wrong) for wrong, right in of] for of in (ours, theirs)]
        s, t = ([one / sum(of) for one in of] for of in odds)
        wanted += sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)) / 2
    found = CandidateScores()(ModelOutputs(logits_BC=student), ModelOutputs(logits_BC=teacher))
    assert found.item() == pytest.approx(wanted, rel=1e-4)


def test_a_teacher_learns_through_targets_but_not_through_weights():
    student, teacher = drawn(0, 3, 4), drawn(1, 3, 4)
    leaf = teacher.named["queries"].requires_grad_()
    loss = ScoreDistributions("last", pairs=2, tau=0.5)
    (free,) = torch.autograd.grad(loss(student, teacher, labels=LABELS), leaf)
    losses, factors = [], []
    for layer in (2, 3):
        one = ModelOutputs(named={"queries": teacher.named["queries"][:, :layer],
                                  "passages": teacher.named["passages"][:, :, :layer]})  # fmt: skip
        ours = ModelOutputs(named={"queries": student.named["queries"][:, :layer],
                                   "passages": student.named["passages"][:, :, :layer]})  # fmt: skip
        losses.append(ScoreDistributions()(ours, one, labels=LABELS))
        factors.append(math.exp(-plain_nll(teacher, layer) / 0.5))
    wanted = sum(f * of for f, of in zip(factors, losses, strict=True)) / sum(factors)
    torch.testing.assert_close(free, torch.autograd.grad(wanted, leaf)[0], rtol=1e-3, atol=1e-5)
    assert free.abs().sum() > 0


def test_layers_are_drawn_anew_every_few_steps_from_seed_and_step_alone():
    loss = ScoreDistributions("random", pairs=3, every=2, seed=5)
    student, teacher = drawn(0, 6, 4), drawn(1, 12, 4)
    seen = []
    for _ in range(12):
        seen.append((loss.chosen(6, 0), loss.chosen(12, 1)))
        loss(student, teacher, labels=LABELS)
    assert all(one == other for one, other in zip(seen[::2], seen[1::2], strict=True))
    assert len({str(pair) for pair in seen}) > 4
    assert all(of == sorted(set(of)) and len(of) == 3 for pair in seen for of in pair)
    assert {layer for pair in seen for layer in pair[1]} > {1, 12}
    resumed = ScoreDistributions("random", pairs=3, every=2, seed=5)
    resumed.load_state_dict(loss.state_dict() | {"step": torch.tensor(7)})
    assert (resumed.chosen(6, 0), resumed.chosen(12, 1)) == seen[7]
    loss.eval()(student, teacher, labels=LABELS)
    assert loss.step == 12  # what is only looked at draws nothing


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"layers": "first"}, "layers: 'first' must be last or random"),
        ({"pairs": 0}, "pairs: 0 must be a whole number from 1"),
        ({"every": True}, "every: True must be a whole number from 1"),
        ({"tau": 0}, "tau: 0 must be a number above 0"),
        ({"pairs": 5}, "pairs: 5 pairs of layers of a student that has 4; lower it"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        build({"score_distributions": settings}, tiny_config(), tiny_config())


def test_more_pairs_than_a_teacher_has_layers_are_refused():
    with pytest.raises(UserError, match="pairs: 3 pairs of layers of a model that has 2; lower it"):
        ScoreDistributions("random", pairs=3)(drawn(0, 3, 4), drawn(1, 2, 4), labels=LABELS)
