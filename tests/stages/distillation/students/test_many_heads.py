"""Students of one body and several heads: parts of a stock model, saved, counted, and taught head by head."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from checkpoints.errors import UserError
from stages.distillation.compatibility import forward_flops
from stages.distillation.losses import build
from stages.distillation.losses.each_head import EachHead
from stages.distillation.models import ModelSource, load_classifier, new_classifier
from stages.distillation.outputs import CaptureSpec, ModelOutputs, capture
from stages.distillation.students.architecture import student_config
from stages.distillation.students.many_heads import with_many_heads
from stages.methods import ManyHeads
from stages.tasks.kinds import Classes, Ranking
from tests.conftest import tiny_config

MASK = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])
IDS = torch.randint(5, 20, (2, 7), generator=torch.Generator().manual_seed(1)) * MASK


def stock(kind="bert", layers=3, labels=("a", "b", "c")):
    torch.manual_seed(0)
    config = tiny_config(kind)
    config.num_hidden_layers = layers
    return new_classifier(config, Classes(labels)).eval()


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_it_begins_as_the_stock_model_that_it_was(kind, tmp_path):
    whole = stock(kind)
    student = with_many_heads(whole, heads=3, layers=2).eval()
    theirs, found = whole(IDS, MASK).logits, student(IDS, MASK)
    torch.testing.assert_close(found.logits.softmax(-1), theirs.softmax(-1))
    assert found.head_logits.shape == (2, 3, 3)
    for k in range(3):
        torch.testing.assert_close(found.head_logits[:, k], theirs)
    # Its weights are the body's once and each head's; a change of a head moves that head alone.
    one = sum(p.numel() for p in with_many_heads(whole, 1, 2).parameters())
    two = sum(p.numel() for p in with_many_heads(whole, 2, 2).parameters())
    assert two - one == sum(p.numel() for p in student.heads[0].parameters())
    with torch.no_grad():
        for weight in student.heads[1].parameters():
            weight.add_(torch.randn(weight.shape))
    moved = student(IDS, MASK)
    assert torch.equal(moved.head_logits[:, 0], found.head_logits[:, 0])
    assert not torch.equal(moved.head_logits[:, 1], found.head_logits[:, 1])
    # The answer is the mean of the probabilities of the heads.
    torch.testing.assert_close(moved.logits.softmax(-1), moved.head_logits.softmax(-1).mean(1))
    student.save_pretrained(tmp_path)
    for capturing in (True, False):
        loaded = load_classifier(ModelSource(str(tmp_path)), capturing=capturing).eval()
        torch.testing.assert_close(loaded(IDS, MASK).head_logits, moved.head_logits)


def test_operations_are_those_of_the_body_once_and_of_every_head():
    whole = stock()
    student = with_many_heads(whole, heads=3, layers=1)
    with FlopCounterMode(display=False) as counter:
        student(torch.ones(1, 9, dtype=torch.long))
    assert forward_flops(student.config, 90, 9) == pytest.approx(10 * counter.get_total_flops())
    alone = forward_flops(whole.config, 9, 9)
    assert alone < forward_flops(student.config, 9, 9) < 3 * alone
    taught = ManyHeads(["teacher"], heads=3, layers=1).trained(whole.config)
    assert forward_flops(taught, 9, 9) == forward_flops(student.config, 9, 9)


def test_the_config_says_what_the_task_is():
    whole = stock(labels=("0", "1"))
    Ranking(("0", "1")).configure(whole.config)
    config = with_many_heads(whole, 2, 1).config
    assert config.ranking and config.id2label == {0: "0", 1: "1"} and config.num_labels == 2
    with pytest.raises(UserError, match="kind: 'many_heads' cannot be chosen; take the method many_heads"):
        student_config(tiny_config(), 0, kind="many_heads")


def test_each_head_learns_from_its_own_teacher_as_plain_loops_say():
    generator = torch.Generator().manual_seed(2)
    z_BKC, t_BKC = torch.randn(2, 5, 3, 4, generator=generator)
    gold = torch.tensor([0, 3, -1, 2, 1])
    lines = ["gold_labels", {"soft_labels": {"temperature": 2.0, "weight": 3.0}}]
    loss = build({"each_head": {"losses": lines, "weight": 0.5}}, stock().config, stock().config)
    total = 0.0
    for k in range(3):
        known = [b for b in range(5) if gold[b] >= 0]
        total += sum(-z_BKC[b, k].log_softmax(-1)[gold[b]] for b in known) / len(known)
        q, p = (t_BKC[:, k] / 2).softmax(-1), (z_BKC[:, k] / 2).log_softmax(-1)
        total += 3.0 * sum(-(q[b] * p[b]).sum() for b in range(5)) / 5
    outputs = ModelOutputs(named={"head_logits": z_BKC}), ModelOutputs(named={"head_logits": t_BKC})
    assert loss(*outputs, labels=gold).item() == pytest.approx(0.5 * float(total), rel=1e-5)


def test_a_head_gets_no_gradient_from_the_teacher_of_another():
    student = with_many_heads(stock(), heads=2, layers=1)
    loss = EachHead(["matched_logits"])
    with capture(student, loss) as outputs:
        student(IDS, MASK)
    other = outputs.named["head_logits"].detach().clone()
    other[:, 1] += 1.0
    loss(outputs, ModelOutputs(named={"head_logits": other}), MASK).backward()
    norms = [sum(float(p.grad.abs().sum()) for p in head.parameters()) for head in student.heads]
    assert norms[0] == 0 < norms[1]
    assert any(p.grad.abs().sum() > 0 for p in student.body.parameters())


def test_schedules_reach_the_losses_of_the_heads():
    loss = EachHead([{"gold_labels": {"weight": {"linear": [1, 0]}}}])
    assert loss.is_scheduled and loss.teacher_capture == CaptureSpec()
    outputs = ModelOutputs(named={"head_logits": torch.zeros(2, 1, 2)})
    loss.progress = 0.5
    assert loss(outputs, labels=torch.tensor([0, 1])).item() == pytest.approx(0.5 * 0.6931, rel=1e-3)


@pytest.mark.parametrize(
    "losses, words",
    [
        ([], "losses: .* must be a list of lines, of gold_labels, matched_logits, soft_labels"),
        (["hidden_states"], "losses: 'hidden_states' is unknown; there are gold_labels, matched_logits, soft_labels"),
    ],
)  # fmt: skip
def test_other_losses_are_refused(losses, words):
    with pytest.raises(UserError, match=words):
        build({"each_head": {"losses": losses}}, stock().config, stock().config)
