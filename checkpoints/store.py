"""What a stage leaves on disk, and how it is trusted again.

A directory is *sealed* when its `manifest.json`, written last, lists every file with size and sha256.
Sealed directories are written staging, synced, and renamed into place: what stands under a final name is
whole, or is found out by `verify`.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoints.errors import UserError
from checkpoints.fingerprint import sha256_file

MANIFEST = "manifest.json"


class Damaged(Exception):
    """A sealed directory that is not what its manifest says. The message names the file."""


def write_json(path: Path, value: object) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with open(staging, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
    _sync(path.parent)


def read_json(path: Path) -> dict:
    """A JSON object from a file; an absent or torn file is an empty one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def seal(staging: Path, target: Path) -> None:
    """Make a directory written aside final: sync its files, write the manifest, rename to `target`.

    A directory already standing at `target` is moved out of the way first and removed after.
    """
    files = {}
    for path in sorted(p for p in staging.rglob("*") if p.is_file()):
        _sync(path)
        files[path.relative_to(staging).as_posix()] = {
            "size": path.stat().st_size,
            "sha256": sha256_file(path),
        }
    for directory in (p for p in staging.rglob("*") if p.is_dir()):
        _sync(directory)
    write_json(staging / MANIFEST, {"files": files})
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def sealed(target: Path) -> Iterator[Path]:
    """Write a directory aside and seal it at `target` when the block ends without an exception.

    Raises:
        UserError: the disk is full; `target` is as it was before.
    """
    staging = fresh_staging(target, f"-{os.getpid()}")
    try:
        yield staging
        seal(staging, target)
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise disk_error(error, target) from error


def fresh_staging(target: Path, suffix: str = "") -> Path:
    """An empty directory beside `target` in which its next content is written."""
    staging = target.with_name(f".writing-{target.name}{suffix}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def disk_error(error: Exception, target: Path) -> Exception:
    """A full disk as a message for the user, what safetensors heard of the system as that; others as they are."""
    heard = re.search(r"os error (\d+)", str(error))
    if heard and not isinstance(error, OSError):
        error = OSError(int(heard[1]), os.strerror(int(heard[1])), str(target))
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # torch and safetensors wrap what the system said in errors of their own
    if not full and not any(words in str(error) for words in ("No space left", "PytorchStreamWriter failed")):
        return error
    return UserError(
        f"no space left to write {target} ({shutil.disk_usage(target.parent).free / 1e6:.0f} MB free); "
        "what was saved before is intact: free some space and run the same command again"
    )


def need_space(directory: Path, size: int, what: str) -> None:
    """Look before writing.

    Args:
        directory: where it will be written.
        size: bytes.
        what: opens the message.

    Raises:
        UserError: the disk has less free.
    """
    free = shutil.disk_usage(directory).free
    if free < size:
        raise UserError(
            f"{what} needs {size / 1e6:,.1f} MB in {directory}, where {free / 1e6:,.1f} MB are free: free "
            f"{(size - free) / 1e6:,.1f} MB and run the same command again; what was saved before is intact"
        )


def verify(directory: Path) -> None:
    """Check a sealed directory against its manifest.

    Raises:
        Damaged: the manifest or a file of it is missing, a size or hash differs, or a name leads out of it.
    """
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        said = [(name, about["size"], about["sha256"]) for name, about in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{directory / MANIFEST} is missing or unreadable") from error
    if not said:
        raise Damaged(f"{directory / MANIFEST} names no file")
    for name, size, sha256 in said:
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Damaged(f"{directory / MANIFEST} names {name!r}, which is not inside the directory")
        try:
            if not path.is_file():
                raise Damaged(f"{path} is missing")
            if path.stat().st_size != size:
                raise Damaged(f"{path} has {path.stat().st_size} bytes, its manifest says {size}")
            if sha256_file(path) != sha256:
                raise Damaged(f"{path} does not have the content its manifest says")
        except OSError as error:
            raise Damaged(f"{path} cannot be read ({error.strerror})") from error


def is_whole(directory: Path) -> bool:
    """Whether a sealed directory is there and is what its manifest says."""
    try:
        verify(directory)
    except Damaged:
        return False
    return True


def step_name(step: int) -> str:
    """The name of the checkpoint of an optimiser step; names sort as steps do."""
    return f"step-{step:08d}"


def newest(directory: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint under `directory` whose manifest holds, or None.

    Damaged ones are reported by name, and the one before is tried.
    """
    for path in sorted(directory.glob("step-*"), reverse=True):
        try:
            verify(path)
            return path
        except Damaged as damage:
            report(f"checkpoint {path.name} is damaged ({damage}); the one before it is used")
    return None


def keep_newest(directory: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints, and what an interrupted save left behind."""
    for path in sorted(directory.glob("step-*"))[:-count]:
        shutil.rmtree(path, ignore_errors=True)
    for path in (*directory.glob(".old-*"), *directory.glob(".writing-*")):
        shutil.rmtree(path, ignore_errors=True)


def remove(directory: Path) -> None:
    """Remove a directory if it is there."""
    shutil.rmtree(directory, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
