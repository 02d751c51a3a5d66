"""Statistics of predictions, against plain references."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from stages.evaluation import statistics as c
from stages.tasks.kinds import Classes, Scores, Words
from stages.tasks.kinds.base import Said
from stages.tasks.kinds.classes import _confusions

RANDOM = np.random.default_rng(0)
GOLD = RANDOM.integers(3, size=400)
LOGITS = RANDOM.normal(size=(400, 3)) * 3 + 2 * np.eye(3)[GOLD]
OTHER = LOGITS + RANDOM.normal(size=LOGITS.shape)
THREE = Classes(("a", "b", "c"))


def bootstrap(metrics, answers, gold, classes=None, seed=0, words=None):
    """Of models whose answers, class ids or scores, are given."""
    names = tuple("abcd"[:classes])
    kind = (Words(names) if words else Classes(names)) if classes else Scores()
    logits = {model: np.eye(classes)[of] if classes else of[:, None] for model, of in answers.items()}
    measures = {model: kind.resampler(metrics, Said(of, gold, words)) for model, of in logits.items()}
    return c.bootstrap(measures, len(words or gold), (classes or 0) ** 2, seed)


@pytest.mark.parametrize("classes", [2, 3])
def test_each_resample_gets_what_the_plain_metrics_give_its_rows(classes, monkeypatch):
    monkeypatch.setattr(c, "RESAMPLES", 7)
    monkeypatch.setattr(c, "BLOCK", 3 * len(GOLD))  # three blocks
    gold, answers = GOLD % classes, LOGITS[:, :classes].argmax(-1)
    metrics = ("accuracy", "f1", "matthews")
    values = bootstrap(metrics, {"a": answers}, gold, classes, seed=3)["a"]
    for i, rows in enumerate(np.concatenate(list(c._resamples(len(gold), classes, 3)))):
        said = Said(np.eye(classes)[answers[rows]], gold[rows])
        plain = Classes(tuple("abc"[:classes])).measure(metrics, said)
        assert {m: values[m][i] for m in metrics} == pytest.approx(plain)


def test_resampled_correlations(monkeypatch):
    monkeypatch.setattr(c, "RESAMPLES", 5)
    gold, answers = np.round(RANDOM.normal(size=80), 1), RANDOM.normal(size=80).astype(np.float32)
    values = bootstrap(("pearson", "spearman"), {"a": answers}, gold)["a"]
    for i, rows in enumerate(np.concatenate(list(c._resamples(80, 0, 0)))):
        plain = Scores().measure(("pearson", "spearman"), Said(answers[rows, None], gold[rows]))
        assert {m: v[i] for m, v in values.items()} == pytest.approx(plain)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth, covered = 0.8, 0
    for seed in range(200):
        right = np.random.default_rng(seed).random(200) < truth
        values = bootstrap(("accuracy",), {"a": right.astype(int)}, np.ones(200, int), 2, seed)
        low, high = c.interval(values["a"]["accuracy"])
        covered += low <= truth <= high
    assert 180 <= covered <= 198  # 95% of 200 is 190, its standard deviation 3


def test_models_share_their_resamples():
    answers = LOGITS.argmax(-1)
    values = bootstrap(("accuracy",), {"a": answers, "b": answers.copy()}, GOLD, 3)
    assert np.array_equal(values["a"]["accuracy"], values["b"]["accuracy"])
    assert np.array_equal(
        values["a"]["accuracy"], bootstrap(("accuracy",), {"a": answers}, GOLD, 3)["a"]["accuracy"]
    )


def test_loyalty():
    p, q = THREE.probabilities(LOGITS), THREE.probabilities(OTHER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # rounding makes some divergences negative
        assert THREE.agreement(LOGITS, LOGITS + 1e-9)["probability_loyalty"] == pytest.approx(1, abs=1e-6)
    assert THREE.agreement(LOGITS, LOGITS) == {"label_loyalty": 1, "probability_loyalty": 1}
    found = THREE.agreement(LOGITS, OTHER)
    same = [a.argmax() == b.argmax() for a, b in zip(p, q, strict=True)]
    assert found["label_loyalty"] == pytest.approx(np.mean(same))
    middle = (p + q) / 2
    divergence = ((p * np.log2(p / middle)).sum(1) + (q * np.log2(q / middle)).sum(1)) / 2
    assert found["probability_loyalty"] == pytest.approx(1 - np.sqrt(divergence).mean())
    apart = np.array([[99.0, 0.0]]), np.array([[0.0, 99.0]])
    assert Classes(("a", "b")).agreement(*apart)["probability_loyalty"] == pytest.approx(0)


def test_calibration_error_by_a_plain_loop():
    p = THREE.probabilities(LOGITS)
    gaps = 0.0
    for i in range(15):
        inside = (p.max(1) > i / 15) & (p.max(1) <= (i + 1) / 15)
        if inside.any():
            gaps += inside.mean() * abs((p.argmax(1) == GOLD)[inside].mean() - p.max(1)[inside].mean())
    assert c.calibration_error(c.calibration_bins(p, GOLD)) == pytest.approx(gaps)
    sure = np.eye(3)[GOLD]
    assert c.calibration_error(c.calibration_bins(sure, GOLD)) == 0
    assert c.calibration_error(c.calibration_bins(sure, (GOLD + 1) % 3)) == 1


def test_temperature_scaling_lowers_the_loss_where_it_was_fitted_and_finds_a_known_temperature():
    temperature = c.fit_temperature(LOGITS, GOLD)
    here = c.negative_log_likelihood(LOGITS, GOLD, temperature)
    assert here < c.negative_log_likelihood(LOGITS, GOLD)
    grid = np.geomspace(0.1, 10, 400)
    assert here <= min(c.negative_log_likelihood(LOGITS, GOLD, t) for t in grid) + 1e-9
    random = np.random.default_rng(5)
    logits = random.normal(size=(20000, 3)) * 2
    drawn = (THREE.probabilities(logits).cumsum(1) < random.random((20000, 1))).sum(1)
    assert c.fit_temperature(3 * logits, drawn) == pytest.approx(3, rel=0.05)


def test_the_bootstraps_confusions_are_those_of_scikit_learn():
    answers = np.stack([LOGITS.argmax(-1), OTHER.argmax(-1)])
    counts = _confusions(answers, np.stack([GOLD, GOLD]), 4)  # no row has class 3
    for i in range(2):
        assert np.array_equal(counts[i], confusion_matrix(GOLD, answers[i], labels=range(4)))


def test_words_are_drawn_with_their_rows():
    """A row that stands three times over tells no more: its interval is that of the row, not of its words."""
    random = np.random.default_rng(0)
    gold, answers = random.integers(3, size=(2, 40))
    once = bootstrap(("accuracy", "f1"), {"m": answers}, gold, 3)["m"]
    thrice = np.repeat(answers, 3), np.repeat(gold, 3)
    words = bootstrap(("accuracy", "f1"), {"m": thrice[0]}, thrice[1], 3, words=[3] * 40)["m"]
    for metric in once:
        np.testing.assert_allclose(words[metric], once[metric])
