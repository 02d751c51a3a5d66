"""The metrics of classes and scores, against scikit-learn's, scipy's and plain formulas."""

import warnings

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from checkpoints.errors import UserError
from stages.tasks.kinds import Classes, Scores, Words
from stages.tasks.kinds.base import Said
from stages.tasks.metrics import REGRESSION, select

GOLD = np.array([1, 1, 0, 1, 0, 0, 1])
GUESS = np.array([1, 0, 0, 1, 1, 0, 1])
TWO, THREE, FOUR = (Classes(tuple("abcd"[:count])) for count in (2, 3, 4))


def of_classes(kind, metrics, answers, gold, groups=None):
    """Metrics of answers that are class ids."""
    return kind.measure(metrics, Said(np.eye(kind.outputs)[answers], np.asarray(gold), groups))


def test_binary_metrics():
    tp, tn, fp, fn = 3, 2, 1, 1
    values = of_classes(TWO, ("accuracy", "f1", "matthews"), GUESS, GOLD)
    root = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert values["accuracy"] == pytest.approx(5 / 7)
    assert values["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert values["matthews"] == pytest.approx((tp * tn - fp * fn) / root)


@pytest.mark.parametrize("seed", range(5))
def test_several_classes_as_scikit_learn_has_them(seed):
    gold, answers = np.random.default_rng(seed).integers(3, size=(2, 60))
    values = of_classes(FOUR, ("accuracy", "f1", "matthews"), answers, gold)
    assert values["accuracy"] == accuracy_score(gold, answers)
    assert values["f1"] == f1_score(gold, answers, labels=range(4), average="macro", zero_division=0)
    assert values["matthews"] == pytest.approx(matthews_corrcoef(gold, answers))
    assert of_classes(Words(FOUR.labels), values, answers, gold, [20, 40]) == values


def test_macro_f1_counts_every_class():
    assert of_classes(THREE, ["f1"], [0, 1, 2], [0, 1, 1])["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert of_classes(FOUR, ["f1"], [0, 1], [0, 1])["f1"] == pytest.approx(0.5)


def test_correlations():
    gold, guess = np.random.default_rng(0).normal(size=(2, 50)).round(1)
    values = Scores().measure(REGRESSION, Said(guess[:, None].astype(np.float32), gold))
    assert values["pearson"] == pytest.approx(pearsonr(guess.astype(np.float32), gold)[0])
    assert values["spearman"] == pytest.approx(spearmanr(guess, gold)[0])


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3])
def test_constant_predictions_give_zero_without_warning(constant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert of_classes(TWO, ("f1", "matthews"), np.zeros(7, int), GOLD) == {"f1": 0.0, "matthews": 0.0}
        said = Said(np.full((7, 1), constant, np.float32), GOLD + 0.1)
        assert Scores().measure(REGRESSION, said) == {"pearson": 0.0, "spearman": 0.0}


def test_the_best_constant_answer():
    values = [TWO.constant(metric, GOLD) for metric in ("accuracy", "f1", "matthews")]
    assert values == [pytest.approx(4 / 7), pytest.approx(8 / 11), 0.0]
    assert Scores().constant("pearson", np.array([0.5, 2.0])) == 0.0


def test_select():
    assert select("", ("f1", "accuracy"), ("f1",)) == (("f1", "accuracy"), "f1")
    assert select("matthews", ("f1",), ("f1", "matthews")) == (("matthews", "f1"), "matthews")
    with pytest.raises(UserError, match="metric: 'bleu' does not fit this task; choose one of f1"):
        select("bleu", ("f1",), ("f1",))
