"""Runs stages one after the other, each rank in a fork of this process: what they import is imported once.

The launcher writes a line to the socket that is this process's stdin: the number of ranks and the directory of a stage;
the answer is the exit status. Nothing is computed before a fork, so a forked rank starts in the same state as
a fresh process. CUDA does not survive a fork: if an import here has initialised it, each rank replaces itself by
a new process.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

from pipeline.launch.child_process import die_at_signals, die_with_parent, signals_blocked


class ForkedWorker:
    """A rank that is a fork of this process, used as a `subprocess.Popen` is."""

    def __init__(self, stage: Path, environment: dict[str, str]):
        self.returncode: int | None = None
        parent = os.getpid()
        with signals_blocked():  # until the child has dropped this process's handlers
            self._process = os.fork()
            if not self._process:
                _run_worker(stage, environment, parent)

    def poll(self) -> int | None:
        """The exit status if it has ended, else None."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        """Wait until it has ended; returns the exit status."""
        return self._reap(0)

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, sig)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self._process, options)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode


def _run_worker(stage: Path, environment: dict[str, str], parent: int) -> NoReturn:
    die_at_signals()
    die_with_parent(parent)
    from pipeline.launch import worker

    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())  # it is the launcher's socket
    os.environ.update(environment)
    try:
        code = worker.main(stage)
    except BaseException:
        traceback.print_exc()
        code = 1
    worker.leave(code)


def main() -> None:
    """Run the stages that are asked for, until the launcher goes."""
    from pipeline.launch import worker
    from pipeline.launch.local_ranks import HostRanks, run_ranks

    launcher = socket.socket(fileno=sys.stdin.fileno())
    worker.set_environment()
    import deepspeed  # noqa: F401
    import sklearn.metrics  # noqa: F401

    from pipeline.launch import stage_types  # noqa: F401

    gc.freeze()  # or each fork would copy what its collector looks at
    # Python 3.12 warns where a process with threads forks; the one thread here is the memory allocator's, which allows it.
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    for line in launcher.makefile("rb"):
        count, _, stage = os.fsdecode(line.rstrip(b"\n")).partition(" ")
        status = run_ranks(Path(stage), HostRanks(int(count)), start=ForkedWorker)
        die_at_signals()
        launcher.sendall(f"{status}\n".encode())


if __name__ == "__main__":
    die_at_signals()
    main()
    os._exit(0)  # as a worker does
