"""Several hosts, with an `ssh` that runs its command here. `tests/two_hosts.py` does it over a real network."""

import os
import signal
import time

import pytest

from checkpoints.errors import UserError
from pipeline.launch.local_ranks import LOST_AFTER
from pipeline.launch.remote_hosts import passed_on, read_hostfile
from tests.integration.conftest import workers_of

SSH = """#!/bin/bash
while [ "$1" = -o ]; do shift 2; done
shift
bash -c "$1" <&0 & trap 'kill $!' TERM; wait $!
"""


@pytest.fixture
def hosts(place, monkeypatch):
    """Options of a run over two hosts; processes named `ssh` lead to them."""
    path = place.path / "bin"
    path.mkdir(exist_ok=True)
    (path / "ssh").write_text(SSH)
    (path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    (place.path / "hostfile").write_text("# two hosts\n127.0.0.2 slots=1\n127.0.0.3 slots=1\n")
    return ("job.hostfile=hostfile", "reuse=false")


@pytest.mark.slow
def test_two_hosts_make_what_two_ranks_make(place, hosts):
    status, output = place.run("general-distill", "run=two-hosts", *hosts)
    assert status == 0, output
    status, output = place.run("general-distill", "run=two-ranks", "job.nproc=2", "reuse=false")
    assert status == 0, output
    assert place.weights("two-hosts") == place.weights("two-ranks")


@pytest.mark.slow
def test_a_signal_reaches_all_hosts_and_a_lost_one_ends_the_run_with_its_reason(place, hosts):
    given = ("general-distill", "run=lost", *hosts, "general.epochs=200", "job.checkpoint_seconds=1")
    run = place.path / "runs" / "lost"

    def going(steps: int):
        lines = run / "general" / "metrics.jsonl"
        return lambda: lines.exists() and lines.read_text().count("\n") >= steps

    status, output = place.interrupt(going(3), signal.SIGTERM, *given)
    assert status == 143 and "saved at step" in output and not workers_of(run), output

    process = place.start(*given)
    while process.poll() is None and not going(20)():
        time.sleep(0.05)
    began = time.monotonic()
    os.system("pkill -9 -f 'ssh -o BatchMode.*127.0.0.3'")
    output = process.communicate(timeout=60)[0]
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert process.returncode == 1 and time.monotonic() - began < LOST_AFTER, output
    assert "127.0.0.3" in output and "same command" in output and len(errors) <= 2, output
    while workers_of(run) and time.monotonic() - began < LOST_AFTER + 10:
        time.sleep(0.1)
    assert not workers_of(run)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no host"),
        ("a slots=2\nb\n", "line 2: 'b' is not"),
        ("a slots=1\na slots=1\n", "line 2"),
        ("-oProxyCommand=x slots=1\n", "line 1"),
    ],
)
def test_a_bad_hostfile_is_one_line(tmp_path, text, message):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=message):
        read_hostfile(tmp_path / "hosts")


def test_every_host_gets_proxies_libraries_and_tokens_but_not_what_is_this_hosts_own():
    given = {"HF_TOKEN": "t", "WANDB_API_KEY": "k", "https_proxy": "p", "LD_LIBRARY_PATH": "/cuda/lib"}
    own = {"HOME": "/home/me", "PATH": "/bin", "TMPDIR": "/scratch", "SSH_AUTH_SOCK": "s", "RANK": "0"}
    assert passed_on(given | own) == given
