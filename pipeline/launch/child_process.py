"""Child processes that die with their parent, keep freed memory, and to which no signal is lost while they start.

A child starts with SIGINT and SIGTERM blocked, so an early signal waits. The child's first statement,
`die_at_signals`, unblocks them with the default action: a signal during imports ends the process at once, and nothing
needs saving yet. A process that watches others replaces that by `collect_signals`, and a training loop by its own handlers.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from typing import IO, Protocol

from pipeline.launch.interrupts import SIGNALS

GRACE = 120
"""Seconds that ranks have to save after a signal, before they are killed."""

MALLOPT = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),
    "MALLOC_TOP_PAD_": (-2, 100_000_000),
}
"""glibc's environment variable -> its number for `mallopt`, and the value that is set."""


class Child(Protocol):
    """What is used of a `subprocess.Popen`; a forked child offers the same."""

    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self) -> int | None: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


def start_module(
    module: str,
    *arguments: object,
    environment: dict[str, str],
    stdin: int | IO[bytes] | None = None,
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments`; the module must call `die_at_signals` first."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    parent = os.getpid()
    with signals_blocked():
        return subprocess.Popen(
            command, env=environment, stdin=stdin, start_new_session=new_session,
            preexec_fn=lambda: die_with_parent(parent),
        )  # fmt: skip


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies.

    Args:
        parent: process id of the parent; if that has died already, this process ends here.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def keep_freed_memory() -> None:
    """From now on large buffers that a step frees stay with this process, so that the next step's need not be zeroed.

    What the environment sets of glibc's memory options stays.
    """
    if hasattr(ctypes.CDLL(None), "mallopt"):  # glibc
        for variable, (number, value) in MALLOPT.items():
            if variable not in os.environ:
                ctypes.CDLL(None).mallopt(number, value)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block ends. A child that the block starts has them blocked, too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_at_signals() -> None:
    """From now on SIGINT and SIGTERM end this process at once, also those that were blocked and are pending."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def collect_signals() -> deque[int]:
    """From now on SIGINT and SIGTERM only add their number to the queue that is returned."""
    received: deque[int] = deque()
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: received.append(number))
    return received
