"""How ranks are started and stopped; what that does to runs is watched in tests/integration/test_resume.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.launch import child_process
from pipeline.launch.launcher import Launcher
from stages.training.options import Job
from tests.conftest import make_corpus, make_encoder


@pytest.fixture
def forks(monkeypatch, tmp_path):
    """Let a program of the test's stand for the forking process."""

    def stand_in(program: str) -> Launcher:
        start = subprocess.Popen
        monkeypatch.setattr(
            child_process.subprocess,
            "Popen",
            lambda command, **given: start([command[0], "-c", program, *command[1:]], **given),
        )
        return Launcher(tmp_path)

    return stand_in


def test_answers_are_the_stages_statuses(forks, tmp_path):
    answers = """
import socket
launcher = socket.socket(fileno=0)
for line in launcher.makefile():
    launcher.sendall(line.rstrip()[-1:].encode() + b"\\n")
"""
    with forks(answers) as started:
        assert [started.launch(tmp_path / name, Job()) for name in ("0", "2", "0")] == [0, 2, 0]


@pytest.mark.parametrize(
    ("end", "status"), [("raise SystemExit(0)", 1), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_where_the_process_ends_without_an_answer_the_stage_has_failed(forks, tmp_path, end, status):
    with forks(end) as started:
        assert started.launch(tmp_path, Job()) == status


def test_a_signal_is_passed_on_and_nothing_starts_after_it(forks, tmp_path):
    finishes = """
import os, signal, socket
launcher = socket.socket(fileno=0)
signal.signal(signal.SIGTERM, lambda number, frame: launcher.sendall(b"0\\n"))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
for line in launcher.makefile():
    os.kill(os.getppid(), signal.SIGTERM)
"""
    with forks(finishes) as started:
        assert started.launch(tmp_path, Job()) == 128 + signal.SIGTERM


def test_a_signal_between_stages_ends_the_command_and_no_stage_starts_after_it(forks, tmp_path):
    with forks("raise SystemExit(0)") as started:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)
        # Had something swallowed the exceptions:
        assert started.launch(tmp_path, Job()) == 128 + signal.SIGINT


@pytest.mark.parametrize("where", [
    "rank", *(pytest.param(name, marks=pytest.mark.slow) for name in ("launcher", "fork-server")),
])  # fmt: skip
def test_a_signal_at_any_line_of_start_up_ends_the_stage(where, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.launch.signal_at_each_line", where, tmp_path],
        cwd=Path(__file__).parents[3], env=os.environ, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert not done.returncode and not done.stderr, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("how", "number"), [("swallowed", signal.SIGINT), ("raised", signal.SIGTERM)])
def test_a_signal_at_any_line_of_a_command_ends_it(how, number, tmp_path):
    """Some 400 signals, from planning the first run to the last line of the second one's results."""
    make_encoder(tmp_path / "bert")
    make_corpus(tmp_path / "corpus.txt", 20)
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.launch.signal_at_each_line_of_a_command", tmp_path, how, str(int(number))],
        cwd=Path(__file__).parents[3], env=os.environ, capture_output=True, text=True, timeout=900,  # minutes on a busy machine
    )  # fmt: skip
    assert not done.returncode and not done.stderr, done.stdout + done.stderr
