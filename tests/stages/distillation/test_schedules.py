import pickle

import pytest

from checkpoints.errors import UserError
from stages.distillation.losses import SoftLabels
from stages.distillation.schedules import schedule


@pytest.mark.parametrize(
    "value, expected",
    [
        (2, [2, 2, 2, 2]),
        ({"linear": [0, 1]}, [0, 0.25, 0.5, 0.99]),
        ({"stairs": [0.1, 1.0, 10]}, [0.1, 0.3, 0.6, 1.0]),
        ({"points": [[0, 0], [0.5, 0.5], [0.5, 1], [1, 1]]}, [0, 0.25, 1, 1]),
        ({"points": [[0.25, 3], [0.5, 1]]}, [3, 3, 1, 1]),
    ],
)
def test_values(value, expected):
    at = schedule(value, "weight")
    assert [at(p) for p in (0.0, 0.25, 0.5, 0.99)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "value", [2, {"linear": [4, 1]}, {"stairs": [4, 1, 3]}, {"points": [[0, 4], [1, 1]]}]
)
def test_a_loss_and_its_schedule_can_be_pickled(value):
    loss = SoftLabels(temperature=value)
    again = pickle.loads(pickle.dumps(loss))
    assert [again.temperature(p) for p in (0.0, 0.4, 0.99)] == [loss.temperature(p) for p in (0.0, 0.4, 0.99)]


def test_stairs_are_equally_long():
    at = schedule({"stairs": [1, 4, 4]}, "phi")
    assert [at(step / 20) for step in range(20)] == [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5


@pytest.mark.parametrize(
    "value",
    [
        "1",
        True,
        None,
        float("nan"),
        {"linear": [1]},
        {"linear": [0, 1], "stairs": [0, 1, 2]},
        {"stairs": [0, 1, 1]},
        {"stairs": [0, 1, 2.5]},
        {"points": []},
        {"points": [[0.5, 1], [0.2, 0]]},
        {"points": [[0, 1], [1.5, 0]]},
        {"cosine": [0, 1]},
    ],
)
def test_what_is_no_schedule_is_told_with_its_setting(value):
    with pytest.raises(UserError, match="phi: .*must be a number, or linear"):
        schedule(value, "phi")


@pytest.mark.parametrize(
    "value", [0, {"linear": [2, 0]}, {"stairs": [-1, 2, 3]}, {"points": [[0, 1], [0.5, -1], [1, 1]]}]
)
def test_a_temperature_is_above_zero_all_the_time(value):
    with pytest.raises(UserError, match="temperature: .* keep it above 0"):
        SoftLabels(temperature=value)
