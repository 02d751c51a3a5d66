"""The ranks of one host, as worker processes that live and die together.

torch's launcher starts each worker in a process group of its own and, on a signal, waits half a minute; here
a worker that fails ends the others at once, signals are passed on, and all die with this process.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints import store
from pipeline.launch.child_process import (
    GRACE,
    Child,
    collect_signals,
    die_at_signals,
    start_module,
)
from pipeline.launch.interrupts import SIGNALS
from stages.training.machine_limits import cores

MEETING_PORT = "meeting_port.json"
"""Where the ranks of several hosts meet, in the stage's directory, which all of them see."""

HEARTBEAT, LOST_AFTER = 5, 20
"""Seconds between two heartbeats of the process that started several hosts, and until it counts as lost."""


@dataclass(frozen=True)
class HostRanks:
    """Which ranks this host runs.

    Attributes:
        first: number of the first of them.
        world_size: ranks on all hosts; 0: these are all.
        master: the host where the ranks meet, with several hosts. Standard input then carries one line of JSON (the
            environment), then heartbeats and signals (pipeline/launch/remote_hosts.py). Without heartbeats the ranks
            are ended. The first host chooses the port and writes it to `MEETING_PORT`; the others' environment has it.
    """

    count: int
    first: int = 0
    world_size: int = 0
    master: str = ""


def threads_per_rank(ranks: int) -> str:
    """Threads that each rank may use where `ranks` of them are on this host."""
    return str(max(1, cores() // ranks))


def start_worker(stage: Path, environment: dict[str, str]) -> Child:
    """Start a rank as a process of its own."""
    return start_module("pipeline.launch.worker", stage, environment=environment, stdin=subprocess.DEVNULL)


def run_ranks(
    stage: Path, ranks: HostRanks, start: Callable[[Path, dict[str, str]], Child] = start_worker
) -> int:
    """Run a stage's ranks on this host. It passes SIGINT and SIGTERM on to them; its handlers stay installed.

    Args:
        start: starts a rank, given the stage and the rank's environment.

    Returns:
        0, or the status of the first that failed; 128 + a signal's number where a signal ended it.
    """
    received = collect_signals()  # before there is a rank; _watch passes on what comes while they start
    environment = os.environ | (json.loads(sys.stdin.readline()) if ranks.master else {})
    environment["WORLD_SIZE"] = str(ranks.world_size or ranks.count)
    environment.setdefault("OMP_NUM_THREADS", threads_per_rank(ranks.count))
    silent = threading.Event()
    with _free_port() as held:
        address, port = ranks.master or "127.0.0.1", str(held.getsockname()[1])
        if ranks.master:
            if not (stage / "stage.json").is_file():
                where = f"{socket.gethostname()} does not see {stage.absolute()}"
                print(f"error: host {where}: the hosts need a shared disk, at the same path", file=sys.stderr)
                return 2
            if ranks.first == 0:
                store.write_json(stage / MEETING_PORT, {"port": port})
            else:
                port = environment["MASTER_PORT"]
            threading.Thread(target=_listen, args=(received, silent), daemon=True).start()
        environment |= {"MASTER_ADDR": address, "MASTER_PORT": port}
        workers = [
            start(stage, environment | {"RANK": str(ranks.first + i), "LOCAL_RANK": str(i)})
            for i in range(ranks.count)
        ]
        return _watch(workers, ranks.first, received, silent)


def _watch(workers: Sequence[Child], first: int, received: deque[int], silent: threading.Event) -> int:
    """Wait until all workers have ended; one that fails ends the others."""
    stopped = 0  # by the first signal
    deadline = float("inf")
    while True:
        while received:
            number = received.popleft()
            if not stopped:
                stopped, deadline = number, time.monotonic() + GRACE
            for worker in workers:
                worker.send_signal(number)
        codes = [worker.poll() for worker in workers]
        failed = next((code for code in codes if code and code != (stopped and 128 + stopped)), 0)
        if failed or time.monotonic() > deadline or silent.is_set():
            if None in codes:  # the others may have failed for a reason of their own in the same moment
                time.sleep(1 if failed > 0 else 0.2)
            for rank, worker in enumerate(workers, first):
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
                elif worker.returncode and worker.returncode < 0 and -worker.returncode not in SIGNALS:
                    print(f"error: rank {rank} was killed by signal {-worker.returncode}", file=sys.stderr)
            if failed > 0:
                return failed
            return 128 + (stopped or -failed) if stopped or failed else 1
        if None not in codes:
            return 128 + stopped if stopped and any(codes) else 0
        time.sleep(0.05)


def _listen(received: deque[int], silent: threading.Event) -> None:
    """Collect the signals that standard input brings; it is silent when it ends, or brings no heartbeat."""
    heard = time.monotonic()

    def read() -> None:
        nonlocal heard
        for line in sys.stdin:
            heard = time.monotonic()
            if line.startswith("signal "):
                received.append(int(line.split()[1]))
        silent.set()

    threading.Thread(target=read, daemon=True).start()
    while not silent.wait(1):
        if time.monotonic() - heard > LOST_AFTER:
            silent.set()


def _free_port() -> socket.socket:
    """Hold a port until rank 0, which reuses addresses, listens on it, so that no other job takes it.

    It is held on all addresses, for rank 0 listens on all: what another job's gloo or NCCL has on one of them is in its way.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    return held


def main(stage: str, count: str, first: str = "0", world_size: str = "0", master: str = "") -> int:
    """Run the ranks that the command line names, by the attributes of `HostRanks`."""
    return run_ranks(Path(stage), HostRanks(int(count), int(first), int(world_size), master))


if __name__ == "__main__":
    die_at_signals()
    sys.exit(main(*sys.argv[1:]))
