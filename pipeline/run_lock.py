"""Locks: one process works on a run at a time, and runs that begin together make a stage that they share once."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from checkpoints.errors import UserError

LOCK, OWNER = ".lock", ".owner"
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of a disk without locks, such as NFS without its lock service. (Of ENOSYS `FileLock` takes care.)"""


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

    On a disk without locks a file stands for it, which a later command on this host removes if this process is dead.

    Raises:
        UserError: another process holds it.
    """
    lock: BaseFileLock = FileLock(run / LOCK)
    try:
        try:
            lock.acquire(blocking=False)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            lock = SoftFileLock(run / f"{LOCK}.held")
            lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{run} is in use by {_text(run / OWNER) or 'another process'}: wait until that has finished, "
            "or give another run=NAME"
        ) from None
    try:
        (run / OWNER).unlink(missing_ok=True)  # a dead process's
        with open(run / OWNER, "w", encoding="utf-8") as owner:
            # What `lock_state` looks at: a command waits for that look, and is not refused.
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(owner, fcntl.LOCK_EX)
            owner.write(f"process {os.getpid()} on {socket.gethostname()}")
            owner.flush()
            yield
    finally:
        (run / OWNER).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def stage_lock(path: Path, run: str, waits: Callable[[str], bool]) -> Iterator[None]:
    """Hold the lock of all stages with one fingerprint, while one of them is made.

    Args:
        path: the lock's file. A file beside it holds the name of the run that took it last. Neither is removed.
        run: the name of this run.
        waits: called if another run holds the lock, with its name ("" if that is not known); says whether to wait for it,
            or to go on without.
    """
    lock, holder = FileLock(path), path.with_suffix(".run")
    try:
        path.parent.mkdir(exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        if waits(_text(holder)):
            lock.acquire(poll_interval=1)
    except OSError:  # not ours to write, as where another user made the cache: it only saves work
        pass
    try:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                holder.write_text(run, encoding="utf-8")
        yield
    finally:
        lock.release()


def lock_state(run: Path) -> LockState:
    """Look at the lock of a run, without taking it.

    Raises:
        OSError: a command could not take it, for the file cannot be written.
    """
    if (run / LOCK).exists():
        open(run / LOCK, "a").close()
    held = False
    with contextlib.suppress(FileNotFoundError), open(run / OWNER, encoding="utf-8") as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        except OSError:  # a disk without locks, which commands tolerate, too
            held = False
    return LockState(held, _text(run / OWNER))


def _text(path: Path) -> str:
    """What a file says; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
