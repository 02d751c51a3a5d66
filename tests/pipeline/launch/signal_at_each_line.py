"""Starts a stage again and again, each time with a SIGINT at the next line of pipeline/launch: none may be lost.

Run as `python -m tests.pipeline.launch.signal_at_each_line WHERE DIRECTORY`, where WHERE names the process whose lines are
counted: launcher, fork-server or rank. What ranks import is replaced, so that a start takes milliseconds.
"""

import mmap
import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pipeline.launch
from pipeline.launch import child_process, fork_server, launcher
from stages.training.options import Job

HERE = pipeline.launch.__path__[0]
STOPPED = 128 + signal.SIGINT
ANSWERS_LATER = (
    "import socket, time; from pipeline.launch.child_process import *; die_at_signals(); time.sleep(0.3); "
    "socket.socket(fileno=0).send(b'0\\n')"
)


class Tracer:
    """Sends SIGINT to process `target` before the `number`-th line of pipeline/launch that it, or its fork, runs."""

    def __init__(self, target: int, number: int, in_forks: bool, sent: mmap.mmap):
        self.target, self.number, self.in_forks, self.sent = target, number, in_forks, sent
        self.seen: set[tuple[str, int]] = set()
        sys.settrace(self)

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        if event == "line" and not self.sent[0] and self.in_forks == (os.getpid() != self.target):
            self.seen.add((frame.f_code.co_filename, frame.f_lineno))
            if len(self.seen) == self.number:
                self.sent[0] = 1
                os.kill(self.target, signal.SIGINT)
        return self


def status_of_fork_server(line: int, in_forks: bool, sent: mmap.mmap) -> int:
    """Status of a stage that a fork server runs, or that of the fork server where it ended first; 0: it goes on."""
    ours, theirs = socket.socketpair()
    with child_process.signals_blocked():
        process = os.fork()
        if not process:
            ours.close()
            os.dup2(theirs.fileno(), 0)
            sys.stdin = open(0)
            Tracer(os.getpid(), line, in_forks, sent)
            _run_fork_server()
    theirs.close()
    ours.settimeout(1.5)
    try:
        ours.sendall(b"1 stage\n")
        answer = ours.recv(100).decode()
    except ConnectionError:
        answer = ""
    except TimeoutError:
        answer = "0"
        os.kill(process, signal.SIGKILL)
    ours.close()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return int(answer or status)


def _run_fork_server() -> None:
    worker = types.ModuleType("pipeline.launch.worker")
    worker.main, worker.leave, worker.set_environment = lambda stage: time.sleep(20), os._exit, lambda: None
    names = ("deepspeed", "sklearn", "sklearn.metrics", "pipeline.launch.stage_types")
    fakes = (worker, *map(types.ModuleType, names))
    sys.modules.update({fake.__name__: fake for fake in fakes})
    pipeline.launch.worker = worker
    child_process.die_at_signals()
    fork_server.main()
    os._exit(0)


def launch(line: int, directory: Path, sent: mmap.mmap) -> int:
    """Status of a stage that the launcher starts."""
    try:
        with launcher.Launcher(directory) as started:
            Tracer(os.getpid(), line, False, sent)
            try:
                return started.launch(directory, Job())
            finally:
                sys.settrace(None)
    except KeyboardInterrupt:
        return STOPPED


def main() -> int:
    """Returns 1 if a signal was lost."""
    where, directory = sys.argv[1], Path(sys.argv[2])
    popen = subprocess.Popen
    subprocess.Popen = lambda command, **given: popen([sys.executable, "-Sc", ANSWERS_LATER], **given)
    for line in range(1, 200):
        sent = mmap.mmap(-1, 1)  # shared with the forks
        if where == "launcher":
            status = launch(line, directory, sent)
        else:
            status = status_of_fork_server(line, where == "rank", sent)
        if not sent[0]:
            print(f"{line - 1} lines")
            return int(line < 10)
        if status not in (STOPPED, -signal.SIGINT):
            print(f"lost at line {line}: status {status}")
            return 1
    return 1


if __name__ == "__main__":
    sys.exit(main())
