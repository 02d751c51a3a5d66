"""Pruning with gradient scores: against plain loops, and what is left against the masked model. Runs: integration/test_methods.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from checkpoints.errors import UserError
from stages.distillation.compatibility import forward_flops
from stages.distillation.distillation import Distillation
from stages.distillation.losses import build
from stages.distillation.outputs import CaptureSpec, logits_of
from stages.distillation.students.pruned_bert import prunable, shrunk
from stages.methods import build_method
from stages.methods.pruning import Pruner, Pruning, Units
from stages.teaching.given_models import Models, check_plan
from stages.training.options import StageToCheck, Training
from tests.conftest import tiny_config
from tests.stages.methods.test_methods import task

N, H, D, F, W = 4, 4, 4, 32, 16
IDS = torch.randint(5, 20, (3, 9), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(9) < torch.tensor([[9], [2], [5]])).long()
BATCH = {"input_ids": IDS, "attention_mask": MASK}


def a_bert(kind=BertForSequenceClassification, rank=0, own=True):
    torch.manual_seed(0)
    config = tiny_config()
    config.num_labels, config.initializer_range = 2, 0.5
    model = kind(config).eval()
    return prunable(model, rank).eval() if own else model


def settings(**changes) -> Pruning:
    of = {
        "density": 0.3,
        "begin": 0.2,
        "end": 0.4,
        "smoothing": 0.9,
        "structure": 0.3,
        "scores": "logits",
        "units": "all",
    }
    return Pruning(**of | changes)  # fmt: skip


def a_pruner(model=None, **changes) -> tuple[Distillation, Pruner]:
    teacher = model or a_bert()
    losses = [build(line, teacher.config, teacher.config) for line in ("soft_labels", "hidden_states")]
    distillation = Distillation(teacher, losses)
    return distillation, Pruner(distillation, settings(**changes))


@pytest.mark.parametrize(
    "seed, density, ragged",
    [(0, 0.2, True), (1, 0.6, True), (2, 0.6, False), (3, 0.02, True), (4, 0.02, False), (5, 0.2, True)],
)
def test_the_smaller_model_answers_as_the_masked_one(seed, density, ragged):
    kind = (BertForSequenceClassification, BertForTokenClassification, BertForQuestionAnswering)[seed % 3]
    student, generator = a_bert(kind, rank=8 * (seed % 2)), torch.Generator().manual_seed(seed)
    _, pruner = a_pruner(student)
    queries_NHD, values_NHD, _ = pruner.units.parts(pruner.kept_U)
    pruner.kept_U.copy_(torch.rand(pruner.units.count, generator=generator) < density)
    if not ragged:
        queries_NHD.copy_(queries_NHD[:, :1]), values_NHD.copy_(values_NHD[:, :1])
    before = logits_of(student(**BATCH))
    pruner.progress, pruner.sizes_U = 0.5, torch.zeros(pruner.units.count)  # all that is kept fits
    pruner.prune()
    masked = student(**BATCH, output_hidden_states=True)
    small = shrunk(student, *pruner.units.parts(pruner.kept_U)).eval()
    found = small(**BATCH, output_hidden_states=True)
    torch.testing.assert_close(logits_of(found), logits_of(masked), rtol=1e-5, atol=1e-5)
    for a, b in zip(found.hidden_states, masked.hidden_states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, logits_of(masked), atol=1e-3)
    kept = int((pruner.kept_U * Units.of(student.config).sizes_U()).sum())
    floors = N * (3 * (2 * W + 2))  # a layer that lost all keeps one of each kind
    others = sum(p.numel() for p in student.parameters()) - pruner.units.weights
    assert kept <= sum(p.numel() for p in small.parameters()) - others <= kept + floors
    assert forward_flops(small.config, 9, 9) < forward_flops(student.config, 9, 9)


def test_what_is_left_is_saved_loaded_and_written_as_onnx(tmp_path):
    from pipeline.deploy.onnx_model import OnnxClassifier, write_onnx

    student = a_bert(rank=8)
    _, pruner = a_pruner(student)
    queries_NHD, values_NHD, feed_forward_NF = pruner.units.parts(pruner.kept_U)
    values_NHD[0, 1:, 1:] = queries_NHD[0, 2] = values_NHD[1] = queries_NHD[3] = feed_forward_NF[2] = False
    pruner.progress, pruner.sizes_U = 0.5, torch.zeros(pruner.units.count)
    pruner.prune()
    small = shrunk(student, queries_NHD, values_NHD, feed_forward_NF).eval()
    assert small.config.value_units[:2] == [[4, 1, 1, 1], [1]] and small.config.query_units[0] == [4, 4, 0, 4]
    wanted = student(**BATCH).logits
    small.save_pretrained(tmp_path / "small")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").eval()
    torch.testing.assert_close(loaded(**BATCH).logits, wanted, rtol=1e-5, atol=1e-5)
    write_onnx(loaded, BATCH, tmp_path / "fp32.onnx")
    written = OnnxClassifier(tmp_path / "fp32.onnx", loaded.config)
    torch.testing.assert_close(written(**BATCH).logits, wanted, rtol=1e-4, atol=1e-4)


def test_embeddings_begin_as_the_best_factors():
    whole, student = a_bert(own=False), a_bert(rank=6)
    table_VW = whole.bert.embeddings.word_embeddings.weight.detach().numpy()
    u, s, v = np.linalg.svd(table_VW.astype(np.float64), full_matrices=False)
    best_VW = (u[:, :6] * s[:6]) @ v[:6]
    found_VW = student.bert.embeddings.word_embeddings(torch.arange(len(table_VW))).detach().numpy()
    np.testing.assert_allclose(found_VW, best_VW, atol=1e-5)
    torch.testing.assert_close(a_bert()(**BATCH).logits, whole(**BATCH).logits)


def plain_scores(model, gradients: dict, kept: dict) -> dict:
    """|sum of gradient x weight| of each unit, one after the other; values times tanh(density of the head / 0.3)."""
    found = {}
    for n, layer in enumerate(model.student.bert.encoder.layer):
        attention = layer.attention
        for h in range(H):
            for d in range(D):
                u = h * D + d
                query, read = attention.self.query, attention.output.dense
                total = (gradients[query.weight][u] * query.weight[u]).sum() + gradients[query.bias][
                    u
                ] * query.bias[u]
                found["query", n, h, d] = abs(total.item())
                total = (gradients[read.weight][:, u] * read.weight[:, u]).sum()
                of_head = sum(kept["value", n, h, other] for other in range(D)) / D
                found["value", n, h, d] = abs(total.item()) * np.tanh(of_head / 0.3)
        for f in range(F):
            weight = layer.output.dense.weight
            found["feed_forward", n, f] = abs((gradients[weight][:, f] * weight[:, f]).sum().item())
    return found


def test_scores_and_masks_are_those_of_plain_loops():
    model, pruner = a_pruner()
    sizes = {"query": 2 * W + 2, "value": 2 * W + 1, "feed_forward": 2 * W + 1}
    names = [
        (kind, n, h, d) for kind in ("query", "value") for n in range(N) for h in range(H) for d in range(D)
    ]
    names += [("feed_forward", n, f) for n in range(N) for f in range(F)]
    assert len(names) == pruner.units.count
    means, kept, random = (
        dict.fromkeys(names, 0.0),
        dict.fromkeys(names, True),
        torch.Generator().manual_seed(0),
    )
    total = sum(sizes[name[0]] for name in names)
    for step, progress in enumerate((0.0, 0.15, 0.25, 0.3, 0.5, 0.9)):
        gradients = {p: torch.randn(p.shape, generator=random) for p in model.parameters()}
        new = plain_scores(model, gradients, kept)
        means = {name: 0.9 * means[name] + 0.1 * new[name] for name in names}
        pruner.progress = progress
        pruner.score({name: gradients[p] for name, p in model.named_parameters()})
        torch.testing.assert_close(
            pruner.scores_U, torch.tensor(list(means.values())).float(), rtol=1e-4, atol=1e-6
        )
        done = min(1, max(0, (progress - 0.2) / 0.2))
        budget = (0.3 + 0.7 * (1 - done) ** 3) * total
        if budget < total:
            used, fits = 0, set()
            for name in sorted((name for name in names if kept[name]), key=lambda name: -means[name]):
                used += sizes[name[0]]
                if used <= budget:
                    fits.add(name)
            kept = {name: name in fits for name in names}
            for n in range(N):
                for h in range(H):
                    if not any(kept["value", n, h, d] for d in range(D)):
                        kept |= {("query", n, h, d): False for d in range(D)}
        pruner.prune()
        assert pruner.kept_U.tolist() == list(kept.values()), step
        assert pruner.is_done == (progress >= 0.4)
    left = float((pruner.kept_U * pruner.sizes_U).sum()) / pruner.units.weights
    assert 0.25 < left <= 0.3


def test_a_unit_that_is_gone_stays_zero_and_gets_no_gradient():
    model, pruner = a_pruner()
    pruner.scores_U.copy_(torch.rand(pruner.units.count, generator=torch.Generator().manual_seed(0)))
    pruner.progress = 0.5
    pruner.prune()
    before = pruner.kept_U.clone()
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=0.1)
    for _ in range(2):
        model.student(**BATCH).logits.square().sum().backward()
        layer = model.student.bert.encoder.layer[0]
        gone_F = ~pruner.units.parts(pruner.kept_U)[2][0]
        assert gone_F.any() and layer.output.dense.weight.grad[:, gone_F].abs().max() == 0
        optimizer.step()
        pruner.scores_U[~before] = 10.0  # the highest there is
        pruner.prune()
        assert torch.equal(pruner.kept_U, before) and layer.intermediate.dense.weight[gone_F].abs().max() == 0


def test_heads_that_are_nearly_empty_go_first():
    model, pruner = a_pruner()
    _, values_NHD, _ = pruner.units.parts(pruner.kept_U)
    values_NHD[0, 0, 1:] = False
    gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    weight = model.student.bert.encoder.layer[0].attention.output.dense.weight
    weight.data.fill_(1.0)
    pruner.score(gradients)
    scores_HD = pruner.units.parts(pruner.scores_U)[1][0]
    assert scores_HD[0, 0] / scores_HD[1, 0] == pytest.approx(np.tanh(0.25 / 0.3) / np.tanh(1 / 0.3))
    _, plain = a_pruner(model.student, structure=0)
    plain.kept_U.copy_(pruner.kept_U)
    plain.score(gradients)
    scores_HD = plain.units.parts(plain.scores_U)[1][0]
    assert scores_HD[0, 0] == scores_HD[1, 0]


def test_gradients_that_are_not_finite_are_not_scored():
    model, pruner = a_pruner()
    gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    pruner.score(gradients)
    before = pruner.scores_U.clone()
    name = next(name for name in gradients if name.endswith("output.dense.weight"))
    gradients[name][0, 0] = torch.nan
    pruner.score(gradients)
    assert torch.equal(pruner.scores_U, before) and before.max() > 0


def test_feed_forward_units_alone_leave_a_stock_bert():
    student = a_bert(own=False)
    _, pruner = a_pruner(student, density=0.7, units="feed_forward")
    pruner.scores_U.copy_(torch.rand(pruner.units.count, generator=torch.Generator().manual_seed(0)))
    best_NF = pruner.units.parts(pruner.scores_U)[2].argsort(1, descending=True)
    for progress in (0.3, 0.5):
        pruner.progress = progress
        pruner.prune()
    queries_NHD, values_NHD, feed_forward_NF = pruner.units.parts(pruner.kept_U)
    count = int((0.7 * pruner.units.weights - N * H * D * (4 * W + 3)) / (N * (2 * W + 1)))
    assert queries_NHD.all() and values_NHD.all()
    for n in range(N):
        assert feed_forward_NF[n].nonzero()[:, 0].tolist() == sorted(best_NF[n, :count].tolist())
    small = shrunk(student, queries_NHD, values_NHD, feed_forward_NF).eval()
    assert type(small) is BertForSequenceClassification and small.config.intermediate_size == count
    torch.testing.assert_close(small(**BATCH).logits, student(**BATCH).logits, rtol=1e-5, atol=1e-5)


def test_losses_on_logits_have_the_pass_that_is_scored_and_projections_begin_as_the_identity():
    for scores, tags, passes in (
        ("logits", ["logits", "layers"], 2),
        ("all", [None, None], 1),
        ("random", [None, None], 1),
    ):
        model, _ = a_pruner()
        method = build_method({"grain": {"scores": scores}})
        step = method.step(model, Training())
        assert step.kind(model) == method.step_kind(model.losses)
        assert [loss.tag for loss in model.losses] == tags and len(step.passes) == passes
        assert step.passes[0].hook == model.pruner.score and step.passes[-1].hook is (None if passes == 2 else step.passes[0].hook)  # fmt: skip
        eye = model.losses[1].projections[0]
        assert torch.equal(eye.weight, torch.eye(W)) and eye.bias.abs().max() == 0
        assert model.set_progress is not None
        model.set_progress(0.25)
        assert model.pruner.progress == 0.25
    alone = Distillation(a_bert(), [build("soft_labels", tiny_config(), tiny_config())])
    assert [one.tag for one in build_method("grain").step(alone, Training()).passes] == ["logits"]


def test_no_weights_are_chosen_before_all_units_that_go_are_gone():
    model, _ = a_pruner()
    method = build_method("grain")
    method.step(model, Training())
    evaluate = method.evaluation(model, lambda: 0.5)
    model.pruner.progress = 0.39
    assert np.isnan(evaluate())
    with pytest.raises(
        UserError, match="training.epochs: ends before the density 0.5 is reached: give more rows"
    ):
        method.finish(model)
    model.pruner.progress = 0.4
    assert evaluate() == 0.5


@pytest.mark.parametrize(
    "line, words",
    [
        ({"density": 1}, "grain.density: 1 must be a number between 0 and 1"),
        ({"smoothing": "x"}, "grain.smoothing: 'x' must be a number between 0 and 1"),
        ({"begin": 0.5}, "grain.begin: 0.5 and end=0.4 must be fractions of the steps"),
        ({"end": 1}, "grain.begin: 0.2 and end=1 must be fractions of the steps"),
        ({"structure": -1}, "grain.structure: -1 must be a number from 0"),
        ({"embedding_rank": 1.5}, "grain.embedding_rank: 1.5 must be a whole number from 0"),
        ({"scores": "loss"}, "grain.scores: 'loss' must be logits or all or random"),
        ({"units": "heads"}, "grain.units: 'heads' must be all or feed_forward"),
        ({"units": "feed_forward", "embedding_rank": 4}, "embedding_rank: 4 makes factors, which stock BERT does not hold"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_told(line, words):
    with pytest.raises(UserError, match=words) as error:
        build_method({"grain": line})
    assert "\n" not in str(error.value)


def test_what_cannot_be_pruned_is_refused():
    logits, bert = CaptureSpec(logits=True), tiny_config()
    build_method("grain").check(task(), bert, logits)
    for line, config, spec, words in (
        ({}, tiny_config("electra"), logits, "method: a electra is not of the kind that grain prunes; give a student of bert"),
        ({}, bert, CaptureSpec(hidden=frozenset([1])), "losses: grain scores units by losses on the teacher's logits"),
        ({"embedding_rank": 16}, bert, logits, "grain.embedding_rank: 16 must be below the width, 16"),
        ({"units": "feed_forward", "density": 0.4}, bert, logits, "density: 0.4 is out of reach .*give 0.520 or more"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            build_method({"grain": line}).check(task(), config, spec)
    build_method({"grain": {"units": "feed_forward", "density": 0.52}}).check(task(), bert, logits)
    plan = StageToCheck(
        "student", "task", 32, 1, 8, losses=["soft_labels"], student={"layers": 0}, method="grain", patience=3
    )
    with pytest.raises(
        UserError, match="training.patience: 3 may end the training before the units are gone"
    ):
        check_plan(plan, Models(None, bert, bert), task())
    stage = SimpleNamespace(options={}, inputs={})
    with pytest.raises(UserError, match="student.init: begins as a student that is pruned already"):
        begin_with(a_bert(), stage)


def begin_with(student, stage):
    """The method's `begin` where the plain one gives this student."""
    method = build_method("grain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.methods.base.Method.begin", lambda *_: (student, None))
        return method.begin(stage, task())
