"""How the ranks of a stage are started: one process, several on this host, or several hosts."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from stages.training.options import Job

GRACE = 120
"""Seconds the ranks have to save after a signal."""

KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
    "MALLOC_TOP_PAD_": "100000000",
}
"""For glibc: large buffers that a step frees stay with the process, so that the next step's need not be zeroed."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launcher:
    """Runs the workers of a run's stages; on one host, where that is possible, as forks of one process."""

    def __init__(self, run: Path):
        self._run = run
        self._forks: _Forks | None = None

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *error: object) -> None:
        if self._forks:
            self._forks.end()
            self._forks = None

    def launch(self, stage: Path, job: Job) -> int:
        """Run a stage's worker on all ranks; returns its exit status.

        Ctrl-C and SIGTERM are passed on and waited for: the ranks save first. If this process dies in any
        other way, the workers die with it.
        """
        if job.hostfile:
            self.__exit__()  # it would keep its memory
            process = _start("remote_hosts", job.hostfile, stage)
            wait = process.wait
        elif can_fork():
            self._forks = self._forks or _Forks(self._run)
            process, wait = self._forks.process, lambda: self._forks.work(stage, job.nproc)
        else:
            process = _start("local_ranks", stage, job.nproc)
            wait = process.wait
        signalled = []

        def forward(number: int, frame: object) -> None:
            signalled.append(number)
            process.send_signal(number)

        # Python delivers signals to its main thread alone: in another there are none to pass on.
        numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, forward) for number in numbers}
        try:
            code = wait()
            # A stage that was finishing when the signal came ends well; what follows it must not start.
            return code if code or not signalled else 128 + signalled[0]
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Forks:
    """The process that forks workers (pipeline/launch/forked_ranks.py), as its launcher sees it."""

    def __init__(self, run: Path):
        self._socket, theirs = socket.socketpair()
        # The run is told for those who look for its processes.
        self.process = _start("forked_ranks", f"{run}/", stdin=theirs)
        theirs.close()
        self._answers = self._socket.makefile()

    def work(self, stage: Path, ranks: int) -> int:
        """Have a stage run; returns its exit status, or this process's own where that ended first."""
        answer = ""
        with contextlib.suppress(OSError):
            self._socket.sendall(b"%d %s\n" % (ranks, os.fsencode(stage)))
            answer = self._answers.readline()
        return int(answer) if answer else self.process.wait() or 1

    def end(self) -> None:
        """Let the process go."""
        self._answers.close()
        self._socket.close()
        self.process.wait()


def can_fork() -> bool:
    """Whether a process that has imported what stages need can be forked: CUDA does not outlive that."""
    return sys.platform == "linux" and not Path("/dev/nvidiactl").exists()


def _start(module: str, *arguments: object, stdin: socket.socket | None = None) -> subprocess.Popen:
    # Whatever started this process may have ranks of its own (torchrun, Slurm): ours are set where workers start.
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    for name, value in KEEP_FREED_MEMORY.items():
        environment.setdefault(name, value)
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    # In a session of its own, so that a terminal's Ctrl-C comes once, from here.
    return subprocess.Popen(
        [sys.executable, "-m", f"pipeline.launch.{module}", *map(str, arguments)],
        env=environment, stdin=stdin, preexec_fn=die_with_parent, start_new_session=True,
    )  # fmt: skip


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux; elsewhere nothing is done)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
