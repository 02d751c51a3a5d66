"""What evaluate says of logits."""

import numpy as np
import pytest

from stages.evaluation import statistics as comparison
from stages.evaluation.measures import add_intervals, calibration, classes_of, differ_most, loyalty
from stages.tasks.types import Split, Task

RANDOM = np.random.default_rng(1)
GOLD = RANDOM.integers(2, size=60)
TEACHER = RANDOM.normal(size=(60, 2)) + 2 * np.eye(2)[GOLD]
STUDENT = TEACHER + RANDOM.normal(size=(60, 2))


def task(labels=("bad", "good"), metrics=("accuracy", "f1")) -> Task:
    rows = Split([f"row {i}" for i in range(60)], None, GOLD.tolist() if labels else TEACHER[:, 0].tolist())
    return Task("tiny", labels, {"dev": rows, "test": rows}, metrics, metrics[0])


def test_the_share_kept_is_that_of_the_same_rows():
    logits = {"teacher": TEACHER, "distilled": TEACHER.copy(), "finetuned": -TEACHER}
    results = {name: {"metric": np.mean(v.argmax(1) == GOLD)} for name, v in logits.items()}
    add_intervals(task(), "test", logits, results)
    assert results["distilled"]["retained_interval"] == [1, 1]  # equal answers, whatever rows are drawn
    low, high = results["finetuned"]["retained_interval"]
    assert low < results["finetuned"]["retained"] < high < 1
    low, high = results["teacher"]["intervals"]["accuracy"]
    assert low < results["teacher"]["metric"] < high


def test_a_teacher_that_knows_nothing_is_no_measure():
    logits = {"teacher": np.ones((60, 2)), "distilled": STUDENT}
    results = {"teacher": {"metric": 0.0}, "distilled": {"metric": 0.5}}
    add_intervals(task(metrics=("matthews",)), "test", logits, results)
    assert "retained" not in results["distilled"] and "intervals" in results["distilled"]


def test_the_temperature_is_fitted_on_dev_and_never_on_what_is_reported():
    sharp = {"dev": 5 * TEACHER, "test": 5 * STUDENT}
    found = calibration(task(), "test", sharp)
    assert found["temperature"] == comparison.fit_temperature(sharp["dev"], GOLD)
    assert found["error_scaled"] < found["error"]
    assert "temperature" not in calibration(task(), "dev", sharp)


def test_loyalty_and_disagreement():
    assert loyalty(task(), TEACHER, TEACHER) == {"label_loyalty": 1, "probability_loyalty": 1}
    student = TEACHER.copy()
    student[7] = -20 * TEACHER[7]
    first, *rest = differ_most(task(), "test", student, TEACHER)
    assert (first["row"], first["texts"], first["label"], len(rest)) == (7, ["row 7"], GOLD[7], 9)
    assert sum(first["student"]) == pytest.approx(1)
    scores = task(labels=None, metrics=("pearson",))
    assert loyalty(scores, 3 * TEACHER[:, :1], TEACHER[:, :1])["pearson_to_teacher"] == pytest.approx(1)
    assert differ_most(scores, "test", student[:, :1], TEACHER[:, :1])[0]["row"] == 7


def test_confusion_and_class_scores_of_a_class_without_rows():
    found = classes_of(
        task(("bad", "good", "neither")), "test", np.pad(TEACHER, ((0, 0), (0, 1)), constant_values=-9)
    )
    counts = np.array(found["confusion"])
    assert counts.sum() == 60 and counts.trace() == (TEACHER.argmax(1) == GOLD).sum() and not counts[2].any()
    assert found["classes"][2] == {"precision": 0, "recall": 0, "f1": 0, "rows": 0}
    assert found["classes"][1]["recall"] == counts[1, 1] / counts[1].sum()
