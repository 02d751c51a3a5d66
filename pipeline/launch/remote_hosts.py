"""Ranks on several hosts, started through ssh, that live and die together. The hosts share a disk.

DeepSpeed's own launcher needs pdsh, ends ranks on a signal where ours save first, and leaves the ranks behind a
cut link waiting for minutes. Here each host's ranks are fed a heartbeat: where it stops, they end.
"""

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from checkpoints.errors import UserError
from checkpoints.store import read_json
from pipeline.launch.child_process import GRACE, collect_signals, die_at_signals, die_with_parent
from pipeline.launch.local_ranks import HEARTBEAT, LOST_AFTER, MEETING_PORT

PASSED_ON = ("CUDA_", "DS_", "GLOO_", "HF_", "MKL_", "NCCL_", "OMP_", "SSL_CERT_", "TORCH_", "WANDB_")
PASSED_ON_BY_NAME = (
    "LD_LIBRARY_PATH",
    "NLTK_DATA",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
"""The environment variables that every host gets, by prefix and by name. They go through standard input: HF_TOKEN is a
secret, and `ps` shows command lines to everybody."""

UNANSWERED = 3
"""Questions to a silent host, one every `HEARTBEAT` seconds, after which ssh gives it up."""


def read_hostfile(path: Path) -> dict[str, int]:
    """Return the number of ranks of each host of DeepSpeed's hostfile: lines `name slots=N`; `#` begins a comment.

    Raises:
        UserError: it cannot be read, names no host, or has a line of another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"hostfile {path} cannot be read ({error}): give a text file with a line `name slots=N` for each host"
        ) from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        found = re.fullmatch(r"([\w.:-]+)\s+slots=([1-9]\d*)", line)
        if line and (not found or line.startswith("-") or found[1] in hosts):
            raise UserError(
                f"{path}, line {number}: {line!r} is not `name slots=N` of one more host: correct it"
            )
        if found:
            hosts[found[1]] = int(found[2])
    if not hosts:
        raise UserError(f"hostfile {path} names no host: write a line `name slots=N` for each")
    return hosts


class _Host:
    """The process that runs a host's ranks, here or through ssh, and hears of us through its standard input."""

    def __init__(self, command: list[str]):
        parent = os.getpid()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, preexec_fn=lambda: die_with_parent(parent)
        )
        self.poll, self.kill = self._process.poll, self._process.kill

    def tell(self, line: str) -> None:
        """Send it a line, unless it has ended: then its status tells."""
        if stdin := self._process.stdin:
            with contextlib.suppress(OSError, ValueError):
                stdin.write(line.encode() + b"\n")
                stdin.flush()

    def leave(self) -> None:
        """Close the connection: its ranks end when nobody speaks to them."""
        if stdin := self._process.stdin:
            with contextlib.suppress(OSError):
                stdin.close()


def run_on_hosts(hostfile: Path, stage: str) -> int:
    """Run a stage's ranks on the hosts of a hostfile. SIGINT and SIGTERM are passed on to them.

    Returns:
        0, or the status of the host that failed first; 128 + a signal's number where a signal ended it.

    Raises:
        UserError: the hostfile cannot be read, or the other hosts cannot reach its first host by that name.
    """
    received = collect_signals()  # before there is a host; _watch passes on what comes while they start
    hosts = read_hostfile(hostfile)
    master = next(iter(hosts))
    if len(hosts) > 1 and master in ("localhost", "127.0.0.1"):
        raise UserError(
            f"{hostfile}: the first host is {master}, which the others cannot reach: give its name or address"
        )
    port = Path(stage) / MEETING_PORT
    port.unlink(missing_ok=True)
    names_of_this_host = _names_of_this_host()
    environment = passed_on(os.environ)
    first, running = 0, {}
    for host, count in hosts.items():
        ranks = [str(count), str(first), str(sum(hosts.values())), master]
        command = [sys.executable, "-m", "pipeline.launch.local_ranks", stage, *ranks]
        first += count
        running[host] = _Host(command if host in names_of_this_host else _through_ssh(host, command))
        running[host].tell(json.dumps(environment))
        if host == master:
            environment["MASTER_PORT"] = _wait_for_port(port, running[host])
    return _watch(running, received)


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that every host gets.

    Example:
        >>> passed_on({"HF_TOKEN": "secret", "HOME": "/home/me"})
        {'HF_TOKEN': 'secret'}
    """
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PASSED_ON) or name in PASSED_ON_BY_NAME
    }


def _wait_for_port(path: Path, first: "_Host") -> str:
    """The port that the first host has chosen; empty where that ended first."""
    began = time.monotonic()
    while not (port := read_json(path).get("port", "")) and first.poll() is None:
        if time.monotonic() - began > LOST_AFTER / 2:
            first.tell("heartbeat")
            began = time.monotonic()
        time.sleep(0.05)
    return port


def _watch(hosts: dict[str, _Host], received: deque[int]) -> int:
    """Send heartbeats to the hosts until all have ended; one that fails ends the others."""
    stopped = 0  # by the first signal
    deadline, next_heartbeat = float("inf"), 0.0
    while True:
        while received:
            number = received.popleft()
            if not stopped:
                stopped, deadline = number, time.monotonic() + GRACE
            for host in hosts.values():
                host.tell(f"signal {number}")
        if time.monotonic() > next_heartbeat:
            next_heartbeat = time.monotonic() + HEARTBEAT
            for host in hosts.values():
                host.tell("heartbeat")
        codes = {name: host.poll() for name, host in hosts.items()}
        failed, code = next(
            ((n, c) for n, c in codes.items() if c and c != (stopped and 128 + stopped)), ("", 0)
        )
        if failed or time.monotonic() > deadline:
            for host in hosts.values():
                host.leave()
            time.sleep(1)
            for host in hosts.values():
                host.kill()
            if code < 0 or code in (255, 127):
                print(f"error: {_reason(failed, code)}", file=sys.stderr)
            return 128 + stopped if stopped else max(code, 1)
        if None not in codes.values():
            return 128 + stopped if stopped and any(codes.values()) else 0
        time.sleep(0.05)


def _through_ssh(host: str, command: list[str]) -> list[str]:
    path = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
    there = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(['env', path, *command])}"
    settings = (
        "BatchMode=yes",
        "ConnectTimeout=10",
        f"ServerAliveInterval={HEARTBEAT}",
        f"ServerAliveCountMax={UNANSWERED}",
    )
    return ["ssh", *(part for setting in settings for part in ("-o", setting)), host, there]


def _reason(host: str, code: int) -> str:
    if code == 127:
        return f"host {host} has no {sys.executable}: install the project there, at the same path"
    return (
        f"host {host} is not in reach by ssh, or the connection to it was lost (noticed within {LOST_AFTER} seconds): "
        f"see that `ssh {host} true` works without a password"
    )


def _names_of_this_host() -> set[str]:
    import psutil

    addresses = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
    return {"localhost", socket.gethostname(), socket.getfqdn(), *addresses}


if __name__ == "__main__":
    die_at_signals()
    try:
        sys.exit(run_on_hosts(Path(sys.argv[1]), sys.argv[2]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
