"""The metrics, against plain formulas."""

import warnings

import numpy as np
import pytest

from checkpoints.errors import UserError
from stages.tasks.metrics import compute, constant_baseline, select

GOLD = np.array([1, 1, 0, 1, 0, 0, 1])
GUESS = np.array([1, 0, 0, 1, 1, 0, 1])


def test_binary_metrics():
    tp, tn, fp, fn = 3, 2, 1, 1
    values = compute(("accuracy", "f1", "matthews"), GUESS, GOLD)
    root = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert values["accuracy"] == pytest.approx(5 / 7)
    assert values["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert values["matthews"] == pytest.approx((tp * tn - fp * fn) / root)


def test_macro_f1_counts_every_class():
    assert compute(["f1"], [0, 1, 2], [0, 1, 1])["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert compute(["f1"], [0, 1], [0, 1], classes=4)["f1"] == pytest.approx(0.5)


def test_correlations():
    gold, guess = np.array([0.0, 1.0, 2.0, 5.0]), np.array([1.0, 3.0, 2.0, 10.0], np.float32)
    values = compute(("pearson", "spearman"), guess, gold)
    assert values["pearson"] == pytest.approx(np.corrcoef(gold, guess)[0, 1])
    assert values["spearman"] == pytest.approx(np.corrcoef([0, 1, 2, 3], [0, 2, 1, 3])[0, 1])


@pytest.mark.parametrize("metric", ["f1", "matthews", "pearson", "spearman"])
def test_constant_predictions_give_zero_without_warning(metric):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute([metric], np.zeros(7, int), GOLD) == {metric: 0.0}


def test_constant_baseline():
    baseline = constant_baseline(("accuracy", "f1", "matthews"), GOLD)
    assert baseline == {"accuracy": pytest.approx(4 / 7), "f1": pytest.approx(8 / 11), "matthews": 0.0}
    assert constant_baseline(("pearson",), np.array([0.5, 2.0])) == {"pearson": 0.0}


def test_select():
    assert select("", ("f1", "accuracy"), ("f1",)) == (("f1", "accuracy"), "f1")
    assert select("matthews", ("f1",), ("f1", "matthews")) == (("matthews", "f1"), "matthews")
    with pytest.raises(UserError, match="metric: 'bleu' does not fit this task; choose one of f1"):
        select("bleu", ("f1",), ("f1",))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        compute(["accuracy"], [1], [1, 0])
