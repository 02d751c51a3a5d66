"""Capturing from stock models, in a context, without any state that another model would disturb."""

import contextlib
import copy

import pytest
import torch
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel, MPNetConfig, MPNetModel

from checkpoints.errors import UserError
from stages.distillation import CaptureSpec, capture
from stages.distillation.distillation import Distillation
from stages.distillation.losses import (
    LOSSES,
    AttentionScores,
    Continuation,
    GoldLabels,
    HiddenStates,
    MaskedSoftLabels,
    MaskedWords,
    MatchedLogits,
    SoftLabels,
)
from stages.distillation.outputs import ModelOutputs, read
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.batches import Batch, normalizers

SIZES = {"vocab_size": 30, "intermediate_size": 16, "max_position_embeddings": 32}


def bert(layers: int, width: int, seed: int = 0, **settings) -> BertModel:
    torch.manual_seed(seed)
    sizes = SIZES | {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2}
    return BertModel(BertConfig(**sizes, **settings)).eval()


@pytest.fixture
def student():
    return bert(2, 8, 1)


@pytest.fixture
def teacher():
    return bert(4, 12, 2)


@pytest.fixture
def batch():
    """Three rows, two of them padded."""
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 2 + [0] * 5])
    return {"input_ids": torch.randint(1, 30, (3, 7)) * mask, "attention_mask": mask}


def test_losses_of_stock_encoders_are_the_stages_own(student, teacher, batch):
    """The example of the docs, word for word, against the sums that a job divides."""
    losses = [AttentionScores(student.config, teacher.config), HiddenStates(student.config, teacher.config)]
    with (
        capture(student, losses, side="student") as s,
        capture(teacher, losses, side="teacher") as t,
    ):
        student(**batch)
        with torch.no_grad():
            teacher(**batch)
    value = sum(loss(s, t, attention_mask=batch["attention_mask"]) for loss in losses)
    value.backward()
    assert value.ndim == 0 and student.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert student.config._attn_implementation == "sdpa" and teacher.config._attn_implementation == "sdpa"

    rows = Batch(batch, None, torch.ones(3), torch.arange(3))
    total = normalizers(batch["attention_mask"].sum(1).numpy())
    expected = sum(
        term.weight * term.sum / total[term.normalizer]
        for loss in losses
        for term in loss.terms(
            read(student, rows, loss.student_capture), read(teacher, rows, loss.teacher_capture), rows
        ).values()
    )
    torch.testing.assert_close(value, expected)


def test_another_model_of_the_process_disturbs_nothing(student, batch):
    other = bert(2, 8, 3)
    spec = CaptureSpec(hidden=frozenset({2}), queries_keys=frozenset({1, 2}))
    with capture(student, spec) as alone:
        student(**batch)
    with capture(student, spec) as mine, capture(other, spec) as theirs:
        other(**batch)
        student(**batch)
        other(**batch)
    for name in ("hidden_BLW", "queries_BHLD", "keys_BHLD"):
        for layer, tensor in getattr(alone, name).items():
            assert torch.equal(getattr(mine, name)[layer], tensor), (name, layer)
            assert not torch.equal(getattr(theirs, name)[layer], tensor)
    student(**batch)
    assert torch.equal(mine.queries_BHLD[1], alone.queries_BHLD[1])  # the context is closed


def test_under_activation_checkpointing_values_and_gradients_are_the_same(teacher, batch):
    plain, checkpointed = bert(2, 8, 1).train(), bert(2, 8, 1).train()
    checkpointed.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    found = []
    for student in (plain, checkpointed):
        torch.manual_seed(0)
        loss = AttentionScores(student.config, teacher.config)
        with capture(student, loss) as s, capture(teacher, loss, "teacher") as t:
            student(**batch)
            with torch.no_grad():
                teacher(**batch)
            value = loss(s, t, attention_mask=batch["attention_mask"])
            value.backward()  # runs the layers again while the context is open
        found.append((value.detach(), student.encoder.layer[0].attention.self.query.weight.grad))
    torch.testing.assert_close(found[0], found[1])


def test_under_compile_every_pass_is_captured_anew(student, batch):
    compiled = torch.compile(student, backend="eager")
    spec = CaptureSpec(hidden=frozenset({0, 2}), queries_keys=frozenset({2}), values=frozenset({1}))
    for _ in range(2):
        batch = batch | {"input_ids": torch.randint(1, 30, (3, 7)) * batch["attention_mask"]}
        with capture(student, spec) as expected:
            student(**batch)
        with capture(compiled, spec) as found:
            compiled(**batch)
        for name in ("hidden_BLW", "queries_BHLD", "keys_BHLD", "values_BHLD"):
            assert getattr(found, name).keys() == getattr(expected, name).keys()
            for layer, tensor in getattr(expected, name).items():
                torch.testing.assert_close(getattr(found, name)[layer], tensor)


def test_a_compiled_distillation_gives_the_same_losses_and_gradients(student, teacher, batch):
    configs = student.config, teacher.config
    plain = Distillation(student, [HiddenStates(*configs), AttentionScores(*configs)])
    compiled = copy.deepcopy(plain)
    frozen = FrozenTeacher(teacher, plain.teacher_capture, torch.device("cpu"))

    def draw():
        ids = torch.randint(1, 30, (3, 7)) * batch["attention_mask"]
        return Batch(batch | {"input_ids": ids}, None, torch.ones(3), torch.arange(3))

    rows = draw()
    compiled(rows, frozen(rows))  # as a job does: transformers sets up its hooks in the first pass
    compiled.compile(backend="eager", dynamic=False, fullgraph=True)  # of one piece
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            rows, found = draw(), []
            for model in (plain, compiled):
                model.zero_grad()
                terms = model(rows, frozen(rows))
                sum(term.sum for term in terms.values()).backward()
                found.append([*(term.sum for term in terms.values()), *(p.grad for p in model.parameters())])
            torch.testing.assert_close(*found)
            stack.enter_context(torch.compiler.set_stance("fail_on_recompile"))  # the first pass compiled all


def test_the_layers_of_a_shared_module_are_told_apart(batch):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "embedding_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = AlbertModel(AlbertConfig(**SIZES, **sizes)).eval()
    for _ in range(2):
        with capture(model, CaptureSpec(queries_keys=frozenset({1, 3}))) as outputs:
            model(**batch)
            model(**batch)
        assert outputs.queries_BHLD.keys() == {1, 3}
        assert not torch.equal(outputs.queries_BHLD[1], outputs.queries_BHLD[3])


def test_a_wrapped_model_shows_what_the_model_does_and_captures_nest(student, batch):
    whole, part = CaptureSpec(queries_keys=frozenset({1, 2})), CaptureSpec(queries_keys=frozenset({2}))
    former = student.config._attn_implementation
    with capture(student, whole, side="student") as alone:
        student(**batch)
    wrapped = torch.nn.Sequential()
    wrapped.inner, wrapped.forward = student, student.forward
    with capture(wrapped, whole, side="student") as outer, capture(student, part, side="student") as inner:
        wrapped(**batch)
        assert not inner.queries_BHLD or inner.queries_BHLD.keys() == {2}
    assert outer.queries_BHLD.keys() == {1, 2}
    torch.testing.assert_close(outer.queries_BHLD[2], alone.queries_BHLD[2], rtol=0, atol=0)
    assert student.config._attn_implementation == former
    assert not any("_capture" in module.__dict__ for module in student.modules())


def test_of_two_encoders_in_a_module_none_is_taken_for_the_other(student, teacher, batch):
    both = torch.nn.ModuleDict({"student": student, "teacher": teacher})
    both.forward = teacher.forward
    with (
        pytest.raises(ValueError, match="does not show the attention"),
        capture(both, CaptureSpec(queries_keys=frozenset({1}))),
    ):
        both(**batch)


def test_a_student_may_run_a_part_without_gradients(student, batch):
    with capture(student, CaptureSpec(queries_keys=frozenset({1}))) as outputs:
        frozen = student.encoder.layer[0]
        run = frozen.forward
        frozen.forward = lambda *args, **kwargs: torch.no_grad()(run)(*args, **kwargs)
        student(**batch)
    assert outputs.queries_BHLD.keys() == {1}


def test_checkpointing_that_hides_the_gradient_is_refused(student, batch):
    student.train()
    student.gradient_checkpointing_enable({"use_reentrant": True})
    student.get_input_embeddings().register_forward_hook(
        lambda module, given, output: output.requires_grad_()
    )
    with (
        pytest.raises(UserError, match="use_reentrant=True hides the attention's gradient"),
        capture(student, CaptureSpec(queries_keys=frozenset({1})), side="student"),
    ):
        student(**batch)


def test_mistakes_in_a_loop_of_ones_own_are_one_line(student, batch):
    outputs = ModelOutputs(logits_BC=torch.zeros(2, 3))
    with capture(student, CaptureSpec(queries_keys=frozenset({1, 2}))) as shown:
        student(**batch)
    for call, message in (
        (
            lambda: SoftLabels()(outputs),
            "the teacher's outputs lack logits, which SoftLabels reads; run the teacher",
        ),
        (lambda: SoftLabels()(ModelOutputs(), outputs), "the student's outputs lack logits"),
        (
            lambda: SoftLabels()(outputs, ModelOutputs(logits_BC=torch.zeros(2, 2))),
            r"logits are \(2, 3\), the teacher's",
        ),
        (
            lambda: AttentionScores(student.config, student.config)(shown, shown),
            "attention_mask: None; a loss on tokens",
        ),
        (lambda: GoldLabels()(outputs), "labels: None; a loss on gold labels needs them"),
        (lambda: capture(student, SoftLabels, side="student").__enter__(), "SoftLabels'> is not a loss"),
        (lambda: capture(student, SoftLabels(), side="both").__enter__(), "side: 'both' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    "loss", [SoftLabels(), MatchedLogits(), Continuation()], ids=lambda x: type(x).__name__
)
def test_what_torch_would_repeat_is_refused(loss):
    """Of one row, class or label torch makes as many as there are on the other side, and the value is of no use."""
    words = ModelOutputs(torch.zeros(4, 4, 3))
    mask = torch.ones(4, 4)
    for student, teacher, given, message in (
        ((4, 3), (4, 1), {}, r"logits are \(4, 3\), the teacher's \(4, 1\)"),
        ((4, 1), (4, 3), {}, r"logits are \(4, 1\), the teacher's \(4, 3\)"),
        (
            (4, 3),
            (1, 3),
            {},
            "rows differ: 4 in the student's outputs, 1 in the teacher's outputs; give all of the same",
        ),
        ((4, 3), (4, 3), {"attention_mask": mask[:1]}, "4 in the teacher's outputs, 1 in attention_mask"),
        ((4, 3), (4, 3), {"labels": torch.tensor([1])}, "4 in the teacher's outputs, 1 in labels"),
        (
            (4, 4, 3),
            (4, 4, 3),
            {},
            r"labels: None; the logits are those of \(4, 4\) tokens, so give a label for each",
        ),
        ((1, 4, 3), (1, 4, 3), {}, "labels: None; the logits are those of"),
        (
            (4, 4, 3),
            (4, 4, 3),
            {"labels": torch.arange(4)},
            r"labels: of shape \(4,\); the logits are those of",
        ),
    ):
        with pytest.raises(UserError, match=message):
            loss(ModelOutputs(torch.zeros(student)), ModelOutputs(torch.zeros(teacher)), **given)
    labels = torch.full((4, 4), -100)
    labels[:, 1] = 2
    assert torch.isfinite(loss(words, words, mask, labels))


def test_hidden_states_of_another_batch_are_refused():
    config = BertConfig(**SIZES, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    mine, theirs = (ModelOutputs(hidden_BLW={i: torch.zeros(rows, 3, 8) for i in (0, 1)}) for rows in (2, 1))
    with pytest.raises(
        UserError, match="2 in the student's outputs, 1 in the teacher's outputs, 2 in attention_mask"
    ):
        HiddenStates(config, config)(mine, theirs, torch.ones(2, 3))


def test_what_a_model_does_not_show_is_told(student, batch):
    with pytest.raises(ValueError, match=r"BertModel does not show the attention of layers \[9\]"):
        with capture(student, CaptureSpec(queries_keys=frozenset({9}))):
            student(**batch)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    mpnet = MPNetModel(MPNetConfig(**SIZES, **sizes))
    with pytest.raises(ValueError, match="MPNetModel does not show the attention"):
        with capture(mpnet, CaptureSpec(queries_keys=frozenset({1}))):
            mpnet(**batch)
    with pytest.raises(
        UserError, match="does not hold what a loss reads: .*logits.*; give the student the method"
    ):
        with capture(student, CaptureSpec(logits=True)):
            student(**batch)


def test_a_loss_alone_is_the_mean_of_its_batch():
    logits = torch.randn(4, 3)
    labels = torch.tensor([0, 2, -1, 1])
    expected = torch.nn.functional.cross_entropy(logits[[0, 1, 3]], labels[[0, 1, 3]])
    torch.testing.assert_close(GoldLabels()(ModelOutputs(logits_BC=logits), labels=labels), expected)
    of_words = torch.tensor([[0, -100, 1], [2, -100, -100]])
    words = torch.randn(2, 3, 3)
    teacher = torch.randn(2, 3, 3)
    scored = of_words >= 0
    expected = -(teacher.softmax(-1) * words.log_softmax(-1)).sum(-1)[scored].mean()
    value = SoftLabels()(ModelOutputs(words), ModelOutputs(teacher), labels=of_words)
    torch.testing.assert_close(value, expected)
    vocabulary = torch.randn(3, 8)
    value = MaskedWords()(ModelOutputs(vocabulary_NV=vocabulary), labels=of_words)
    expected = torch.nn.functional.cross_entropy(vocabulary, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(value, expected)
    with pytest.raises(UserError, match="labels: None; a loss at masked tokens needs them"):
        MaskedSoftLabels()(*[ModelOutputs(vocabulary_NV=vocabulary)] * 2, attention_mask=torch.ones(2, 3))


def test_every_loss_of_the_registry_teaches_by_example():
    for name, loss in LOSSES.items():
        about = loss.__doc__
        assert "Example:" in about and "Args:" in about and ">>>" in about, name
