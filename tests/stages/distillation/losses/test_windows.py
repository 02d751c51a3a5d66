"""Layers that attend to a window only (ModernBERT): losses compare what is attended to, students have the same kinds."""

import copy

import pytest
import torch
from transformers import AutoModel, ModernBertConfig

from stages.distillation import capture
from stages.distillation.layer_maps import attention_window
from stages.distillation.losses import AttentionMaps, AttentionScores
from stages.distillation.losses.attention import attended, log_softmax
from stages.distillation.students.architecture import random_student, student_config

LENGTHS = [9, 4]
TEACHER = ModernBertConfig(
    vocab_size=40, hidden_size=8, intermediate_size=12, num_hidden_layers=6, num_attention_heads=2, local_attention=4,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
)  # fmt: skip
KINDS = ["full_attention", *["sliding_attention"] * 2] * 2


def inputs() -> dict[str, torch.Tensor]:
    mask_BL = torch.tensor([[int(i < n) for i in range(max(LENGTHS))] for n in LENGTHS])
    return {
        "input_ids": torch.arange(3, 3 + mask_BL.numel()).view_as(mask_BL) * mask_BL,
        "attention_mask": mask_BL,
    }


@pytest.fixture(scope="module")
def models():
    teacher = random_student(copy.deepcopy(TEACHER), seed=1).eval()
    student = random_student(student_config(TEACHER, layers=3, dropout=0.0), seed=2).eval()
    return student, teacher


def test_a_window_is_the_models_own(models):
    """Its probabilities of attention, read from the model, are those of its queries and keys within the window."""
    _, teacher = models
    assert TEACHER.layer_types == KINDS
    eager = AutoModel.from_config(copy.deepcopy(TEACHER), attn_implementation="eager").eval()
    eager.load_state_dict(teacher.state_dict())
    loss = AttentionScores(TEACHER, TEACHER)
    with capture(teacher, loss, side="teacher") as outputs, torch.no_grad():
        teacher(**inputs())
        expected = eager(**inputs(), output_attentions=True).attentions
    mask_BL = inputs()["attention_mask"]
    for layer in range(1, 7):
        window = attention_window(TEACHER, layer)
        assert window == (None if layer in (1, 4) else 2)
        maps = log_softmax(outputs.attention_scores(layer), attended(mask_BL, window)).exp()
        for row, n in enumerate(LENGTHS):
            torch.testing.assert_close(maps[row, :, :n, :n], expected[layer - 1][row, :, :n, :n])


@pytest.mark.parametrize("form", ["maps", "traces", "auto"])
def test_scores_are_compared_where_both_layers_attend(models, form):
    student, teacher = models
    loss = AttentionScores(student.config, teacher.config, form=form)
    with capture(student, loss, side="student") as s, capture(teacher, loss, side="teacher") as t:
        student(**inputs())
        with torch.no_grad():
            teacher(**inputs())
    got = loss(s, t, attention_mask=inputs()["attention_mask"])
    expected, pairs = 0.0, 0
    for mine, theirs in {1: 2, 2: 4, 3: 6}.items():
        for row, n in enumerate(LENGTHS):
            for i in range(n):
                for j in range(n):
                    if theirs == 4 or abs(i - j) <= 2:
                        a, b = s.queries_BHLD[mine][row, :, i], s.keys_BHLD[mine][row, :, j]
                        c, d = t.queries_BHLD[theirs][row, :, i], t.keys_BHLD[theirs][row, :, j]
                        expected = expected + (((a * b).sum(-1) - (c * d).sum(-1)) / 2).square().sum()
                        pairs += 1
    assert pairs < 3 * sum(n * n for n in LENGTHS)
    torch.testing.assert_close(got, expected / (2 * sum(n * n for n in LENGTHS)))
    weight = student.get_input_embeddings().weight
    found, plain = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (got, expected))
    torch.testing.assert_close(found, plain / (2 * sum(n * n for n in LENGTHS)))


def test_what_lies_outside_of_a_window_changes_no_maps_loss(models):
    student, teacher = models
    loss = AttentionMaps(student.config, teacher.config, layer_map=[2, 4, 6], distance="kl")
    with (
        capture(student, loss, side="student") as s,
        capture(teacher, loss, side="teacher") as t,
        torch.no_grad(),
    ):
        student(**inputs()), teacher(**inputs())
    mask_BL = inputs()["attention_mask"]
    before = loss(s, t, attention_mask=mask_BL)
    loss.layers = {1: 2}
    local = loss(s, t, attention_mask=mask_BL)
    t.keys_BHLD[2][0, :, 8] += 5.0  # read by tokens 6 to 8 alone
    changed = loss(s, t, attention_mask=mask_BL)
    assert local != changed and torch.isfinite(before)
    s.queries_BHLD[1][0, :, 6:] = t.queries_BHLD[2][0, :, 6:] = 0.0  # which now attend alike
    same = loss(s, t, attention_mask=mask_BL)
    t.keys_BHLD[2][0, :, 8] += 5.0
    assert torch.equal(loss(s, t, attention_mask=mask_BL), same)


@pytest.mark.parametrize(
    ("layers", "which", "full"),
    [
        (3, "uniform", [2]),
        (3, "first", [1]),
        (3, "last", [1]),
        (2, [1, 2], [1]),
        (2, [3, 4], [2]),
        (4, "uniform", [1, 3]),
    ],
    ids=str,
)
def test_a_student_has_the_kinds_of_attention_of_the_layers_it_learns_from(layers, which, full):
    """Four layers spread over six are 1, 3, 4 and 6."""
    kinds = student_config(TEACHER, layers, which=which).layer_types
    assert [i for i, kind in enumerate(kinds, start=1) if kind == "full_attention"] == full
    assert student_config(TEACHER, 6).layer_types == KINDS
