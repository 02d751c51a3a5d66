"""The ranks of one host, as worker processes that live and die together.

torch's launcher starts each worker in a process group of its own and, on a signal, waits half a minute; here
a worker that fails ends the others at once, signals are passed on, and all die with this process.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.launch.launcher import GRACE, die_with_parent
from stages.training.machine_limits import cores

BEAT, LOST = 5, 20
"""Seconds between two heartbeats of the process that started several hosts, and until it counts as lost."""


def threads_of(ranks: int) -> str:
    """Threads of each of so many ranks on this host."""
    return str(max(1, cores() // ranks))


def start_worker(stage: str, environment: dict[str, str]) -> subprocess.Popen:
    """A worker that is a process of its own."""
    command = [sys.executable, "-m", "pipeline.launch.worker", stage]
    return subprocess.Popen(command, env=environment, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL)


def main(
    stage: str, count: int, first: int = 0, world: int = 0, master: str = "", start: Callable = start_worker
) -> int:
    """Run workers of a stage on this host; returns the first failure's status, or 0.

    Args:
        stage: its directory.
        count: ranks on this host.
        first: number of the first of them.
        world: ranks on all hosts; 0: these are all.
        master: host:port where the ranks meet, where there are several hosts. Standard input then brings a line
            with their environment as JSON, then heartbeats and signals (pipeline/launch/remote_hosts.py); the ranks end when it
            falls silent.
        start: starts a worker, given the stage and its environment.
    """
    environment = os.environ | (json.loads(sys.stdin.readline()) if master else {})
    environment["WORLD_SIZE"] = str(world or count)
    environment.setdefault("OMP_NUM_THREADS", threads_of(count))
    with _free_port() as held:
        address, port = master.rsplit(":", 1) if master else ("127.0.0.1", str(held.getsockname()[1]))
        if master:
            if not (Path(stage) / "stage.json").is_file():
                where = f"{socket.gethostname()} does not see {Path(stage).absolute()}"
                print(f"error: host {where}: the hosts need a shared disk, at the same path", file=sys.stderr)
                return 2
            environment = _on_the_way_to(address) | environment
        environment |= {"MASTER_ADDR": address, "MASTER_PORT": port}
        workers = [
            start(stage, environment | {"RANK": str(first + rank), "LOCAL_RANK": str(rank)})
            for rank in range(count)
        ]
        return _watch(workers, first, bool(master))


def _watch(workers: list, first: int, several_hosts: bool) -> int:
    """Wait until all workers have ended; one that fails ends the others."""
    signalled = []

    def forward(number: int, frame: object = None) -> None:
        signalled.append((number, time.monotonic()))
        for worker in workers:
            worker.send_signal(number)

    signal.signal(signal.SIGINT, forward)
    signal.signal(signal.SIGTERM, forward)
    lost = threading.Event()
    if several_hosts:
        threading.Thread(target=_listen, args=(forward, lost), daemon=True).start()
    while True:
        codes = [worker.poll() for worker in workers]
        failed = next((code for code in codes if code), None)
        late = signalled and time.monotonic() - signalled[0][1] > GRACE
        if failed or late or lost.is_set():
            if None in codes:  # the others may have failed for a reason of their own in the same moment
                time.sleep(1 if failed and failed > 0 else 0.2)
            for rank, worker in enumerate(workers, first):
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
                elif worker.returncode < 0 and not signalled:
                    print(f"error: rank {rank} was killed by signal {-worker.returncode}", file=sys.stderr)
            if failed and failed > 0:
                return failed
            if signalled:
                return 128 + signalled[0][0]
            return 128 - failed if failed else 1
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)


def _listen(forward, lost: threading.Event) -> None:
    """Pass on the signals that standard input brings; it is lost when it ends or falls silent."""
    heard = [time.monotonic()]

    def read() -> None:
        for line in sys.stdin:
            heard[0] = time.monotonic()
            if line.startswith("signal "):
                forward(int(line.split()[1]))
        lost.set()

    threading.Thread(target=read, daemon=True).start()
    while not lost.wait(1):
        if time.monotonic() - heard[0] > LOST:
            lost.set()


def _free_port() -> socket.socket:
    """A port that is this host's alone while the socket is open; rank 0, which reuses addresses, may listen there.

    Between now and then lie the seconds in which the ranks start, and other jobs look for ports too.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _on_the_way_to(master: str) -> dict[str, str]:
    """gloo and NCCL are told the network interface that leads to the master: a host's own name may not."""
    import psutil

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 1))  # of UDP: nothing is sent
        own = probe.getsockname()[0]
    names = [name for name, found in psutil.net_if_addrs().items() if own in (a.address for a in found)]
    return {"GLOO_SOCKET_IFNAME": names[0], "NCCL_SOCKET_IFNAME": names[0]} if names else {}


if __name__ == "__main__":
    stage, *numbers = sys.argv[1:]
    try:
        sys.exit(main(stage, *map(int, numbers[:3]), *numbers[3:]))
    except KeyboardInterrupt:  # before it passes signals on: what it started dies with it
        sys.exit(128 + signal.SIGINT)
