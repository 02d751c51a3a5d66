"""Windows of long texts: rows of tokens that overlap.

Those of pairs, and of questions with their contexts, each open with the whole first text. What a model says to the windows
of a text is pooled; `stages.tasks.kinds.questions.best_answers` does that for questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from checkpoints.errors import UserError
from stages.tasks.types import IGNORE_INDEX, UNLABELLED, GoldAnswers, Split

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from stages.tasks.row_maker import Frame

OVERLAP = 3
"""Neighbouring windows share a third of `max_length`: 128 of 384 tokens, as is usual with SQuAD."""
START, END = 1, 2
"""Labels of the tokens where an answer starts and where it ends; 3 where it does both, 0 at others that may be answered."""


@dataclass(frozen=True)
class Windows:
    """The windows of some texts, one after the other.

    Attributes:
        begins: which of them are the first of their text or question.
        labels: each window's is its text's; for questions those of all tokens.
        places: (T, 2) start and end in the context of what may be answered, in characters; 0 and 0 for the first token of
            a window, which stands for no answer. None where no questions are asked.
    """

    encodings: list[Encoding]
    begins: np.ndarray
    labels: np.ndarray
    places: np.ndarray | None = None


def room_for_first(frame: Frame, max_length: int) -> int:
    """The most tokens of a question, or of a pair's first text, that leave each window its overlap and one new token."""
    return max_length - frame.width - max_length // OVERLAP - 1


def windows(split: Split, tokenizer: str, frame: Frame, max_length: int) -> Windows:
    """Cut texts into windows of at most `max_length` tokens: single texts, the second ones of pairs, or contexts.

    Args:
        tokenizer: as JSON.
        max_length: special tokens included.

    Raises:
        UserError: a question or first text leaves no room for what follows, or the tokenizer puts no token before a
            question.
    """
    from tokenizers import Tokenizer

    if split.asks and not frame.before:
        raise UserError(
            "the tokenizer puts no token before a text, which would stand for no answer; give a model of BERT's or "
            "RoBERTa's kind"
        )
    backend = Tokenizer.from_str(tokenizer)
    backend.no_padding()
    backend.no_truncation()
    if split.text_b is not None:
        _check_first(split, backend, room_for_first(frame, max_length), max_length)
    strategy = "only_first" if split.text_b is None else "only_second"
    backend.enable_truncation(max_length, stride=max_length // OVERLAP, strategy=strategy)
    texts: list = split.text_a if split.text_b is None else list(zip(split.text_a, split.text_b, strict=True))
    per_text = [[encoding, *encoding.overflowing] for encoding in backend.encode_batch(texts)]
    encodings = list(chain.from_iterable(per_text))
    begins = np.concatenate([np.arange(len(of)) == 0 for of in per_text])
    if not split.asks:
        return Windows(encodings, begins, np.array(split.labels)[np.cumsum(begins) - 1])
    labels, places = [], []
    for of, answers in zip(per_text, split.labels, strict=True):
        for encoding in of:
            in_context = np.array(encoding.sequence_ids, np.float64) == 1
            offsets = np.array(encoding.offsets)[in_context]
            labels.append(_labels(in_context, offsets, answers))
            places += [np.zeros((1, 2), np.int64), offsets]
    return Windows(encodings, begins, np.concatenate(labels), np.concatenate(places).astype(np.int32))


def pooled(logits: np.ndarray, begins: np.ndarray, how: str) -> np.ndarray:
    """The logits of texts, from those of their windows.

    Args:
        logits: (W, C) of the windows, text after text.
        begins: (W,) whether a window is the first of its text.
        how: "mean" or "max", of each of the C.

    Returns:
        (N, C).

    Example:
        >>> pooled(np.array([[1.0], [3.0], [5.0]]), np.array([True, False, True]), "mean")
        array([[2.],
               [5.]])
    """
    first = np.flatnonzero(begins)
    if how == "max":
        return np.maximum.reduceat(logits, first)
    counts = np.diff(first, append=len(begins))
    return np.add.reduceat(logits, first) / counts[:, None].astype(logits.dtype)


def _check_first(split: Split, backend: Tokenizer, room: int, max_length: int) -> None:
    """Refuse questions, or first texts of pairs, that are too long to stand in every window."""
    name, rest = ("question", "its context") if split.asks else ("first text", "the second")
    for text, tokens in zip(
        split.text_a, backend.encode_batch_fast(split.text_a, add_special_tokens=False), strict=True
    ):
        if len(tokens) > room:
            raise UserError(
                f"{max_length} tokens are too few for the {name} {text!r:.60}, which has {len(tokens)}: at most {room} "
                f"leave room for {rest}; shorten it, or raise this",
                argument="max_length",
            )


def _labels(in_context: np.ndarray, offsets: np.ndarray, answers: GoldAnswers) -> np.ndarray:
    """Labels of a window's tokens: where the first gold answer is, or the first token if not all of it is there."""
    labels = np.where(in_context, 0, IGNORE_INDEX)
    labels[0] = 0
    if not answers.known:
        labels[labels == 0] = UNLABELLED
        return labels
    span = _tokens_of(answers.starts[0], answers.texts[0], offsets) if answers.texts else None
    first, last = np.flatnonzero(in_context)[list(span)] if span else (0, 0)
    labels[first] += START
    labels[last] += END
    return labels


def _tokens_of(start: int, text: str, offsets: np.ndarray) -> tuple[int, int] | None:
    """First and last token of a text that starts at a character; None if they are not all there.

    Args:
        offsets: (L, 2) start and end of the tokens, in characters.
    """
    end = start + len(text)
    if not len(offsets) or start < offsets[0, 0] or end > offsets[-1, 1]:
        return None
    first = int(np.searchsorted(offsets[:, 1], start, "right"))
    last = int(np.searchsorted(offsets[:, 0], end, "left")) - 1
    return (first, last) if first <= last else None
