"""Which words of a text may be replaced, and what nltk's data says of them: stop words, and WordNet's synonyms.

nltk is imported only where its data is asked for: that takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex
from filelock import FileLock

from checkpoints.errors import UserError

Span = tuple[int, int]

_RUN = regex.compile(r"[\w\p{M}]+")  # a mark, such as an accent or an Indic vowel sign, belongs to its letter
_WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*")


def _english() -> frozenset[str]:
    lines = Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


ENGLISH = _english()
"""The English stop words: shipped, so that a run is the same on every machine, whatever data of nltk it has."""


def is_word(text: str) -> bool:
    """Whether a text is letters alone, with the marks that belong to them."""
    return bool(_WORD.fullmatch(text))


def content_words(text: str, stop_words: Collection[str] = ENGLISH) -> list[Span]:
    """Return the spans of the words that may be replaced: letters alone, not a stop word.

    Args:
        stop_words: in lower case and Unicode's composed form (NFC).

    Example:
        >>> content_words("It isn't a B2-movie.")
        [(14, 19)]
    """
    return [
        run.span()
        for run in _RUN.finditer(text)
        if is_word(run[0]) and unicodedata.normalize("NFC", run[0].lower()) not in stop_words
    ]


def stop_words(language: str, download: bool = False) -> frozenset[str]:
    """Return the stop words of a language: those shipped for English, nltk's own (`nltk.corpus.stopwords`) for others.

    Args:
        language: its English name in lower case, such as "german".
        download: fetch nltk's data from its server if this machine has none.

    Raises:
        UserError: nltk's data is not found or cannot be fetched, or does not have the language.
    """
    if language == "english":
        return ENGLISH
    corpus = _corpus("stopwords", f"stop words for {language!r}", "language", download)
    known = sorted(name for name in corpus.fileids() if name.isalpha())
    if language not in known:
        raise UserError(
            f"{language!r}: nltk has no stop words of it; it has those of {', '.join(known)}",
            argument="language",
        )
    words = (word for line in corpus.words(language) for word in _RUN.findall(line.lower()))
    return frozenset(unicodedata.normalize("NFC", word) for word in words)


class Synonyms:
    """Synonyms of English words: the other words of their WordNet synsets, read by nltk.

    Args:
        language: "english" only.
        download: fetch WordNet from nltk's server if this machine does not have it.

    Raises:
        UserError: the language is not English; or WordNet is not found or cannot be fetched.
    """

    def __init__(self, language: str = "english", download: bool = False):
        if language != "english":
            raise UserError(
                f"WordNet has English synonyms, the language is {language!r}; choose none",
                argument="synonyms",
            )
        self._wordnet = _corpus("wordnet", "WordNet", "synonyms", download)
        self.version: str = self._wordnet.get_version()
        self.of = lru_cache(maxsize=100_000)(self._of)

    def _of(self, word: str) -> tuple[str, ...]:
        """Return the synonyms of a word in its own form, those of its most frequent meaning first.

        An inflected word has none, because WordNet lists base forms alone: a synonym of "film" would not fit where
        "films" stands. Synonyms of several words are left out.
        """
        lower = word.lower()
        names = (name for lemma in self._wordnet.lemmas(lower) for name in lemma.synset().lemma_names())
        return tuple(dict.fromkeys(name for name in names if is_word(name) and name.lower() != lower))


def _corpus(name: str, what: str, argument: str, download: bool) -> Any:
    """A corpus of nltk's data, fetched where that is asked for, by one process of a host: the others wait and find it."""
    import nltk
    import nltk.corpus

    corpus = getattr(nltk.corpus, name)
    advice = (
        f"run `{sys.executable} -m nltk.downloader {name}` where there is a network, or set NLTK_DATA to a directory "
        "that has it"
    )
    path = Path(tempfile.gettempdir()) / f"nltk-data-{os.getuid()}.lock"
    with FileLock(path) if download else contextlib.nullcontext():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # without its translations, WordNet still has English
                corpus.ensure_loaded()
        except LookupError:
            if not download:
                raise UserError(f"nltk's data of {what} is not on this machine: {advice}", argument) from None
            if not nltk.download(name, quiet=True):
                raise UserError(f"nltk's data of {what} could not be fetched: {advice}", argument) from None
            corpus.ensure_loaded()
        except OSError as error:
            raise UserError(f"nltk's data of {what} is incomplete ({error}): {advice}", argument) from None
    return corpus
