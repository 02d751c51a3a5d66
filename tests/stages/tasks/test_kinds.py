"""The kinds of tasks, against plain references."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from transformers import BertConfig

from stages.distillation.losses import GoldLabels, SoftLabels
from stages.distillation.outputs import ModelOutputs
from stages.distillation.task_heads import kind_of
from stages.evaluation import statistics
from stages.tasks.kinds import KINDS, Classes, Entities, LabelSets, Scores, Words
from stages.tasks.kinds.base import Said

RANDOM = np.random.default_rng(0)
GOLD = (RANDOM.random((80, 4)) < (0.6, 0.3, 0.1, 0.0)).astype(float)  # no row has the last label
LOGITS = np.round(RANDOM.normal(size=GOLD.shape) + 2 * GOLD - 2, 1)  # rounded, so that some are equal
SETS = LabelSets(("a", "b", "c", "d"), threshold=0.3)


def test_every_kind_has_its_own_name_and_reads_what_it_writes():
    assert len({kind.name for kind in KINDS.values()}) == len(KINDS)
    assert SETS.written(GOLD[0]) == str(SETS.names(GOLD[0])).replace("'", '"')
    assert SETS.read(SETS.written(GOLD[0])) == tuple(GOLD[0])
    assert SETS.read("[]") == (0, 0, 0, 0) and SETS.shown_gold((0, 0, 0, 0)) == "none"


def test_metrics_of_label_sets():
    said = 1 / (1 + np.exp(-LOGITS)) >= 0.3
    found = SETS.measure(SETS.reported, Said(LOGITS, GOLD))
    assert found["micro_f1"] == pytest.approx(f1_score(GOLD, said, average="micro"))
    each = [2 * (s & (g > 0)).sum() / max(s.sum() + g.sum(), 1) for s, g in zip(said.T, GOLD.T, strict=True)]
    assert found["macro_f1"] == pytest.approx(np.mean(each))
    precision = [average_precision_score(GOLD[:, i], LOGITS[:, i]) for i in range(3)]
    assert found["mean_average_precision"] == pytest.approx(np.mean(precision))
    assert found["subset_accuracy"] == np.mean([(s == g).all() for s, g in zip(said, GOLD > 0, strict=True)])


def test_each_resample_of_label_sets_gets_what_the_metrics_give_its_rows(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 6)
    measure = SETS.resampler(SETS.reported, Said(LOGITS, GOLD))
    values = statistics.bootstrap({"a": measure}, len(GOLD))["a"]
    for i, rows in enumerate(np.concatenate(list(statistics._resamples(len(GOLD), 0, 0)))):
        assert {m: v[i] for m, v in values.items()} == pytest.approx(
            SETS.measure(SETS.reported, Said(LOGITS[rows], GOLD[rows]))
        )


def test_no_constant_answer_is_better_than_the_best():
    every = np.array(np.meshgrid(*[[0.0, 1.0]] * 4)).reshape(4, -1).T
    for metric in ("micro_f1", "macro_f1", "subset_accuracy"):
        reached = [SETS.measure([metric], Said(np.tile(99 * a - 50, (80, 1)), GOLD))[metric] for a in every]
        assert SETS.constant(metric, GOLD) == pytest.approx(max(reached))
    assert SETS.constant("mean_average_precision", GOLD) == pytest.approx(GOLD[:, :3].mean())


@pytest.mark.parametrize("metric", SETS.selectable)
def test_the_threshold_is_the_best_on_dev_and_is_kept_in_the_config(metric):
    chosen = SETS.fitted(metric, LOGITS, GOLD)
    decided = "micro_f1" if metric == "mean_average_precision" else metric
    best = SETS.measure([decided], Said(LOGITS, GOLD))[decided]
    for threshold in np.arange(5, 96) / 100:
        other = LabelSets(SETS.labels, float(threshold)).measure([decided], Said(LOGITS, GOLD))[decided]
        best = max(best, other)
    assert chosen.measure([decided], Said(LOGITS, GOLD))[decided] == best
    config = BertConfig()
    chosen.configure(config)
    config.architectures = ["BertForSequenceClassification"]
    again = kind_of(BertConfig.from_dict(config.to_dict()))
    assert again == chosen and config.problem_type == "multi_label_classification"


def test_agreement_asks_each_model_by_its_own_threshold():
    low, high = LabelSets(SETS.labels, 0.2), LabelSets(SETS.labels, 0.8)
    assert low.agreement(LOGITS, LOGITS, low) == {"label_loyalty": 1, "probability_loyalty": 1}
    found = low.agreement(LOGITS, LOGITS, high)
    p = 1 / (1 + np.exp(-LOGITS))
    assert found["label_loyalty"] == pytest.approx(np.mean(((p >= 0.2) == (p >= 0.8)).all(1)))
    assert found["probability_loyalty"] == 1


def test_losses_of_label_sets_by_a_plain_loop():
    z_student, z_teacher, gold = (torch.tensor(x, dtype=torch.float32) for x in (LOGITS, -LOGITS, GOLD))
    total = 0.0
    for z_row, q_row in zip(LOGITS, -LOGITS, strict=True):
        for z, q in zip(z_row, q_row, strict=True):
            p, q = 1 / (1 + np.exp(-z / 2)), 1 / (1 + np.exp(-q / 2))
            total -= (q * np.log(p) + (1 - q) * np.log(1 - p)) / 4
    loss = SoftLabels(2.0, problem_type="multi_label_classification")
    found = loss(ModelOutputs(z_student), ModelOutputs(z_teacher))
    assert found.item() == pytest.approx(total / len(GOLD), rel=1e-5)
    gold[0] = torch.nan  # not labelled
    p = torch.sigmoid(z_student[1:])
    plain = -(gold[1:] * p.log() + (1 - gold[1:]) * (1 - p).log()).mean()
    assert GoldLabels()(ModelOutputs(z_student), labels=gold).item() == pytest.approx(plain.item(), rel=1e-5)


def test_a_teacher_of_one_label_is_not_one_of_several():
    from stages.distillation.teachers import check_problem_type

    config = BertConfig()
    check_problem_type(config, SETS)  # it does not say
    Classes(("a", "b")).configure(config)
    with pytest.raises(ValueError, match="gives one label a row .*the task has several labels"):
        check_problem_type(config, SETS)
    config.problem_type = "sentiment"
    with pytest.raises(ValueError, match="config.json is 'sentiment'; write one of regression, single_label"):
        check_problem_type(config, Classes(("a", "b")))


def test_scores_are_learned_in_deviations_and_measured_in_their_units():
    gold = np.array([100.0, 300.0, 200.0, 600.0])
    kind = Scores.of(gold.tolist())
    assert kind.scale == (300, pytest.approx(gold.std()))
    logits = np.array([[-1.0], [0.0], [-0.5], [1.0]])
    found = kind.measure(kind.reported, Said(logits, gold))
    errors = logits[:, 0] * gold.std() + 300 - gold
    assert found["mae"] == pytest.approx(abs(errors).mean())
    assert found["rmse"] == pytest.approx((errors**2).mean() ** 0.5)
    values = kind.resampler(kind.reported, Said(logits, gold))(np.array([[0, 1, 2, 3], [3, 3, 1, 0]]))
    assert {m: v[0] for m, v in values.items()} == pytest.approx(found)
    rows = np.array([3, 3, 1, 0])
    assert {m: v[1] for m, v in values.items()} == pytest.approx(
        kind.measure(kind.reported, Said(logits[rows], gold[rows]))
    )
    assert kind.shown([1.0]) == "1.00" and kind.shown([1.24e-5]) == "1.2e-05"
    assert kind.of_model(BertConfig()) == Scores()


@pytest.mark.parametrize("scores", [[1.0, 1e30], [0.0, 1e200], [1e12, 1e12 + 1.0]], ids=str)
def test_scores_that_fp32_cannot_tell_apart_are_refused(scores):
    with pytest.raises(ValueError, match="cannot be learned in fp32: give scores below 1e\\+30 whose spread"):
        Scores.of(scores)


def test_a_model_is_scaled_to_units_and_back():
    from stages.distillation.models import new_classifier
    from stages.distillation.task_heads import in_units, to_learned_scale
    from tests.conftest import tiny_config

    for config in (
        tiny_config("bert"),
        tiny_config("electra"),
        tiny_config("distilbert"),
        tiny_config("roberta"),
    ):
        model = new_classifier(config, Scores()).eval()
        ids = torch.tensor([[2, 7, 9, 3]])
        with torch.no_grad():
            learned = model(ids).logits
            model.load_state_dict(in_units(model, model.state_dict(), (300.0, 50.0)))
            torch.testing.assert_close(model(ids).logits, learned * 50 + 300)
            to_learned_scale(model, (300.0, 50.0))
            torch.testing.assert_close(model(ids).logits, learned, atol=1e-4, rtol=1e-4)


def test_only_entities_can_be_swapped():
    assert Entities.of(["B-x", "O"]).entities([0, 1, 2]) == [("x", 0, 1)]
    for kind in (Classes(("a", "b")), Words(("N", "V")), Scores()):
        with pytest.raises(
            ValueError, match=f"needs labels of words that mark entities, .* has {kind.name}; take keep"
        ):
            kind.entities([])
