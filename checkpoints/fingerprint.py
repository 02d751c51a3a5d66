"""Content hashes. Equal fingerprints mean that a stage would make what another run has already made."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

CONFIG = (
    "config.json",
    "tokenizer*.json",
    "preprocessor_config.json",
    "graph.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
TORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""The files of a model's directory that transformers reads. torch's are read where there are no safetensors."""

RECENT = 2_000_000_000
"""Nanoseconds. A file that changed less than this ago may change again without a new time stamp."""


def fingerprint(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """Content hashes of input files, cached by path, size, times and inode.

    The cache only saves time: a lost or damaged one is started again. If any of these differs, the file is hashed again. Of
    the times ctime is one, for a modification time can be set back.
    """

    def __init__(self, cache: Path):
        self._cache = cache
        try:
            known = json.loads(cache.read_text())
            self._known = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            self._known = {}

    def of_model(self, directory: Path) -> str:
        """Return the hash of what is read of a model's directory: config, tokenizer and weights, not notes or logs."""
        weights = SAFETENSORS if any(directory.glob(SAFETENSORS[0])) else TORCH
        files = {path for pattern in (*CONFIG, *weights) for path in directory.glob(pattern)}
        return fingerprint({path.name: self.of(path) for path in files if not path.name.startswith(".")})

    def of(self, path: Path) -> str:
        """Return the hash of a file, or of a directory's files and their names, without files whose names begin with a dot."""
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            return fingerprint({str(p.relative_to(path)): self.of(p) for p in files})
        status = path.stat()
        key = str(path.resolve())
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        entry = self._known.get(key)
        if not (isinstance(entry, list) and entry[:-1] == stamp and isinstance(entry[-1], str)):
            entry = [*stamp, sha256_file(path)]
            if time.time_ns() - status.st_ctime_ns < RECENT:  # or the clock was set back: not cached
                return entry[-1]
            self._known[key] = entry
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            staging = self._cache.with_suffix(f".{os.getpid()}")
            staging.write_text(json.dumps(self._known))
            staging.replace(self._cache)
        return entry[-1]
