"""Fingerprints: how a stage knows that what another run made is what it would make itself."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

YOUNG = 2_000_000_000
"""Nanoseconds: a file changed so recently may change again within the tick of its file system's clock."""


def fingerprint(value: Any) -> str:
    """sha256 (hex) of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """Content hashes of input files, remembered by path, size, times and inode.

    The memory only saves time: a lost or damaged cache file is begun anew. The time of a file's last change
    (ctime) is kept by the system; unlike the modification time, nobody can set it to what it was before.
    """

    def __init__(self, cache: Path):
        self._cache = cache
        try:
            known = json.loads(cache.read_text())
            self._known = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            self._known = {}

    def of(self, path: Path) -> str:
        """The hash of a file, or of a directory's files and their names (hidden files left out)."""
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            return fingerprint({str(p.relative_to(path)): self.of(p) for p in files})
        status = path.stat()
        key, stamp = (
            str(path.resolve()),
            [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino],
        )
        entry = self._known.get(key)
        if not (isinstance(entry, list) and entry[:-1] == stamp and isinstance(entry[-1], str)):
            entry = [*stamp, sha256_file(path)]
            if time.time_ns() - status.st_ctime_ns < YOUNG:  # also where the clock was set back: hashed again
                return entry[-1]
            self._known[key] = entry
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            staging = self._cache.with_suffix(f".{os.getpid()}")
            staging.write_text(json.dumps(self._known))
            staging.replace(self._cache)
        return entry[-1]
