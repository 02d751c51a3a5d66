"""One process a run, also after a process that died."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.errors import UserError
from pipeline.run_lock import lock_state, run_lock

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
