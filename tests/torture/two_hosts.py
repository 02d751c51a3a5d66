"""A run over two hosts with addresses of their own, whose link is cut in the middle (part of `make torture`).

Two network namespaces with an ssh daemon each, joined by a virtual cable, on one machine: needs root, `ip` and
`sshd`. The run must end by itself within `LOST_AFTER` seconds and a little, with its reason, leave no worker on either
host, and go on to bitwise the same weights when the link is back.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.launch.local_ranks import LOST_AFTER
from tests.integration.conftest import Workplace, workers_of
from tests.torture.outcome import Outcome

HOSTS = {"tiny-a": "10.77.0.1", "tiny-b": "10.77.0.2"}


def impossible() -> str:
    """Why it cannot be tried here; empty where it can."""
    if os.getuid():
        return "it needs root"
    missing = [tool for tool in ("ip", "sshd", "ssh", "ssh-keygen") if not shutil.which(tool, path=_path())]
    return f"it needs {', '.join(missing)}" if missing else ""


def outcomes() -> Iterator[Outcome]:
    """The link cut once, on a run over both hosts; none where that cannot be tried."""
    if impossible():
        return
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as name, two_hosts(Path(name)) as on_first:
        yield _cut(Path(name), on_first)


def _cut(path: Path, on_first: list[str]) -> Outcome:
    place = Workplace(path, prefix=on_first)
    (path / "hostfile").write_text("".join(f"{address} slots=1\n" for address in HOSTS.values()))
    same = ("job.hostfile=hostfile", "reuse=false", "general.epochs=100", "job.checkpoint_seconds=1")
    status, output = place.run("general-distill", "run=whole", *same)
    assert status == 0, output

    outcome, run = (
        Outcome("the network link between two hosts cut", "general stage, 2 hosts"),
        path / "runs" / "cut",
    )
    process = place.start("general-distill", "run=cut", *same)
    while process.poll() is None and not any((run / "general/checkpoints").glob("step-*/manifest.json")):
        time.sleep(0.05)
    _ip("-n", "tiny-a", "link", "set", "cable-a", "down")
    outcome.times["general"] += 1
    began = time.monotonic()
    output = process.communicate(timeout=120)[0]
    while workers_of(run) and time.monotonic() - began < 2 * LOST_AFTER:
        time.sleep(0.1)
    outcome.seconds, outcome.statuses[process.returncode] = time.monotonic() - began, 1
    outcome.survivors = len(workers_of(run))
    _ip("-n", "tiny-a", "link", "set", "cable-a", "up")
    time.sleep(2)
    status, again = place.run("general-distill", "run=cut", *same)
    if "connection to it was lost" not in output or outcome.seconds > LOST_AFTER + 5:
        outcome.lost = f"NOT TOLD: {output}"
    elif status or "resumed at" not in again or place.weights("cut") != place.weights("whole"):
        outcome.lost = f"DIFFERENT: {again}"
    return outcome


@contextlib.contextmanager
def two_hosts(path: Path) -> Iterator[list[str]]:
    """Two namespaces that reach each other by ssh; yields the words that run a command on the first."""
    _remove()
    daemons = []
    try:
        for host in HOSTS:
            _ip("netns", "add", host)
        _ip(
            "link",
            "add",
            "cable-a",
            "netns",
            "tiny-a",
            "type",
            "veth",
            "peer",
            "name",
            "cable-b",
            "netns",
            "tiny-b",
        )
        for host, address in HOSTS.items():
            cable = f"cable-{host[-1]}"
            _ip("-n", host, "addr", "add", f"{address}/24", "dev", cable)
            _ip("-n", host, "link", "set", cable, "up")
            _ip("-n", host, "link", "set", "lo", "up")
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path / key], check=True)
        shutil.copy(path / "user.pub", path / "authorized")
        (path / "sshd.conf").write_text(
            f"HostKey {path}/host\nAuthorizedKeysFile {path}/authorized\nPidFile none\nStrictModes no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        for host in HOSTS:
            command = [shutil.which("sshd", path=_path()), "-D", "-f", path / "sshd.conf"]
            daemons.append(subprocess.Popen(["ip", "netns", "exec", host, *command]))
        (path / "bin").mkdir()
        ssh = path / "bin" / "ssh"
        settings = (
            f"-i {path}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        )
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {settings} "$@"\n')
        ssh.chmod(0o755)
        time.sleep(1)
        yield ["ip", "netns", "exec", "tiny-a", "env", f"PATH={path}/bin:{os.environ['PATH']}"]
    finally:
        for daemon in daemons:
            daemon.send_signal(signal.SIGTERM)
        _remove()


def _remove() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], check=False, stderr=subprocess.DEVNULL)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
