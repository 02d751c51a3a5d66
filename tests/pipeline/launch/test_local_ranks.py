"""Where the ranks of a host meet, and how they end together."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from pipeline.launch.local_ranks import _free_port


def test_a_port_is_held_until_rank_0_listens():
    """Seconds pass until then, in which another job may look for a port."""
    held = _free_port()
    for address in ("", "127.0.0.2"):  # rank 0 listens on all addresses, so one that is taken is in its way
        with socket.socket() as other, pytest.raises(OSError):
            other.bind((address, held.getsockname()[1]))
    with socket.socket() as rank_0:
        rank_0.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rank_0.bind(("", held.getsockname()[1]))
        rank_0.listen()


RANK = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: stop())
def stop():
    time.sleep(float(os.environ["SLEEP"]) * (os.environ["RANK"] == "0"))
    print("saved", flush=True)
    sys.exit(int(os.environ["STATUS"]))
open(sys.argv[1] + "/ready-" + os.environ["RANK"], "w").close()
time.sleep(60)
"""

RUN = """
import os, subprocess, sys
from pathlib import Path
from pipeline.launch.local_ranks import HostRanks, run_ranks
start = lambda stage, environment: subprocess.Popen([sys.executable, "-c", os.environ["CODE"], stage], env=environment)
sys.exit(run_ranks(Path(sys.argv[1]), HostRanks(2), start))
"""


@pytest.mark.parametrize("status, seconds, saved", [(143, 2.5, 2), (7, 30, 1)])
def test_a_rank_that_has_saved_does_not_end_one_that_still_saves(tmp_path, status, seconds, saved):
    environment = os.environ | {"CODE": RANK, "STATUS": str(status), "SLEEP": str(seconds)}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, tmp_path], env=environment, stdout=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(list(tmp_path.glob("ready-*"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert (process.returncode, output.count("saved")) == (status, saved)
