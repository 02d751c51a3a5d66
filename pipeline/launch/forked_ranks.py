"""Runs stages one after the other, each rank in a fork of this process: what they import is imported once.

The launcher asks through the socket that is this process's stdin: the number of ranks and the directory of a stage, a
line; the answer is the exit status. Linux without GPUs only, for CUDA does not outlive a fork. Nothing is computed
before a fork, so a stage begins in the state in which processes of its own would.
"""

import contextlib
import os
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Fork:
    """A worker, used as a `subprocess.Popen` is."""

    def __init__(self, stage: str, environment: dict[str, str]):
        self.returncode: int | None = None
        this = os.getpid()
        # A signal finds the worker with its own handlers, or this process with the worker in its care.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._process = os.fork()
        if not self._process:
            _work(stage, environment, this)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        return self._reap(0)

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reap(self, how: int) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self._process, how)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode


def _work(stage: str, environment: dict[str, str], parent: int) -> NoReturn:
    from pipeline.launch import worker
    from pipeline.launch.launcher import die_with_parent

    _end_at_signals()  # until the stage's loop listens: nothing is to be saved
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())  # it is the launcher's socket
    os.environ.update(environment)
    try:
        code = worker.main(Path(stage))
    except BaseException:
        traceback.print_exc()
        code = 1
    worker.leave(code)


def _end_at_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: os._exit(128 + number))


def main() -> None:
    """Run the stages that are asked for, until the launcher goes."""
    launcher = socket.socket(fileno=sys.stdin.fileno())
    _end_at_signals()
    # From here on an import may be cut short without a word.
    from pipeline.launch import local_ranks as ranks
    from pipeline.launch import worker

    worker.set_environment()
    import deepspeed  # noqa: F401

    import stages.evaluate  # noqa: F401

    # Python 3.12 warns where a process with threads forks; the one thread here is the memory allocator's, which allows it.
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    for line in launcher.makefile("rb"):
        count, _, stage = os.fsdecode(line.rstrip(b"\n")).partition(" ")
        status = ranks.main(stage, int(count), start=Fork)
        _end_at_signals()
        launcher.sendall(f"{status}\n".encode())


if __name__ == "__main__":
    main()
    os._exit(0)  # as a worker does
