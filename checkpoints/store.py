"""Directories that are written atomically and verified when they are read.

A directory is *sealed* when its `manifest.json`, written last, lists every file with size and sha256. Sealed
directories are written under another name, synced, and renamed into place. So a directory under its final name is
whole, or `verify` finds out that it is not.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoints.errors import FULL, UserError
from checkpoints.fingerprint import sha256_file

MANIFEST = "manifest.json"
VERIFIED = ".verified.json"
"""In a sealed directory: size and times of its files when they were verified. Only saves time."""


class Damaged(Exception):
    """A sealed directory that is not what its manifest says. The message names the file."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces `path` when the block ends: a reader sees the old or the new one."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield staging
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, which replaces the one that is there."""
    with replaced(path) as staging:
        staging.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
        _sync(staging)
    _sync(path.parent)


def read_json(path: Path) -> dict:
    """Read a JSON object; an absent or damaged file reads as an empty object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def seal(staging: Path, target: Path) -> None:
    """Sync the files of `staging`, write its manifest, and rename it to `target`.

    A directory that is already at `target` is moved away first and removed afterwards.
    """
    _write_manifest(staging)
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_manifest(staging: Path) -> None:
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


@contextmanager
def sealed(target: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a directory to write to, and seal it at `target` if the block ends without an exception.

    Args:
        shared: other processes may make the same content at the same time. The first to seal it wins, for others may
            read it already. It counts as verified (`verify_once`), for its hashes are known.

    Raises:
        UserError: the disk is full; `target` is as it was before.
    """
    staging = fresh_staging(target, f"-{os.getpid()}")
    try:
        yield staging
        if shared:
            _seal_first(staging, target)
        else:
            seal(staging, target)
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise disk_error(error, target) from error


def _seal_first(staging: Path, target: Path) -> None:
    """Seal `staging` at `target`, or remove it where another process was first."""
    _write_manifest(staging)
    write_json(staging / VERIFIED, _stamps(staging))
    try:
        staging.rename(target)  # fails where a directory with files is
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(staging)
    _sync(target.parent)


def fresh_staging(target: Path, suffix: str = "") -> Path:
    """Make an empty directory beside `target` for its next content."""
    staging = target.with_name(f".writing-{target.name}{suffix}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def disk_error(error: Exception, target: Path) -> Exception:
    """Turn out-of-space errors, including those that torch and safetensors wrap, into a `UserError`.

    Other errors of the system that safetensors wraps become an `OSError`; all others are returned unchanged.
    """
    wrapped = re.search(r"os error (\d+)", str(error))
    if wrapped and not isinstance(error, OSError):
        error = OSError(int(wrapped[1]), os.strerror(int(wrapped[1])), str(target))
    full = isinstance(error, OSError) and error.errno in FULL
    if not full and not any(words in str(error) for words in ("No space left", "PytorchStreamWriter failed")):
        return error
    return UserError(
        f"no space left to write {target} ({shutil.disk_usage(target.parent).free / 1e6:.0f} MB free): free some space "
        "and run the same command again; what was saved before is intact"
    )


def need_space(directory: Path, size: int, what: str) -> None:
    """Check that a disk has room before something is written to it.

    Args:
        size: bytes.
        what: the subject of the message.

    Raises:
        UserError: the disk has less space free.
    """
    free = shutil.disk_usage(directory).free
    if free < size:
        raise UserError(
            f"{what} needs {size / 1e6:,.1f} MB in {directory}, where {free / 1e6:,.1f} MB are free: free "
            f"{(size - free) / 1e6:,.1f} MB and run the same command again; what was saved before is intact"
        )


def reserve(path: Path, size: int) -> None:
    """Have the disk keep room for a file before it is mapped: a write that then finds none would kill the process.

    Args:
        size: bytes; a shorter file, or none, becomes that long.

    Raises:
        OSError: the disk is full.
    """
    file = os.open(
        path, os.O_RDWR | os.O_CREAT, 0o666
    )  # not to append: disks that cannot reserve refuse that
    try:
        os.posix_fallocate(file, 0, size)
    finally:
        os.close(file)


def verify(directory: Path, contents: bool = True) -> None:
    """Check a sealed directory against its manifest.

    Args:
        contents: whether to read the files, too; else only their sizes are looked at.

    Raises:
        Damaged: the manifest or a file is missing, a size or hash differs, or a name leads out of the directory.
    """
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        entries = [(name, entry["size"], entry["sha256"]) for name, entry in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{directory / MANIFEST} is missing or unreadable") from error
    if not entries:
        raise Damaged(f"{directory / MANIFEST} names no file")
    for name, size, sha256 in entries:
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Damaged(f"{directory / MANIFEST} names {name!r}, which is not inside the directory")
        try:
            if not path.is_file():
                raise Damaged(f"{path} is missing")
            if path.stat().st_size != size:
                raise Damaged(f"{path} has {path.stat().st_size} bytes, not {size} as its manifest says")
            if contents and sha256_file(path) != sha256:
                raise Damaged(f"{path} has not the content that its manifest records")
        except OSError as error:
            raise Damaged(f"{path} cannot be read ({error.strerror})") from error


def verify_once(directory: Path) -> None:
    """Check a sealed directory as `verify` does, but read its files only if they changed since the last time.

    Raises:
        Damaged: as of `verify`.
    """
    if not is_verified(directory):
        stamps = _stamps(directory)
        verify(directory)
        with contextlib.suppress(OSError):  # not ours to write
            write_json(directory / VERIFIED, stamps)


def is_verified(directory: Path) -> bool:
    """Return whether no file of a sealed directory changed since `verify_once` found it whole, by size and times."""
    known = read_json(directory / VERIFIED)
    return bool(known) and known == _stamps(directory)


def _stamps(directory: Path) -> dict[str, list[int]]:
    found = {}
    for name in (MANIFEST, *read_json(directory / MANIFEST).get("files", ())):
        try:
            status = (directory / name).stat()
        except OSError:
            continue
        found[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return found


def damage(directory: Path, contents: bool = True) -> str:
    """Return what `verify` finds wrong with a sealed directory; empty if it is whole."""
    try:
        verify(directory, contents)
    except Damaged as found:
        return str(found)
    return ""


def is_whole(directory: Path, contents: bool = True) -> bool:
    """Return whether a sealed directory exists and is what its manifest says, to `verify`."""
    return not damage(directory, contents)


def step_name(step: int) -> str:
    """Return the directory name of a step's checkpoint; names sort as steps do."""
    return f"step-{step:08d}"


def newest(directory: Path, report: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint under `directory` that is not damaged, or None; `report` hears of damaged ones."""
    for path in sorted(directory.glob("step-*"), reverse=True):
        if not (wrong := damage(path)):
            return path
        report(f"checkpoint {path.name} is damaged ({wrong}); the one before it is used")
    return None


def keep_newest(directory: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints, and the remains of interrupted saves."""
    for path in sorted(directory.glob("step-*"))[:-count]:
        shutil.rmtree(path, ignore_errors=True)
    for path in (*directory.glob(".old-*"), *directory.glob(".writing-*")):
        shutil.rmtree(path, ignore_errors=True)


def remove(directory: Path) -> None:
    """Remove a directory if it exists."""
    shutil.rmtree(directory, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
