"""Where no terminal is, a line soon after the start and then one a minute; nothing else."""

import re

import pytest

from stages.training.progress import Progress


class FakeStage:
    name = "general"

    def __init__(self):
        self.lines = []
        self.log = self.lines.append


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    return Clock()


def steps(progress, clock, count, seconds, told=()):
    for _ in range(count):
        clock.now += seconds
        progress.advance(told=told)


def test_a_line_soon_and_then_one_a_minute(clock):
    stage = FakeStage()
    with Progress(stage, 200, "step", clock=clock) as progress:
        steps(progress, clock, 4, 1)
        assert not stage.lines
        steps(progress, clock, 116, 1, ["hidden 0.45", "1,500 tokens/s"])
    assert stage.lines == [
        "step 5 of 200, 3.2 minutes left, hidden 0.45, 1,500 tokens/s",
        "step 65 of 200, 2.2 minutes left, hidden 0.45, 1,500 tokens/s",
    ]


def test_a_resumed_start_tells_its_own_speed(clock):
    stage = FakeStage()
    with Progress(stage, 110, "step", done=100, what="teacher", clock=clock) as progress:
        steps(progress, clock, 1, 60)
        steps(progress, clock, 2, 30)
    assert stage.lines == ["teacher: step 101 of 110", "teacher: step 103 of 110, 4.7 minutes left"]


def test_without_a_total_there_is_no_time_left(clock):
    stage = FakeStage()
    with Progress(stage, None, "token", what="tokenizing", clock=clock) as progress:
        clock.now = 10.0
        progress.advance(50_000)
    assert stage.lines == ["tokenizing: 50,000 tokens, 5,000 a second"]


def test_on_a_terminal_a_bar_and_no_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    stage, clock = FakeStage(), Clock()
    with Progress(stage, 2, "step", clock=clock) as progress:
        clock.now = 100.0
        progress.advance()
        progress.advance()
    assert not stage.lines
    assert re.search(r"general: 100%.*2/2", capsys.readouterr().err)
