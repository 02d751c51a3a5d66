"""Ranks on several hosts, started through ssh, that live and die together. The hosts share a disk.

DeepSpeed's own launcher needs pdsh, ends ranks on a signal where ours save first, and leaves the ranks behind a
cut link waiting for minutes. Here each host's ranks are fed a heartbeat: where it stops, they end.
"""

import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from checkpoints.errors import UserError
from pipeline.launch.launcher import GRACE, die_with_parent
from pipeline.launch.local_ranks import BEAT, LOST

PASSED_ON = ("OMP_", "HF_", "NCCL_", "GLOO_", "CUDA_", "DS_", "TORCH_")
"""Prefixes of the environment variables that every host gets, through standard input: HF_TOKEN is a secret, and `ps`
shows command lines to everybody."""

ALIVE = 3
"""Questions to a silent host, one every `BEAT` seconds, after which ssh gives it up."""


def read_hostfile(path: Path) -> dict[str, int]:
    """{host: ranks} of DeepSpeed's hostfile: a line `name slots=N` for each host; `#` begins a comment.

    Raises:
        UserError: it is not there, or a line is no such line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"hostfile {path} cannot be read: it holds a line `name slots=N` for each host"
        ) from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        found = re.fullmatch(r"([\w.:-]+)\s+slots=([1-9]\d*)", line)
        if line and (not found or line.startswith("-") or found[1] in hosts):
            raise UserError(f"{path}, line {number}: {line!r} is not `name slots=N` of one more host")
        if found:
            hosts[found[1]] = int(found[2])
    if not hosts:
        raise UserError(f"hostfile {path} names no host: write a line `name slots=N` for each")
    return hosts


def main(hostfile: Path, stage: str) -> int:
    """Run a stage's ranks on the hosts of a hostfile; returns the first failure's status, or 0."""
    hosts = read_hostfile(hostfile)
    here = _names_of_this_host()
    if len(hosts) > 1 and next(iter(hosts)) in ("localhost", "127.0.0.1"):
        raise UserError(f"{hostfile}: the first host needs a name that the others can reach, not localhost")
    first, world, supervisors = 0, sum(hosts.values()), {}
    master = f"{next(iter(hosts))}:{random.randint(20_000, 29_999)}"
    environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    for host, count in hosts.items():
        command = [
            sys.executable,
            "-m",
            "pipeline.launch.local_ranks",
            stage,
            str(count),
            str(first),
            str(world),
            master,
        ]
        first += count
        supervisors[host] = subprocess.Popen(
            command if host in here else _through_ssh(host, command),
            stdin=subprocess.PIPE, preexec_fn=die_with_parent,
        )  # fmt: skip
        _tell(supervisors[host], json.dumps(environment))
    return _watch(supervisors)


def _watch(supervisors: dict[str, subprocess.Popen]) -> int:
    """Feed the hosts' heartbeats until all have ended; one that fails ends the others."""
    signalled: list[tuple[int, float]] = []

    def forward(number: int, frame: object) -> None:
        signalled.append((number, time.monotonic()))
        for supervisor in supervisors.values():
            _tell(supervisor, f"signal {number}")

    signal.signal(signal.SIGINT, forward)
    signal.signal(signal.SIGTERM, forward)
    beaten = 0.0
    while True:
        if time.monotonic() - beaten > BEAT:
            beaten = time.monotonic()
            for supervisor in supervisors.values():
                _tell(supervisor, "beat")
        codes = {host: supervisor.poll() for host, supervisor in supervisors.items()}
        failed = next(((host, code) for host, code in codes.items() if code), None)
        late = signalled and time.monotonic() - signalled[0][1] > GRACE
        if failed or late:
            for supervisor in supervisors.values():  # they end their ranks when nobody speaks to them
                _close(supervisor)
            time.sleep(1)
            for supervisor in supervisors.values():
                supervisor.kill()
            if failed and (failed[1] < 0 or failed[1] in (255, 127)):
                print(f"error: {_reason(*failed)}", file=sys.stderr)
            if signalled:
                return 128 + signalled[0][0]
            return max(failed[1], 1)
        if all(code == 0 for code in codes.values()):
            return 0
        time.sleep(0.05)


def _through_ssh(host: str, command: list[str]) -> list[str]:
    path = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
    there = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(['env', path, *command])}"
    settings = (
        "BatchMode=yes",
        "ConnectTimeout=10",
        f"ServerAliveInterval={BEAT}",
        f"ServerAliveCountMax={ALIVE}",
    )
    return ["ssh", *(part for setting in settings for part in ("-o", setting)), host, there]


def _reason(host: str, code: int) -> str:
    if code == 127:
        return f"host {host} has no {sys.executable}: install the project there, at the same path"
    return (
        f"host {host} is not in reach by ssh, or the connection to it was lost (noticed within {LOST} seconds): "
        f"see that `ssh {host} true` works without a password"
    )


def _names_of_this_host() -> set[str]:
    import psutil

    addresses = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
    return {"localhost", socket.gethostname(), socket.getfqdn(), *addresses}


def _tell(supervisor: subprocess.Popen, line: str) -> None:
    try:
        supervisor.stdin.write(line.encode() + b"\n")
        supervisor.stdin.flush()
    except (OSError, ValueError):
        pass  # it has ended: its status tells


def _close(supervisor: subprocess.Popen) -> None:
    try:
        supervisor.stdin.close()
    except OSError:
        pass


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
