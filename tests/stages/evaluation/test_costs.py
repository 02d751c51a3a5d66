"""Latencies measured on a busy machine are measured again, or marked."""

import numpy as np
import pytest

from stages.evaluation import costs
from stages.evaluation.results import Costs, Lengths, Percentiles, busy_note, parse


def machine(monkeypatch, waits):
    """A machine whose threads ran 100 ns in each measurement, and waited as long as given; latencies count up."""
    clock, times = {"ran": 0, "waited": 0}, iter(range(1, 99))

    def speed(models, seed, batch, advance):
        n = next(times)
        clock["ran"] += 100
        clock["waited"] += waits[n - 1]
        return {
            name: Costs(Percentiles(n, n, n), Percentiles(n, n, n), n, Lengths(1, 1, 1), 1) for name in models
        }

    monkeypatch.setattr(costs, "_speed", speed)
    monkeypatch.setattr(costs, "_scheduled", lambda: (clock["ran"], clock["waited"]))
    return costs.speed({"one": None, "two": None})


@pytest.mark.parametrize(
    "waits, chosen, busy",
    [([0, 0, 0], 1, False), ([100, 2, 0], 2, False), ([300, 100, 200], 2, True), ([300, 200, 100], 3, True)],
)
def test_it_is_measured_until_the_machine_is_calm(monkeypatch, waits, chosen, busy):
    found = machine(monkeypatch, waits)
    for cost in found.values():
        assert cost.latency.p50 == chosen and cost.busy == busy
    assert bool(busy_note(found.values())) == busy
    if busy:
        assert "threads waited 50% of the time" in busy_note(found.values())


def test_a_long_measurement_is_not_made_again(monkeypatch):
    """Large models on a busy machine: the user waits for a minute more, not for three times as long."""
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(costs.time, "monotonic", lambda: next(clock))
    found = machine(monkeypatch, [300, 200, 100])
    assert {cost.latency.p50 for cost in found.values()} == {2}


def test_where_linux_does_not_tell_nothing_is_marked(monkeypatch):
    monkeypatch.setattr(costs, "_speed", lambda models, seed, batch, advance: {
        "one": Costs(Percentiles(1, 1, 1), Percentiles(1, 1, 1), 1, Lengths(1, 1, 1), 1)})  # fmt: skip
    monkeypatch.setattr(costs, "_scheduled", lambda: (0, 0))
    assert costs.speed({"one": None})["one"].waiting is None


def test_the_scheduler_tells_of_waiting():
    before = costs._scheduled()
    np.ones((300, 300)) @ np.ones((300, 300))
    assert costs._scheduled() >= before


def test_results_of_an_earlier_version_are_read():
    latency = {"p50": 1, "p90": 1, "p99": 1}
    old = {"latency": latency, "batch": latency, "rows_per_second": 1, "threads": 1,
           "lengths": {"mean": 1, "least": 1, "most": 1}}  # fmt: skip
    assert not parse(Costs, old).busy
