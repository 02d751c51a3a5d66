"""The registry of methods, and what each computes. Whole runs of them are in integration/test_methods.py."""

import numpy as np
import pytest
import torch

from checkpoints.errors import UserError
from stages.distillation.models import new_classifier
from stages.distillation.outputs import CaptureSpec
from stages.distillation.students.ngrams import NGramsConfig, NGramsForSequenceClassification
from stages.methods import (
    METHODS,
    Assistants,
    ManyHeads,
    Method,
    SparseNGrams,
    build_method,
)
from stages.methods.assistants import evolved, mixture
from stages.methods.sparse_ngrams import counted
from stages.tasks.kinds import Classes, Scores
from stages.tasks.types import Split, Task
from stages.training.options import Training
from tests.conftest import sentences, tiny_config

BERT = tiny_config()

BERT = tiny_config()


def task(labels=("a", "b"), **splits) -> Task:
    rows = {"train": Split(["x"], None, [0]), "dev": Split(["x"], None, [0])}
    kind = Classes(labels) if labels else Scores()
    return Task("t", kind, rows | splits, ("accuracy",), "accuracy")


def test_a_new_method_is_one_class_and_one_line(monkeypatch):
    class FastBiases(Method):
        def __init__(self, factor: float = 10.0):
            super().__init__()
            self.factor = factor

    monkeypatch.setitem(METHODS, "fast_biases", FastBiases)
    assert build_method({"fast_biases": {"factor": 3.0}}).factor == 3.0
    assert type(build_method("plain")) is Method and build_method("plain").step(None, Training()) is None


@pytest.mark.parametrize(
    "line, reads, words",
    [
        ("assistant", ["a"], "method: 'assistant' is unknown; there are assistants, .*plain"),
        ({"assistants": {"weight": 1}}, ["a"], "method.assistants: .*its settings: weights, temperature"),
        ("assistants", [], r"method.assistants.reads: \[\] are no assistants; name earlier students"),
        ({"assistants": {"weights": "best"}}, ["a"], "weights: 'best' must be equal or evolved or random"),
        ({"assistants": {"weights": [1]}}, ["a", "b"], r"weights: \[1\] must be 2 numbers .* one for each of a, b"),
        ({"assistants": {"weights": [1, -1]}}, ["a", "b"], "must be 2 numbers from 0"),
        ({"assistants": {"weights": ["x", 1]}}, ["a", "b"], "must be 2 numbers from 0"),
        ({"assistants": {"temperature": 0}}, ["a"], "temperature: 0 must be a number above 0"),
        ({"many_heads": {"heads": 0}}, ["a"], "many_heads.heads: 0 must be a whole number from 1 to 100"),
        ({"many_heads": {"layers": True}}, ["a"], "layers: True must be a whole number"),
        ("many_heads", [], "reads: .* must name one teacher for all heads, or 3, one for each"),
        ("many_heads", ["a", "b"], r"reads: \[a, b\] must name one teacher for all heads, or 3"),
        ({"sparse_ngrams": {"ngrams": 0.5}}, [], "sparse_ngrams.ngrams: 0.5 must be a whole number from 1"),
        ({"sparse_ngrams": {"longest": 9}}, [], "longest: 9 must be a whole number from 1 to 8"),
        ({"sparse_ngrams": {"drop": 1}}, [], "drop: 1 must be a number from 0 to below 1"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_told(line, reads, words):
    with pytest.raises(UserError, match=words) as error:
        build_method(line, reads)
    assert "\n" not in str(error.value)


def test_assistants_refuse_what_they_cannot_teach():
    logits, held_out = CaptureSpec(logits=True), {"held_out": Split(["x"], None, [0])}
    Assistants(["a"], "evolved").check(task(**held_out), BERT, logits)
    for method, given, spec, words in (
        (
            Assistants(["a"], "evolved"),
            task(),
            logits,
            "weights: evolved are fitted .* set held_out=FRACTION",
        ),
        (
            Assistants(["a"]),
            task(labels=None),
            logits,
            "method: .* of one class each, not of .*; take plain",
        ),
        (Assistants(["a"]), task(), CaptureSpec(hidden=frozenset([1])), "losses: .* none on its layers"),
        (Assistants(["a"]), task(), CaptureSpec(), "losses: .* at least one"),
    ):
        with pytest.raises(UserError, match=words):
            method.check(given, BERT, spec)


def test_the_mixture_is_the_weighted_mean_of_probabilities():
    logits_KNC = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    weights = [0.2, 0.0, 0.8]
    found = mixture(logits_KNC.log_softmax(-1), torch.tensor(weights)).exp()
    for n in range(5):
        for c in range(4):
            mean = sum(w * logits_KNC[k, n].softmax(-1)[c] for k, w in enumerate(weights))
            assert found[n, c].item() == pytest.approx(mean.item(), rel=1e-5)


def test_evolution_finds_the_member_that_knows_and_breaks_ties_by_likelihood():
    generator = torch.Generator().manual_seed(0)
    gold_N = np.arange(60) % 3
    knows = 3.0 * torch.nn.functional.one_hot(torch.from_numpy(gold_N), 3)
    noise = 6.0 * torch.randn(2, 60, 3, generator=generator)
    members = torch.stack([noise[0], knows, noise[1]]).log_softmax(-1)
    weights_K = evolved(members, gold_N, seed=1)
    assert weights_K.sum() == pytest.approx(1, abs=1e-5) and weights_K[1] > 0.6
    assert torch.equal(weights_K, evolved(members, gold_N, seed=1))
    # Two members are always right: the surer one gets more, though accuracy does not tell them apart.
    equal_accuracy = torch.stack([0.1 * knows, knows]).log_softmax(-1)
    assert evolved(equal_accuracy, gold_N, seed=1)[1] > 0.95


TEXTS = [text for text, _ in sentences(60)] + ["Great, GREAT film!", "...", "a film of it; a film of it"]


def ngrams_student(longest=3, most=10_000, **sizes) -> tuple:
    tokenizer, words_KO = counted(TEXTS, most, longest)
    torch.manual_seed(0)
    config = NGramsConfig(
        vocab_size=len(tokenizer), ngrams=len(words_KO), longest=longest, hidden_size=6, **sizes
    )
    student = NGramsForSequenceClassification(config)
    return tokenizer, words_KO, student, student.learn(words_KO)


def test_the_student_reads_the_ngrams_that_a_plain_loop_reads():
    tokenizer, words_KO, student, known = ngrams_student()
    number = {tuple(ids[ids > 0]): i for i, ids in enumerate(words_KO, start=1)}
    assert known > 0.9 * len(number)
    lost = set(number.values()) - set(student.slots.tolist())
    texts = [*TEXTS[-4:], "unheard words of great films", "great unheard great"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    student.eval()
    logits = student(batch.input_ids, batch.attention_mask).logits
    for row, text in enumerate(texts):
        ids = [i for i in tokenizer(text).input_ids if i != tokenizer.cls_token_id]
        spans = [tuple(ids[i : i + n]) for n in (1, 2, 3) for i in range(len(ids) - n + 1)]
        wanted = sorted(number[span] for span in spans if span in number and number[span] not in lost)
        found = student.known(batch.input_ids * batch.attention_mask)[row]
        assert sorted(found[found > 0].tolist()) == wanted, text
        mean = student.embeddings.weight[wanted].sum(0) / max(1, len(wanted))
        plain = student.classifier(torch.tanh(student.hidden(mean)))
        torch.testing.assert_close(logits[row], plain)
    assert student.known(batch.input_ids)[2].sum() == 0  # no words at all


def test_of_ngrams_that_share_a_slot_the_more_frequent_one_is_known():
    _, words_KO, student, _ = ngrams_student()
    student.slots = torch.zeros(64, dtype=torch.int32)  # far too few
    assert student.learn(words_KO) <= 64
    kept = sorted(set(student.slots.tolist()) - {0})
    hashes = {}
    for i, ids in enumerate(words_KO, start=1):
        value = 0
        for n, word in enumerate(ids[ids > 0]):
            value = int(word) if n == 0 else (value * 1_000_003 + int(word)) % (2**31 - 1)
        hashes.setdefault(value % 64, i)
    assert kept == sorted(hashes.values())


def test_a_step_moves_the_ngrams_of_its_batch_alone_and_drops_some():
    tokenizer, _, student, _ = ngrams_student(drop=0.5)
    model = torch.nn.ModuleDict({"student": student})
    step = SparseNGrams().step(model, Training(learning_rate=0.1))
    assert step.kind(model) == SparseNGrams().step_kind([])
    optimizers = step.optimizers(dict(model.named_parameters()))
    before = student.embeddings.weight.detach().clone()
    batch = tokenizer([TEXTS[0]], return_tensors="pt")
    student.train()
    student(batch.input_ids, batch.attention_mask).logits.sum().backward()
    assert student.embeddings.weight.grad.is_sparse
    for optimizer in optimizers:
        optimizer.step()
    moved = (student.embeddings.weight != before).any(1).nonzero()[:, 0].tolist()
    there = set(student.known(batch.input_ids)[0].tolist()) - {0}
    assert set(moved) < there and moved  # and row 0, padding, stays


def test_sparse_ngrams_refuse_what_they_cannot_read():
    ngrams, logits = NGramsConfig(), CaptureSpec(logits=True)
    pairs = Task("t", Classes(("a", "b")), {"train": Split(["x"], ["y"], [0])}, ("accuracy",), "accuracy")
    SparseNGrams().check(task(), ngrams, logits)
    for method, given, student, words in (
        (SparseNGrams(), task(), BERT, "kind: a bert does not read n-grams; give a student of ngrams"),
        (SparseNGrams(), pairs, ngrams, "method: two texts a row are not for sparse_ngrams"),
        (
            Method(),
            task(),
            ngrams,
            "method: a student of kind ngrams needs a method that makes its tokenizer",
        ),
        (Assistants(["a"]), task(), ngrams, "method: a student of kind ngrams needs"),
    ):
        with pytest.raises(UserError, match=words):
            method.check(given, student, logits)
    with pytest.raises(UserError, match="the training text has no words"):
        counted(["...", "!"], 10, 2)


def test_many_heads_refuse_what_has_no_body_or_no_classes():
    heads, deep = CaptureSpec(named=frozenset(["head_logits"])), tiny_config()
    deep.num_hidden_layers = 2
    method = ManyHeads(["a", "b"], heads=2, layers=1)
    method.check(task(), deep, heads)
    method.check(task(), deep, CaptureSpec())
    shallow = tiny_config()
    shallow.num_hidden_layers = 1
    for given, student, spec, words in (
        (task(labels=None), deep, heads, "method: many_heads averages the probabilities of a row's classes"),
        (task(), NGramsConfig(), heads, "method: a student of kind ngrams needs"),
        (task(), tiny_config("distilbert"), heads, "a distilbert is not taken apart .* a student of bert, "),
        (task(), shallow, heads, "student.layers: 1 layers a head leave no body of a student of 1"),
        (task(), deep, CaptureSpec(logits=True), "losses: .* under each_head alone"),
    ):
        with pytest.raises(UserError, match=words):
            method.check(given, student, spec)


def test_a_student_that_has_its_heads_already_keeps_them():
    deep = tiny_config()
    deep.num_hidden_layers = 2
    student = ManyHeads(["a"], heads=3, layers=1).apart(new_classifier(deep, Classes(("a", "b"))))
    assert ManyHeads(["a"], heads=3, layers=1).apart(student) is student
    with pytest.raises(UserError, match="begins as one of 3 heads of 1 layers, not 2 of 1"):
        ManyHeads(["a"], heads=2, layers=1).apart(student)
