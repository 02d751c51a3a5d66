"""What every loss of the registry has in common: how it counts the rows of a batch."""

from dataclasses import fields, replace

import pytest
import torch
from transformers import DeiTConfig

from checkpoints.errors import UserError
from stages.distillation.losses import LOSSES, CandidateScores, ImageFrames, TypedRelations, build
from stages.distillation.losses.base import Loss
from stages.distillation.outputs import ModelOutputs
from stages.distillation.students.graph_networks import RGCNConfig
from stages.distillation.students.strips import StripOracleConfig
from stages.tasks.batches import Batch
from tests.stages.distillation.losses.test_layer_losses import pair

SETTINGS = {
    "adversary": ({"between": "branches", "weight": 0.5},),
    "attention_maps": ({"distance": "mse"}, {"distance": "kl"}),
    "attention_scores": ({"form": "maps"}, {"form": "traces"}),
    "continuation": ({"phi": 0.5, "margin": 0.1},),
    "contrastive_vectors": ({"queue": 0, "scale": 9.0},),
    "each_head": (
        {"losses": ["gold_labels"]},
        {"losses": ["soft_labels", {"matched_logits": {"weight": 2.0}}]},
    ),
    "distillation_token": ({"kind": "soft", "alpha": 0.3},),
    "hidden_states": ({"distance": "cosine"}, {"distance": "normalised"}),
    "peers": ({"temperature": 3.0},),
    "score_distributions": (
        {"layers": "random", "pairs": 2},
        {"layers": "last", "pairs": 3, "weighted": False},
    ),
    "relations": ({"of": "queries"}, {"of": "values"}),
    "soft_labels": ({"temperature": 3.0},),
    "typed_relations": ({"statistic": "edges"},),
}
"""Other settings than the defaults, where they choose another formula."""
LINES = [
    (name, given)
    for name in sorted(LOSSES)
    for given in (*[{}][: name != "each_head"], *SETTINGS.get(name, ()))
]


def each(lines: list):
    return pytest.mark.parametrize("name, given", lines, ids=lambda part: part if isinstance(part, str) else
                                   "-".join(map(str, part.values())) or "plain")  # fmt: skip


SAME_WHEN_REPEATED = each(
    [line for line in LINES if line[0] != "weighed_candidates"]
)  # weighs rows by the others
ROW_BY_ROW = each([line for line in LINES if not LOSSES[line[0]].whole_batch])
WHOLE_BATCH = each([line for line in LINES if LOSSES[line[0]].whole_batch])

LENGTHS = [5, 2, 7, 4]
MASKED = [(0, 1), (0, 3), (1, 1), (2, 0), (3, 2)]
"""(row, position) of the masked tokens, for losses on those."""
NODES = [4, max(LENGTHS) - 4]
EDGES = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 2, 3, 3], [4, 4, 5, 6, 5]])
"""A graph for losses on those: nodes of two types, and relation, source and target of its edges."""
DOUBLED = 0
"""The row that is repeated."""


def made(name: str, given: dict) -> Loss:
    torch.manual_seed(2)
    student, teacher = pair(3)
    own = {"distillation_token": DeiTConfig(), "image_frames": StripOracleConfig()}
    student = own.get(name, student)
    if name == "typed_relations":
        student = teacher = RGCNConfig(node_counts=NODES, num_hidden_layers=3)
    return build({name: given}, student, teacher, mlm_probability=0.25).eval()  # a queue stands still


def drawn(seed: int, width: int) -> ModelOutputs:
    """Random outputs of a model: all that a loss may read. Rows are long, so nothing but the mask tells their ends."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    rows, longest = len(LENGTHS), max(LENGTHS)
    hidden = {i: draw(rows, longest, width) for i in range(4)}
    heads = [{i: draw(rows, 2, longest, width // 2) for i in range(1, 4)} for _ in range(3)]
    outputs = ModelOutputs(draw(rows, 3), hidden, *heads, vocabulary_NV=draw(len(MASKED), 9))
    outputs.named = {name: draw(rows, 3) for name in ("cls_logits", "distillation_logits")}
    outputs.named["head_logits"] = draw(rows, 2, 3)
    outputs.named["features"] = draw(rows, 4, width)
    outputs.named |= {name: draw(rows, width) for name in ("first_BW", "second_BW")}
    outputs.named["image_logits"] = draw(rows, longest, 3)
    outputs.named["edges"] = EDGES.expand(rows, -1, -1)
    outputs.named["queries"] = draw(rows, 3, 2, width)
    outputs.named["passages"] = draw(rows, 2, 3, 2, width)
    return outputs


def given_to(loss: Loss) -> tuple[ModelOutputs, ModelOutputs, Batch]:
    """Outputs of student and teacher, and a batch."""
    student, teacher, batch = drawn(0, 8), drawn(1, 12), batch_for(loss)
    if isinstance(loss, ImageFrames):  # of strings: answers are the frames'
        student.logits_BC = student.named["image_logits"].detach().flip(0).requires_grad_()
        symbols = torch.tensor([[1, 2, -1], [2, 2, 1], [1, -1, -1], [2, -1, -1]])
        labels = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
        batch = replace(batch, labels=labels, inputs=batch.inputs | {"symbols": symbols})
    if isinstance(loss, CandidateScores):  # a score for each of a question's candidates
        for of in (student, teacher):
            of.logits_BC = of.named["image_logits"]
    if isinstance(loss, TypedRelations):  # of nodes: those of the first type have answers
        student.logits_BC, teacher.logits_BC = (
            of.named["image_logits"][:, : NODES[0]] for of in (teacher, student)
        )
        labels = torch.tensor([[0, -1, 1, 2], [2, 1, -1, 0], [-1, -1, 0, 1], [2, 2, 0, 1]])
        batch = replace(batch, labels=labels)
    return student, teacher, batch


def batch_for(loss: Loss) -> Batch:
    mask_BL = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    labels = torch.tensor([0, 2, 1, 2])
    if loss.student_capture.vocabulary:
        labels = torch.full(mask_BL.shape, -100)
        for place, (row, position) in enumerate(MASKED):
            labels[row, position] = place
    rows = torch.arange(len(LENGTHS))
    return Batch({"attention_mask": mask_BL.long()}, labels, torch.ones(len(LENGTHS)), rows)


def chosen(outputs: ModelOutputs, rows: list[int]) -> ModelOutputs:
    """The outputs of a batch of these rows."""
    masked = [place for row in rows for place, (of, _) in enumerate(MASKED) if of == row]
    found = {}
    for entry in fields(outputs):
        value = getattr(outputs, entry.name)
        places = masked if entry.name == "vocabulary_NV" else rows
        found[entry.name] = (
            {k: x[places] for k, x in value.items()} if isinstance(value, dict) else value[places]
        )
    return ModelOutputs(**found)


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    inputs = {name: x[rows] for name, x in batch.inputs.items()}
    return replace(
        batch, inputs=inputs, labels=batch.labels[rows], weight=batch.weight[rows], rows=batch.rows[rows]
    )


def gradients(student: ModelOutputs, sums: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of sums by each tensor that the loss reads of the student; its first axis is rows or masked tokens."""
    leaves = {}
    for entry in fields(student):
        value = getattr(student, entry.name)
        of = value if isinstance(value, dict) else {"": value}
        leaves |= {f"{entry.name} {key}": tensor for key, tensor in of.items() if tensor.requires_grad}
    values = torch.autograd.grad(sums, list(leaves.values()), allow_unused=True)
    found = {name: value.flatten(1) for name, value in zip(leaves, values, strict=True) if value is not None}
    assert found
    return found


def total(loss: Loss, student: ModelOutputs, teacher: ModelOutputs, batch: Batch) -> torch.Tensor:
    """The sums before any division: where a job of any batch size takes them up."""
    return sum(term.weight * term.sum for term in loss.terms(student, teacher, batch).values())


def split_rows(name: str, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What belongs to the row that is doubled, and what belongs to the others."""
    of = [row for row, _ in MASKED] if name.startswith("vocabulary") else range(len(LENGTHS))
    own = torch.tensor([row == DOUBLED for row in of])
    return gradient[own], gradient[~own]


@SAME_WHEN_REPEATED
def test_a_batch_that_is_repeated_has_the_same_loss(name, given):
    loss = made(name, given)
    student, teacher, batch = given_to(loss)
    twice = [*range(len(LENGTHS))] * 2
    longer = rows_of(batch, twice)
    once = loss(student, teacher, batch.attention_mask, batch.labels, batch.symbols)
    again = loss(
        chosen(student, twice), chosen(teacher, twice), longer.attention_mask, longer.labels, longer.symbols
    )
    assert once.item() > 0
    if loss.whole_batch:  # the copies of the negatives add a constant alone
        once, again = (torch.cat(list(gradients(student, mean).values()), 1) for mean in (once, again))
    torch.testing.assert_close(again, once, rtol=1e-5, atol=1e-6 * loss.whole_batch)


@ROW_BY_ROW
def test_a_row_that_counts_twice_has_twice_its_gradient_and_changes_no_other_rows(name, given):
    loss = made(name, given)
    student, teacher, batch = given_to(loss)
    before = gradients(student, total(loss, student, teacher, batch))
    rows = [*range(len(LENGTHS)), DOUBLED]
    again = total(loss, chosen(student, rows), chosen(teacher, rows), rows_of(batch, rows))
    for key, gradient in gradients(student, again).items():
        (own, others), (own_before, others_before) = split_rows(key, gradient), split_rows(key, before[key])
        assert own_before.abs().sum() > 0 and others_before.abs().sum() > 0
        torch.testing.assert_close(own, 2 * own_before, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(others, others_before, rtol=1e-4, atol=1e-6)


@ROW_BY_ROW
def test_a_row_of_weight_0_has_no_gradient_and_changes_no_other_rows(name, given):
    loss = made(name, given)
    if loss.student_capture.vocabulary:
        pytest.skip("a row of weight 0 has no masked tokens: test_masked.py")
    student, teacher, batch = given_to(loss)
    others_alone = [1, 2, 3]
    without = chosen(student, others_alone), chosen(teacher, others_alone), rows_of(batch, others_alone)
    before = gradients(student, total(loss, *without))
    fills = replace(batch, weight=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    for key, gradient in gradients(student, total(loss, student, teacher, fills)).items():
        own, others = split_rows(key, gradient)
        assert own.abs().sum() == 0
        torch.testing.assert_close(others, split_rows(key, before[key])[1], rtol=1e-4, atol=1e-6)


@WHOLE_BATCH
def test_the_weight_of_a_row_is_a_factor_of_its_own_loss_alone(name, given):
    loss = made(name, given)
    student, teacher, batch = given_to(loss)
    found = [
        gradients(
            student, total(loss, student, teacher, replace(batch, weight=torch.tensor([1.0, w, 1.0, 1.0])))
        )
        for w in (1.0, 2.0, 3.0)
    ]
    for key, once in found[0].items():
        own, again = found[1][key] - once, found[2][key] - found[1][key]
        assert own.abs().sum() > 0 and not torch.allclose(own, once)
        torch.testing.assert_close(again, own, rtol=1e-3, atol=1e-5)


@WHOLE_BATCH
def test_a_row_of_weight_0_is_not_in_the_batch(name, given):
    loss = made(name, given)
    student, teacher, batch = given_to(loss)
    fills = replace(batch, weight=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    rows = [1, 2, 3]
    without = gradients(
        student, total(loss, chosen(student, rows), chosen(teacher, rows), rows_of(batch, rows))
    )
    for key, gradient in gradients(student, total(loss, student, teacher, fills)).items():
        assert gradient[DOUBLED].abs().sum() == 0
        torch.testing.assert_close(gradient, without[key], rtol=1e-4, atol=1e-6)


def test_a_setting_without_a_default_must_be_given():
    with pytest.raises(UserError, match=r"losses.each_head: needs losses: write `- each_head: \{losses"):
        build("each_head", *pair(3))
