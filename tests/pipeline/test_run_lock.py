"""One process a run, also after a process that died."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from checkpoints.errors import UserError
from pipeline.run_lock import lock_state, run_lock, stage_lock

HOLD = """
import sys, time
from pathlib import Path
from pipeline.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_with_the_name_of_the_first_until_that_dies(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert holder.stdout.readline() == "locked\n"
    try:
        with (
            pytest.raises(UserError, match=f"is in use by process {holder.pid} on .*: wait"),
            run_lock(tmp_path),
        ):
            pass
        assert lock_state(tmp_path).held
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    state = lock_state(tmp_path)
    assert not state.held and str(holder.pid) in state.owner
    with run_lock(tmp_path):
        assert lock_state(tmp_path).held and str(os.getpid()) in lock_state(tmp_path).owner
    assert lock_state(tmp_path).owner == ""


def test_looking_at_the_lock_of_a_new_run_makes_no_file(tmp_path):
    assert not lock_state(tmp_path).held and not list(tmp_path.iterdir())


def test_who_looks_at_the_lock_all_the_time_keeps_nobody_from_taking_it(tmp_path):
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            lock_state(tmp_path)

    looks = [threading.Thread(target=look) for _ in range(2)]
    for thread in looks:
        thread.start()
    try:
        for _ in range(200):
            with run_lock(tmp_path):
                assert lock_state(tmp_path).held
    finally:
        ended.set()
    assert not lock_state(tmp_path).held


def test_on_a_disk_without_locks_a_second_process_is_refused_too(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        with (
            run_lock(tmp_path),
            pytest.raises(UserError, match="in use by process"),
            run_lock(tmp_path),
        ):
            raise AssertionError("two at once")
    assert not lock_state(tmp_path).held


def test_a_stage_waits_for_the_same_one_of_another_process_or_goes_on_without_the_lock(tmp_path):
    path = tmp_path / ".cache" / "making.lock"
    events = []

    def second() -> None:
        with stage_lock(path, "b", lambda other: not events.append(f"waits for {other}")):
            events.append("second")

    with stage_lock(path, "a", pytest.fail):
        thread = threading.Thread(target=second)
        thread.start()
        while not events:
            time.sleep(0.01)
        with stage_lock(path, "c", lambda other: False):
            events.append("went on")
        events.append("first ends")
    thread.join(10)
    assert events == ["waits for a", "went on", "first ends", "second"]


def test_a_stage_needs_no_lock_where_none_can_be_written(tmp_path):
    with stage_lock(tmp_path, "a", pytest.fail):  # a directory
        (tmp_path / "made").touch()
    assert (tmp_path / "made").exists()
