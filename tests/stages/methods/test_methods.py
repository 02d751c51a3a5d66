"""The registry of methods, and what each computes. Whole runs of them are in integration/test_methods.py."""

import copy
import doctest

import numpy as np
import pytest
import torch

from checkpoints.errors import UserError
from stages.distillation import registry
from stages.distillation.losses import LOSSES
from stages.distillation.outputs import CaptureSpec
from stages.methods import METHODS, Assistants, Method, assistants, base, build_method
from stages.methods.assistants import evolved, mixture
from stages.tasks.types import Split, Task
from stages.training.options import Training


def task(labels=("a", "b"), **splits) -> Task:
    rows = {"train": Split(["x"], None, [0]), "dev": Split(["x"], None, [0])}
    return Task("t", labels, rows | splits, ("accuracy",), "accuracy")


@pytest.mark.parametrize("module", [registry, base, assistants], ids=lambda m: m.__name__)
def test_the_examples_of_the_docstrings_run(module):
    names = vars(module) | {"torch": torch, "LOSSES": LOSSES}
    examples = [t for t in doctest.DocTestFinder().find(module, globs=copy.copy(names)) if t.examples]
    assert examples
    for test in examples:
        assert not doctest.DocTestRunner(verbose=False).run(test).failed, test.name


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
    ],
)  # fmt: skip
def test_a_wrong_line_is_told(line, reads, words):
    with pytest.raises(UserError, match=words) as error:
        build_method(line, reads)
    assert "\n" not in str(error.value)


def test_assistants_refuse_what_they_cannot_teach():
    logits, held_out = CaptureSpec(logits=True), {"held_out": Split(["x"], None, [0])}
    Assistants(["a"], "evolved").check(task(**held_out), logits)
    for method, given, spec, words in (
        (
            Assistants(["a"], "evolved"),
            task(),
            logits,
            "weights: evolved are fitted .* set held_out=FRACTION",
        ),
        (Assistants(["a"]), task(labels=None), logits, "method: .* a regression has none"),
        (Assistants(["a"]), task(), CaptureSpec(hidden=frozenset([1])), "losses: .* none on layers"),
        (Assistants(["a"]), task(), CaptureSpec(), "losses: .* at least one"),
    ):
        with pytest.raises(UserError, match=words):
            method.check(given, spec)


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
