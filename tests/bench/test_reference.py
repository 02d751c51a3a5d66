"""The reference of `make bench` computes what the project's losses compute, on batches without padding."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from stages.distillation.losses.attention import AttentionScores
from stages.distillation.losses.hidden import HiddenStates
from stages.distillation.losses.prediction import SoftLabels
from stages.distillation.outputs import ATTENTION, CaptureSpec, read
from stages.tasks.batches import Batch, normalizers
from tests.bench.reference import PUBLISHED, STOCK, GPUReference, Reference, run_classifier

ROWS, LENGTH, CLASSES = 3, 11, 3


def model(layers: int, width: int, attention: str) -> BertForSequenceClassification:
    torch.manual_seed(layers)
    config = BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=16, num_labels=CLASSES, attn_implementation=attention,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def batch() -> Batch:
    ids = torch.randint(5, 50, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    types = (torch.arange(LENGTH) > 6).long().expand_as(ids)
    return Batch(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types},
        None,
        torch.ones(ROWS),
        torch.arange(ROWS),
    )


def losses_and_gradients(predicts: bool):
    """Of the reference and of ours, on the same weights: [(loss, {parameter: gradient})] * 2."""
    plain = Reference(model(4, 16, "eager"), model(2, 8, "eager"), predicts, mended=True)
    plain.student.eval()
    rows = batch()
    plain_loss = plain.loss(rows.input_ids, rows.attention_mask, rows.inputs["token_type_ids"])
    plain_loss.backward()

    pair = (model(2, 8, ATTENTION).config, model(4, 16, ATTENTION).config)
    losses = [SoftLabels()] if predicts else [HiddenStates(*pair), AttentionScores(*pair)]
    if not predicts:
        losses[0].projections.load_state_dict(plain.projections.state_dict())
    student, teacher = model(2, 8, ATTENTION), model(4, 16, ATTENTION)
    needs, targets_needs = CaptureSpec(), CaptureSpec()
    for loss in losses:
        needs, targets_needs = needs | loss.student_capture, targets_needs | loss.teacher_capture
    with torch.no_grad():
        targets = read(teacher, rows, targets_needs, "teacher")
    view, total = read(student, rows, needs), normalizers([LENGTH] * ROWS)
    ours = sum(
        term.sum / total[term.normalizer]
        for loss in losses
        for term in loss.terms(view, targets, rows).values()
    )
    ours.backward()
    mine = {name: p.grad for name, p in student.named_parameters()}
    theirs = {name: p.grad for name, p in plain.student.named_parameters()}
    if not predicts:
        mine |= {f"projection.{name}": p.grad for name, p in losses[0].named_parameters()}
        theirs |= {
            f"projection.projections.{name}": p.grad for name, p in plain.projections.named_parameters()
        }
    return (plain_loss, theirs), (ours, mine)


def test_layer_losses_and_their_gradients_are_equal():
    plain, ours = losses_and_gradients(predicts=False)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-7)
    assert plain[1]["bert.embeddings.word_embeddings.weight"].abs().sum() > 0


def test_the_published_prediction_loss_is_ours_over_the_number_of_classes():
    (plain, plain_gradients), (ours, gradients) = losses_and_gradients(predicts=True)
    torch.testing.assert_close(ours, plain * CLASSES, rtol=1e-5, atol=0)
    scaled = {name: g if g is None else g * CLASSES for name, g in plain_gradients.items()}
    torch.testing.assert_close(gradients, scaled, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("functions", [PUBLISHED, STOCK])
def test_the_reference_runs_a_stock_model_with_padding(functions):
    stock, rows = model(4, 16, "eager"), batch()
    mask = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [6], [2]])).long()
    with torch.no_grad():
        scores, hidden, logits = run_classifier(
            stock, rows.input_ids, mask, rows.inputs["token_type_ids"], **functions
        )
        expected = stock(rows.input_ids, mask, rows.inputs["token_type_ids"], output_hidden_states=True)
    torch.testing.assert_close(logits, expected.logits)
    for mine, theirs in zip(hidden, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine * mask[:, :, None], theirs * mask[:, :, None])
    assert len(scores) == 4
    assert (scores[0][1, :, :, 6:] < -9000).all()


def test_a_step_lowers_the_loss():
    plain, rows = (
        Reference(model(4, 16, "eager"), model(2, 8, "eager"), mended=True, learning_rate=1e-2),
        batch(),
    )
    steps = [plain.step(rows.input_ids, rows.attention_mask, rows.inputs["token_type_ids"]) for _ in range(8)]
    assert steps[-1] < steps[0]


@pytest.mark.parametrize("predicts", [True, False])
def test_the_reference_on_gpus_computes_the_same_in_bf16(predicts):
    plain = Reference(model(4, 16, "eager"), model(2, 8, "eager"), predicts, mended=True)
    good = GPUReference(model(4, 16, "sdpa"), model(2, 8, "sdpa"), predicts)
    good.projections.load_state_dict(plain.projections.state_dict())
    plain.student.eval(), good.student.eval()
    rows = batch()
    given = rows.input_ids, rows.attention_mask, rows.inputs["token_type_ids"]
    expected = plain.loss(*given).item()
    assert good.loss(*given).item() == pytest.approx(expected, rel=0.02)
    padded = [torch.nn.functional.pad(x, (0, 3)) for x in given]
    assert good.loss(*padded).item() == pytest.approx(expected, rel=0.02)
    good.step(*given)
