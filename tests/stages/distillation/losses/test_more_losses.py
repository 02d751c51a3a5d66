"""The losses of recipes against plain references: loops over rows, layers, heads and positions."""

import math

import pytest
import torch

from checkpoints.errors import UserError
from stages.distillation.losses import LOSSES, build
from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from tests.stages.distillation.losses.test_layer_losses import LENGTHS, batch_of, pair, value, views


def probabilities(scores):
    return [math.exp(x) / sum(math.exp(y) for y in scores) for x in scores]


def maps_of(view, layer, row, n, head):
    """Rows of attention probabilities over n real positions."""
    q, k = view.queries_BHLD[layer][row, head, :n], view.keys_BHLD[layer][row, head, :n]
    return [probabilities([float(a @ b) / math.sqrt(len(a)) for b in k]) for a in q]


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=str)
def test_attention_maps(distance, heads):
    student, teacher, batch = views(*heads)
    expected = 0.0
    for s, t in ((1, 1), (2, 3)):
        for row, n in enumerate(LENGTHS):
            mine = [maps_of(student, s, row, n, head) for head in range(heads[0])]
            theirs = [maps_of(teacher, t, row, n, head) for head in range(heads[1])]
            if heads[0] != heads[1]:
                mine, theirs = (
                    torch.tensor(m, dtype=torch.float64).mean(0)[None].tolist() for m in (mine, theirs)
                )
            for a, b in zip(mine, theirs, strict=True):
                for p, q in zip(sum(a, []), sum(b, []), strict=True):
                    if distance == "mse":
                        expected += (p - q) ** 2 / (len(mine) * sum(m * m for m in LENGTHS))
                    else:
                        expected += q * math.log(q / p) / (len(mine) * sum(LENGTHS))
    line = {"attention_maps": {"distance": distance, "layer_map": [1, 3]}}
    got = value(build(line, *pair(2, heads=heads)).terms(student, teacher, batch))
    assert got.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("of", ["queries", "keys", "values"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=str)
def test_relations(of, heads):
    student, teacher, batch = views(*heads)
    student.values_BHLD, teacher.values_BHLD = student.keys_BHLD, teacher.queries_BHLD
    relation, expected = math.gcd(*heads), 0.0

    def rows_of(view, layer, row, n):
        x = getattr(view, f"{of}_BHLD")[layer]
        flat = torch.cat([x[row, head, :n] for head in range(x.shape[1])], dim=-1)
        for part in flat.chunk(relation, dim=-1):
            yield [probabilities([float(a @ b) / math.sqrt(len(a)) for b in part]) for a in part]

    for s, t in ((1, 1), (2, 3)):
        for row, n in enumerate(LENGTHS):
            for mine, theirs in zip(rows_of(student, s, row, n), rows_of(teacher, t, row, n), strict=True):
                for p, q in zip(sum(mine, []), sum(theirs, []), strict=True):
                    expected += q * math.log(q / p) / (relation * sum(LENGTHS))
    got = value(
        build({"relations": {"of": of, "layer_map": [1, 3]}}, *pair(2, heads=heads)).terms(
            student, teacher, batch
        )
    )
    assert got.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("distance", ["cosine", "normalised"])
def test_hidden_states(distance):
    student, teacher, batch = views(2, 2)
    loss, expected = build({"hidden_states": {"distance": distance}}, *pair(3)), 0.0
    for i, projection in enumerate(loss.projections):
        for row, n in enumerate(LENGTHS):
            for position in range(n):
                h, t = projection(student.hidden_BLW[i][row, position]), teacher.hidden_BLW[i][row, position]
                if distance == "cosine":
                    expected += 1 - float(h @ t / (h.norm() * t.norm()))
                else:
                    expected += float(((h / h.norm() - t / t.norm()) ** 2).sum())
    got = value(loss.terms(student, teacher, batch))
    assert got.item() == pytest.approx(expected / sum(LENGTHS), rel=1e-4)


@torch.no_grad()
def test_gram():
    student, teacher, batch = views(2, 2)
    loss, expected = build("gram", *pair(3)), 0.0
    for a, b in ((0, 1), (1, 2), (2, 3)):
        for row, n in enumerate(LENGTHS):
            mine, theirs = (
                sum(torch.outer(of(view, a, row, i), of(view, b, row, i)) for i in range(n)) / n
                for view, of in (
                    (student, lambda v, i, r, p: loss.projections[i](v.hidden_BLW[i][r, p])),
                    (teacher, lambda v, i, r, p: v.hidden_BLW[i][r, p]),
                )
            )
            expected += float(((mine - theirs) ** 2).mean()) / len(LENGTHS)
    assert value(loss.terms(student, teacher, batch)).item() == pytest.approx(expected, rel=1e-4)


def answers(student, teacher):
    batch = batch_of([3, 3, 3], 3, [1.0, 1.0, 0.0])
    return (
        ModelOutputs(torch.tensor(student)),
        ModelOutputs(torch.tensor(teacher)),
        batch,
    )


STUDENT, TEACHER = [[1.0, -1.0], [0.5, 0.0], [9.0, 9.0]], [[2.0, 0.0], [0.0, 4.0], [0.0, 0.0]]


def test_matched_logits_and_continuation():
    given = answers(STUDENT, TEACHER)
    mean = ((1 + 1) / 2 + (0.25 + 16) / 2) / 2
    assert value(build("matched_logits", None, None).terms(*given), [3, 3]).item() == pytest.approx(mean)
    loss = build(
        {"continuation": {"phi": {"linear": [0, 1]}, "margin": 1.0, "weight": {"linear": [2, 0]}}}, None, None
    )
    loss.progress = 0.5
    #  phi 0.5: distances 0 + 1 and 0.25 + 4, less a margin of 0.5; weight 1
    assert value(loss.terms(*given), [3, 3]).item() == pytest.approx((0.5 + 3.75) / 2)
    loss.progress = 0.0  # phi 0, weight 2: the student's own squared logits
    assert value(loss.terms(*given), [3, 3]).item() == pytest.approx(2 * (2 + 0.25) / 2)
    assert loss.is_scheduled and not build("matched_logits", None, None).is_scheduled


def test_padding_and_rows_of_weight_zero_change_nothing():
    lines = [
        {"attention_maps": {}}, {"attention_maps": {"distance": "kl"}}, {"relations": {"of": "keys"}}, "gram",
        {"hidden_states": {"distance": "cosine"}}, {"hidden_states": {"distance": "normalised"}},
    ]  # fmt: skip
    made = [build(line, *pair(3)) for line in lines]
    student, teacher, batch = views(2, 2)
    before = [value(o.terms(student, teacher, batch)) for o in made]
    longer, further, wide = views(2, 2, 20)
    extra = batch_of([*LENGTHS, 4], 20, [1.0, 1.0, 1.0, 0.0])

    def filled(view):
        def more(of):
            return {i: torch.cat([x, 5 * torch.ones_like(x[:1])]) for i, x in of.items()}

        return ModelOutputs(None, more(view.hidden_BLW), more(view.queries_BHLD), more(view.keys_BHLD))

    torch.testing.assert_close(
        [value(o.terms(longer, further, wide)) for o in made], before, rtol=1e-4, atol=0
    )
    after = [value(o.terms(filled(longer), filled(further), extra)) for o in made]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=0)


class SameSign(Loss):
    """A loss of somebody else's."""

    student_capture = teacher_capture = CaptureSpec(logits=True)

    def __init__(self, margin=0.0, weight=1.0):
        super().__init__(weight)
        self.margin = margin

    def terms(self, student, teacher, batch):
        short = (self.margin - student.logits_BC * teacher.logits_BC.sign()).clamp(min=0).sum(-1)
        return {"same_sign": LossTerm((short * batch.weight).sum(), "rows", self.weight)}


def test_a_new_loss_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setitem(LOSSES, "same_sign", SameSign)
    loss = build({"same_sign": {"margin": 1.0}}, None, None)
    assert isinstance(loss.terms(*answers(STUDENT, TEACHER))["same_sign"], LossTerm)
    with pytest.raises(UserError, match="same_sign: .*must be among its settings: margin, weight"):
        build({"same_sign": {"margins": 1.0}}, None, None)


@pytest.mark.parametrize(
    "line, words",
    [
        ("soft_label", "losses: 'soft_label' is unknown; there are .*soft_labels"),
        (["soft_labels"], r"losses: \['soft_labels'\] is not `- name`"),
        ({"soft_labels": {"T": 2}}, "among its settings: temperature, weight"),
        ({"soft_labels": {"temperature": "hot"}}, "losses.soft_labels.temperature: 'hot' must be a number"),
        ({"relations": {"of": "heads"}}, "losses.relations.of: 'heads' must be queries or keys or values"),
        ({"hidden_states": {"layer_map": [1, 9, 2]}}, "losses.hidden_states.layer_map: .*from 1 to 3"),
    ],
)
def test_a_wrong_line_is_told(line, words):
    with pytest.raises(UserError, match=words):
        build(line, *pair(3))
