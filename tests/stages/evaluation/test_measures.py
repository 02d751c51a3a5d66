"""What evaluate says of logits."""

import numpy as np
import pytest

from checkpoints.errors import UserError
from stages.evaluation import statistics
from stages.evaluation.measures import (
    calibration,
    class_scores,
    confidence_intervals,
    confusion,
    differ_most,
)
from stages.evaluation.predict import check_finite
from stages.evaluation.results import ClassScores
from stages.evaluation.scores import check_scale
from stages.tasks.kinds import Classes, Scores
from stages.tasks.kinds.base import Said
from stages.tasks.readers.glue import written_answer
from stages.tasks.types import Split, Task

RANDOM = np.random.default_rng(1)
GOLD = RANDOM.integers(2, size=60)
TEACHER = RANDOM.normal(size=(60, 2)) + 2 * np.eye(2)[GOLD]
STUDENT = TEACHER + RANDOM.normal(size=(60, 2))


def task(labels=("bad", "good"), metrics=("accuracy", "f1")) -> Task:
    rows = Split([f"row {i}" for i in range(60)], None, GOLD.tolist() if labels else TEACHER[:, 0].tolist())
    kind = Classes(labels) if labels else Scores()
    return Task("tiny", kind, {"dev": rows, "test": rows}, metrics, metrics[0])


def test_the_ratio_to_the_teacher_is_taken_on_the_same_rows():
    logits = {"teacher": TEACHER, "distilled": TEACHER.copy(), "finetuned": -TEACHER}
    metric = {name: np.mean(v.argmax(1) == GOLD) for name, v in logits.items()}
    intervals, retained = confidence_intervals(task(), "test", logits)
    assert retained["distilled"] == (1, 1)  # equal predictions, whatever rows are drawn
    low, high = retained["finetuned"]
    assert low < metric["finetuned"] / metric["teacher"] < high < 1
    low, high = intervals["teacher"]["accuracy"]
    assert low < metric["teacher"] < high


def test_no_ratio_to_a_teacher_that_scores_zero():
    logits = {"teacher": np.ones((60, 2)), "distilled": STUDENT}
    intervals, retained = confidence_intervals(task(metrics=("matthews",)), "test", logits)
    assert not retained and set(intervals) == {"teacher", "distilled"}


def test_the_temperature_is_fitted_on_dev_and_never_on_what_is_reported():
    sharp = {"dev": 5 * TEACHER, "test": 5 * STUDENT}
    found = calibration(task(), "test", sharp)
    assert found.temperature == statistics.fit_temperature(sharp["dev"], GOLD)
    assert found.error_scaled < found.error
    assert calibration(task(), "dev", sharp).temperature is None


def test_agreement_and_disagreement():
    student = TEACHER.copy()
    student[7] = -20 * TEACHER[7]
    first, *rest = differ_most(task(), "test", student, TEACHER)
    assert (first.row, first.texts, first.label, len(rest)) == (7, ["row 7"], GOLD[7], 9)
    assert sum(first.student) == pytest.approx(1)
    scores = task(labels=None, metrics=("pearson",))
    found = scores.kind.agreement(3 * TEACHER[:, :1], TEACHER[:, :1])
    assert found == {"pearson_to_teacher": pytest.approx(1)}
    assert differ_most(scores, "test", student[:, :1], TEACHER[:, :1])[0].row == 7


def test_confusion_and_scores_of_a_class_without_rows():
    logits = np.pad(TEACHER, ((0, 0), (0, 1)), constant_values=-9)
    three = task(("bad", "good", "neither"))
    counts, scores = np.array(confusion(three, "test", logits)), class_scores(three, "test", logits)
    assert counts.sum() == 60 and counts.trace() == (TEACHER.argmax(1) == GOLD).sum() and not counts[2].any()
    assert scores[2] == ClassScores(0, 0, 0, 0)
    assert scores[1].recall == counts[1, 1] / counts[1].sum() and scores[1].rows == sum(GOLD)


def test_no_resample_is_left_out_of_the_interval_of_the_ratio():
    """A teacher that is no better than chance on some resamples: the ratio has no interval, instead of a narrow one."""
    weak = RANDOM.normal(size=(60, 2))
    logits = {"teacher": weak, "distilled": STUDENT}
    measure = task().kind.resampler(("matthews",), Said(weak, GOLD))
    drawn = statistics.bootstrap({"teacher": measure}, 60)["teacher"]["matthews"]
    assert 0.02 < (drawn <= 0).mean() < 1
    assert confidence_intervals(task(metrics=("matthews",)), "test", logits)[1] == {}


def test_logits_that_are_not_finite_are_refused():
    logits = np.ones((5, 2))
    assert check_finite(logits) is logits
    logits[3, 1] = np.nan
    with pytest.raises(UserError, match="1 of 5 rows are not finite numbers .the first: row 3"):
        check_finite(logits)
    for score in (np.nan, np.inf):
        with pytest.raises(UserError, match="not a finite number"):
            written_answer("sts-b", score)
    assert written_answer("sts-b", -1) == "0.000" and written_answer("sts-b", 7) == "5.000"


@pytest.mark.parametrize(
    ("slope", "offset", "noise", "same"),
    [(1, 0, 0.5, True), (0.8, 0.3, 0.7, True), (0.2, 0, 0.02, False), (20, 0, 2, False), (1, 3, 0.3, False),
     (-1, 5, 0.3, False), (0, 2.5, 0, True)],
)  # fmt: skip
def test_scores_on_another_scale_are_seen(slope, offset, noise, same):
    random = np.random.default_rng(0)
    gold = random.uniform(0, 5, 200)
    scores = slope * gold + offset + noise * random.normal(size=200)
    if same:
        check_scale(scores, gold)
    else:
        with pytest.raises(UserError, match="accept_teacher: .*on another scale than the labels: .* x score"):
            check_scale(scores, gold)


def test_a_teacher_that_scores_nothing_on_few_resamples_makes_the_interval_wider():
    rows = Split([f"row {i}" for i in range(6)], None, [0, 1, 0, 1, 0, 1])
    six = Task("six", Classes(("a", "b")), {"test": rows}, ("accuracy",), "accuracy")
    teacher, student = np.eye(2)[[0, 1, 0, 0, 1, 0]], np.eye(2)[[0, 1, 0, 1, 0, 0]]
    measure = six.kind.resampler(("accuracy",), Said(teacher, np.array(rows.labels)))
    drawn = statistics.bootstrap({"t": measure}, 6)["t"]["accuracy"]
    assert 0 < (drawn <= 0).sum() < 20
    low, high = confidence_intervals(six, "test", {"teacher": teacher, "distilled": student})[1]["distilled"]
    assert low < 5 / 3 < high < np.inf
