"""Runs stages of one rank one after the other, each in a fork of this process: what they import is imported once.

The launcher asks through the socket that is this process's stdin: the directory of a stage, a line; the answer is the exit
status of its worker. Linux without GPUs only, for CUDA does not outlive a fork. Nothing is computed before a fork,
so a stage begins in the state in which a process of its own would.
"""

import contextlib
import os
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path


def main() -> None:
    """Fork a worker for each stage that is asked for, until the launcher goes."""
    launcher, child = socket.socket(fileno=sys.stdin.fileno()), 0

    def stop(number: int, frame: object) -> None:
        """For the worker, if there is one; this runs in it too, until its loop listens: nothing is to be saved."""
        if not child:
            os._exit(128 + number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    # From here on an import may be cut short without a word.
    from pipeline import worker
    from pipeline.launch import die_with_parent

    worker.set_environment()
    import deepspeed  # noqa: F401

    import stages.distill
    import stages.evaluate  # noqa: F401

    # Python 3.12 warns where a process with threads forks; the one thread here is the memory allocator's, which allows it.
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    this = os.getpid()
    for line in launcher.makefile("rb"):
        child = os.fork()
        if not child:
            die_with_parent()
            if os.getppid() != this:
                os._exit(1)
            os.dup2(os.open(os.devnull, os.O_RDONLY), launcher.fileno())
            try:
                code = worker.main(Path(os.fsdecode(line.rstrip(b"\n"))))
            except BaseException:
                traceback.print_exc()
                code = 1
            worker.leave(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        child = 0
        launcher.sendall(f"{status}\n".encode())


if __name__ == "__main__":
    main()
    os._exit(0)  # as a worker does
