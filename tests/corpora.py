"""Corpora, read to their end."""

from collections.abc import Iterator
from itertools import chain

from stages.tasks.corpus import corpus_parts
from stages.tasks.types import Source


def documents(source: Source, revision: str | None = None) -> Iterator[str]:
    """The documents of all parts of a corpus."""
    return chain.from_iterable(part() for part in corpus_parts(source, revision))
