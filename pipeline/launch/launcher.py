"""Chooses how a stage's ranks start: as forks of one process, or on several hosts."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

from pipeline.launch.child_process import signals_blocked, start_module
from pipeline.launch.interrupts import SIGNALS, exception_of
from stages.training.options import Job

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launcher:
    """Runs the stages of a run, one after the other, each on all its ranks.

    Used as a context. While a stage runs, Ctrl-C and SIGTERM are passed on to its ranks, which save
    and end; between stages Ctrl-C raises KeyboardInterrupt, and SIGTERM SystemExit. After either signal no stage starts:
    where something swallowed that exception, the signal is given on when the context ends.
    If this process dies in any other way, the ranks die with it.

    Args:
        run: the run's directory; it stands in the ranks' command line, for those who look for the run's processes.

    Example:
        with Launcher(run) as launcher:
            status = launcher.launch(run / "general", Job(nproc=2))
    """

    def __init__(self, run: Path):
        self._run = run
        self._fork_server: _ForkServer | None = None
        self._running: subprocess.Popen[bytes] | None = None  # the process that a signal is passed on to
        self._signal = 0  # the first that came
        self._told = True  # whether `launch` has returned its status since

    def __enter__(self) -> "Launcher":
        # Python delivers signals to its main thread alone: in another there are none to pass on.
        numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._handlers = {number: signal.signal(number, self._pass_on) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        self._end_fork_server()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if not self._told and error[0] is None:
            signal.raise_signal(self._signal)

    def launch(self, stage: Path, job: Job) -> int:
        """Run a stage.

        Args:
            stage: its directory, which holds `stage.json`.

        Returns:
            0 if it finished, 128 + a signal's number if that stopped it. Else the status of the rank that failed first:
            128 + a signal's number if that killed it; negative if the process that starts the ranks was itself killed.
        """
        if job.hostfile:
            self._end_fork_server()  # it would keep its memory
        with signals_blocked():  # until there is a process to pass them on to
            if self._signal:  # something swallowed the exception that it raised
                self._told = True
                return 128 + self._signal
            if job.hostfile:
                process = _start("remote_hosts", job.hostfile, stage)
            else:
                self._fork_server = self._fork_server or _ForkServer(self._run)
                process = self._fork_server.process
            self._running = process
        try:
            forks = self._fork_server
            code = forks.run_stage(stage, job.nproc) if forks else process.wait()
        finally:
            self._running = None
        self._told = True
        # A stage that was finishing when the signal came ends well; what follows it must not start.
        return code if code or not self._signal else 128 + self._signal

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal, self._told = self._signal or number, False
        if self._running:
            self._running.send_signal(number)
        else:
            raise exception_of(number)

    def _end_fork_server(self) -> None:
        if self._fork_server:
            self._fork_server.close()
            self._fork_server = None


class _ForkServer:
    """The process that forks the ranks (pipeline/launch/fork_server.py), as the launcher sees it."""

    def __init__(self, run: Path):
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = _start("fork_server", f"{run}/", stdin=theirs.fileno())
        self._answers = self._socket.makefile()

    def run_stage(self, stage: Path, ranks: int) -> int:
        """Have a stage run; returns its exit status, or the process's own where that ended first."""
        answer = ""
        with contextlib.suppress(OSError):
            self._socket.sendall(b"%d %s\n" % (ranks, os.fsencode(stage)))
            answer = self._answers.readline()
        return int(answer) if answer else self.process.wait() or 1

    def close(self) -> None:
        """End the process."""
        self._answers.close()
        self._socket.close()
        self.process.wait()


def _start(module: str, *arguments: object, stdin: int | None = None) -> subprocess.Popen[bytes]:
    # Whatever started this process may have ranks of its own (torchrun, Slurm): ours are set where workers start.
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    # In a session of its own, so that a terminal's Ctrl-C comes once, from here.
    module = f"pipeline.launch.{module}"
    return start_module(module, *arguments, environment=environment, stdin=stdin, new_session=True)
