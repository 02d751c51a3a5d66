"""Locks: one process works on a run at a time, and runs that begin together make a stage that they share once."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from checkpoints.errors import UserError

LOCK, OWNER = ".lock", ".owner"


@dataclass(frozen=True)
class LockState:
    """Whether a run is locked, and by which process.

    Attributes:
        held: a live process holds the lock.
        owner: "process ID on HOST" of the one that last took it, unless that process has given it back.
    """

    held: bool
    owner: str


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the lock of a run. The system releases it when this process dies, however that happens.

    Raises:
        UserError: another process holds it.
    """
    lock, owner = FileLock(run / LOCK), run / OWNER
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{run} is in use by {_owner(run) or 'another process'}: wait until that has finished, "
            "or give another run=NAME"
        ) from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def stage_lock(path: Path, waits: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock of all stages with one fingerprint, while one of them is made.

    Args:
        path: the lock's file, which stays.
        waits: called if another process holds the lock; says whether to wait for it, or to go on without.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        if waits():
            lock.acquire(poll_interval=1)
    except OSError:  # not ours to write, as where another user made the cache: it only saves work
        pass
    try:
        yield
    finally:
        lock.release()


def lock_state(run: Path) -> LockState:
    """Look at the lock of a run."""
    held = False
    if (run / LOCK).exists():
        try:
            with FileLock(run / LOCK).acquire(blocking=False):
                pass
        except Timeout:
            held = True
    return LockState(held, _owner(run))


def _owner(run: Path) -> str:
    try:
        return (run / OWNER).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
