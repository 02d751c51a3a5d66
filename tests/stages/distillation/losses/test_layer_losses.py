"""Every loss against a plain reference, written separately: loops over rows, layers, heads and positions."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from checkpoints.errors import UserError
from stages.distillation.layer_maps import layer_map
from stages.distillation.losses.attention import (
    AttentionScores,
    score_distance_by_maps,
    score_distance_by_traces,
)
from stages.distillation.losses.hidden import HiddenStates
from stages.distillation.losses.prediction import GoldLabels, SoftLabels
from stages.distillation.outputs import ModelOutputs
from stages.tasks.batches import Batch, normalizers

LENGTHS = [5, 2, 7]


def batch_of(lengths, padded, weight=None, labels=None):
    mask = torch.tensor([[int(i < n) for i in range(padded)] for n in lengths])
    weight = torch.ones(len(lengths)) if weight is None else torch.tensor(weight)
    rows = torch.arange(len(lengths))
    return Batch(
        {
            "input_ids": torch.zeros_like(mask),
            "attention_mask": mask,
            "token_type_ids": torch.zeros_like(mask),
        },
        labels,
        weight,
        rows,
    )


def views(heads_s, heads_t, padded=7, width_s=8, width_t=12, layers=3, seed=0):
    """Random views; what stands at padded positions is large, so that a leak would show."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        x = torch.full((len(LENGTHS), *shape), 77.0)
        for row, n in enumerate(LENGTHS):
            place = (row, slice(0, n)) if len(shape) == 2 else (row, slice(None), slice(0, n))
            x[place] = torch.randn(x[place].shape, generator=generator)
        return x

    def view(heads, width):
        d = width // heads
        hidden = {i: draw(padded, width) for i in range(layers + 1)}
        queries, keys = ({i: draw(heads, padded, d) for i in range(1, layers + 1)} for _ in range(2))
        return ModelOutputs(None, hidden, queries, keys)

    return view(heads_s, width_s), view(heads_t, width_t), batch_of(LENGTHS, padded)


def pair(student_layers, teacher_layers=3, widths=(8, 12), heads=(2, 2)):
    """Configs of a student and a teacher, as far as losses read them."""
    sizes = ((student_layers, widths[0], heads[0]), (teacher_layers, widths[1], heads[1]))
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    return tuple(SimpleNamespace(**dict(zip(names, size, strict=True))) for size in sizes)


def value(terms, lengths=LENGTHS):
    total = normalizers(np.array(lengths))
    return sum(term.weight * term.sum / total[term.normalizer] for term in terms.values())


@pytest.mark.parametrize("shared", [False, True])
def test_hidden_states_equal_the_plain_reference(shared):
    student, teacher, batch = views(2, 2)
    layers = {0: 0, 1: 2, 2: 3}
    loss = HiddenStates(*pair(2), [2, 3], projection="shared" if shared else "per_layer")
    expected = 0.0
    for i, (s, t) in enumerate(layers.items()):
        projection = loss.projections[0 if shared else i]
        for row, n in enumerate(LENGTHS):
            for position in range(n):
                h = projection.weight @ student.hidden_BLW[s][row, position] + projection.bias
                expected += ((h - teacher.hidden_BLW[t][row, position]) ** 2).sum() / (12 * sum(LENGTHS))
    torch.testing.assert_close(value(loss.terms(student, teacher, batch)), expected, rtol=1e-5, atol=0)
    assert len(list(loss.projections)) == (1 if shared else 3)


@pytest.mark.parametrize("form", ["maps", "traces", "auto"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (2, 3)], ids=str)
def test_attention_scores_equal_the_plain_reference(heads, form):
    heads_s, heads_t = heads
    student, teacher, batch = views(heads_s, heads_t)
    relation = math.gcd(heads_s, heads_t)
    expected = 0.0

    def split(x, row, n):  # (H, L, D) -> n rows of concatenated heads -> relation heads
        flat = torch.cat([x[row, head, :n] for head in range(x.shape[1])], dim=-1)
        return flat.chunk(relation, dim=-1)

    for s, t in ((1, 1), (2, 3)):
        for row, n in enumerate(LENGTHS):
            for head in range(relation):
                maps = []
                for view, layer in ((student, s), (teacher, t)):
                    q = split(view.queries_BHLD[layer], row, n)[head]
                    k = split(view.keys_BHLD[layer], row, n)[head]
                    maps.append(q @ k.T / math.sqrt(q.shape[-1]))
                expected += ((maps[0] - maps[1]) ** 2).sum() / (relation * sum(m * m for m in LENGTHS))
    got = value(AttentionScores(*pair(2, heads=heads), [1, 3], form=form).terms(student, teacher, batch))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


def test_trace_form_has_the_gradient_of_the_map_form():
    gradients = []
    for form in ("maps", "traces"):
        student, teacher, batch = views(2, 2)
        leaves = [x.requires_grad_() for x in (*student.queries_BHLD.values(), *student.keys_BHLD.values())]
        value(AttentionScores(*pair(3), form=form).terms(student, teacher, batch)).backward()
        gradients.append([x.grad for x in leaves])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("length", [8, 32, 128, 512, 2048])
def test_trace_form_equals_the_map_form_at_any_length_with_padding(length):
    lengths, heads = [length, length // 3 + 1], 2
    batch = batch_of(lengths, length)
    generator = torch.Generator().manual_seed(length)
    teacher, student = (
        [torch.randn(len(lengths), heads, length, d, generator=generator) for _ in range(2)] for d in (64, 26)
    )
    found = []
    for form in ("maps", "traces"):
        q, k = (x.clone().requires_grad_() for x in student)
        mine = ModelOutputs(None, {}, {1: q}, {1: k})
        theirs = ModelOutputs(None, {}, {1: teacher[0]}, {1: teacher[1]})
        loss = value(
            AttentionScores(*pair(1, 1, heads=(heads, heads)), form=form).terms(mine, theirs, batch), lengths
        )
        loss.backward()
        found.append((loss.detach(), q.grad, k.grad))
    for maps, traces in zip(*found, strict=True):
        assert (maps - traces).norm() <= 1e-5 * maps.norm()
    assert found[1][1][1, :, lengths[1] :].count_nonzero() == 0  # padded positions get no gradient


@pytest.mark.parametrize("padded", [9, 40])
def test_padding_and_rows_of_weight_zero_change_nothing(padded):
    student, teacher, batch = views(2, 2)
    losses = [HiddenStates(*pair(1), [1]), AttentionScores(*pair(1), [1])]
    before = [value(o.terms(student, teacher, batch)) for o in losses]
    longer, further, wide = views(2, 2, padded)
    extra = batch_of([*LENGTHS, 4], padded, [1.0, 1.0, 1.0, 0.0])

    def filled(view):
        def more(x):
            return torch.cat([x, 5 * torch.ones_like(x[:1])])

        copy = ModelOutputs()
        copy.hidden_BLW = {i: more(x) for i, x in view.hidden_BLW.items()}
        copy.queries_BHLD = {i: more(x) for i, x in view.queries_BHLD.items()}
        copy.keys_BHLD = {i: more(x) for i, x in view.keys_BHLD.items()}
        return copy

    after = [value(o.terms(longer, further, wide)) for o in losses]
    with_filler = [value(o.terms(filled(longer), filled(further), extra)) for o in losses]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=0)
    torch.testing.assert_close(with_filler, before, rtol=1e-5, atol=0)


def test_soft_labels_equal_the_plain_reference_and_are_not_divided_by_the_classes():
    z_s, z_t = torch.randn(4, 3), torch.randn(4, 3)
    batch = batch_of([3, 3, 3, 3], 3, [1.0, 1.0, 0.0, 1.0])
    expected = 0.0
    for row in (0, 1, 3):
        p = [math.exp(z / 2.0) for z in z_t[row].tolist()]
        q = [math.exp(z / 2.0) for z in z_s[row].tolist()]
        expected -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True)) / 3
    terms = SoftLabels(2.0).terms(ModelOutputs(z_s), ModelOutputs(z_t), batch)
    assert value(terms, [3, 3, 3]).item() == pytest.approx(expected, rel=1e-5)


def test_gold_labels_of_classes_and_of_scores():
    z = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    batch = batch_of([2, 2], 2, labels=torch.tensor([0, 0]))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert value(GoldLabels().terms(ModelOutputs(z), None, batch), [2, 2]).item() == pytest.approx(
        expected, rel=1e-5
    )
    scores = batch_of([2, 2], 2, labels=torch.tensor([1.0, 3.0]))
    got = value(GoldLabels().terms(ModelOutputs(torch.tensor([[2.0], [2.5]])), None, scores), [2, 2])
    assert got.item() == pytest.approx((1 + 0.25) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_scores_in_a_column_are_scores_unless_the_task_has_several_labels(dtype):
    outputs, labels = ModelOutputs(torch.tensor([[2.0], [2.5], [0.0]])), torch.tensor([1, 3, 1], dtype=dtype)
    got = GoldLabels()(outputs, labels=labels[:, None])
    assert got == GoldLabels()(outputs, labels=labels) == (1 + 0.25 + 1) / 3
    sets = GoldLabels(problem_type="multi_label_classification")
    held = torch.tensor([[1.0], [0.0], [1.0]])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, held)
    torch.testing.assert_close(sets(outputs, labels=held), plain)


def test_layer_maps():
    assert layer_map("uniform", 3, 6) == {0: 0, 1: 2, 2: 4, 3: 6}
    assert layer_map("last", 3, 6) == {0: 0, 1: 4, 2: 5, 3: 6}
    assert layer_map("first", 2, 6) == {0: 0, 1: 1, 2: 2}
    assert layer_map([3, 6], 2, 6) == {0: 0, 1: 3, 2: 6}
    from checkpoints.errors import UserError

    for kind, m, n, words in (
        ("uniform", 4, 6, "1, 2, 3, 6"),
        ("last", 7, 6, "layers: the student has 7"),
        ([3, 9], 2, 6, "from 1 to 6"),
        ([3], 2, 6, "2 teacher layers"),
        ("unform", 2, 6, "'unform' must be 2 teacher layers, each from 1 to 6, or uniform, last or first"),
        ({1: 3, 2: 6}, 2, 6, "is not a map; give uniform, last, first or a list of 2 teacher layers"),
        (None, 2, 6, "None is not a map"),
    ):
        with pytest.raises(UserError, match=words):
            layer_map(kind, m, n)


@pytest.mark.parametrize("listed", [[True, 2], [1, False], [1.0, 2], ["1", 2]])
def test_a_layer_is_a_whole_number(listed):
    with pytest.raises(UserError, match="layer_map: .*must be 2 teacher layers"):
        layer_map(listed, 2, 4)


def test_the_trace_form_is_never_below_zero_where_student_and_teacher_are_equal():
    torch.manual_seed(0)
    for _ in range(20):
        q, k = (100 * torch.randn(2, 4, 16, 8) for _ in range(2))
        mine = [x.clone().requires_grad_() for x in (q, k)]
        total = score_distance_by_traces(*mine, q, k)
        assert total >= 0
        total.backward()
        assert all(x.grad.isfinite().all() for x in mine)
    far = [x.clone().requires_grad_() for x in (q, k)]
    score_distance_by_traces(*far, -q, k).backward()  # where nothing cancels the gradient is that of the maps
    maps = [x.clone().requires_grad_() for x in (q, k)]
    score_distance_by_maps(*maps, -q, k).backward()
    for one, other in zip(far, maps, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=0.1)
