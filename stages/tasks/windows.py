"""Windows of questions' contexts: rows of tokens that each open with the whole question, and overlap."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from checkpoints.errors import UserError
from stages.tasks.types import IGNORE_INDEX, UNLABELLED, GoldAnswers, Split

if TYPE_CHECKING:
    from tokenizers import Encoding

    from stages.tasks.row_maker import Frame

OVERLAP = 3
"""Neighbouring windows share a third of `max_length`: 128 of 384 tokens, as is usual with SQuAD."""
START, END = 1, 2
"""Labels of the tokens where an answer starts and where it ends; 3 where it does both, 0 at others that may be answered."""


@dataclass(frozen=True)
class Windows:
    """The windows of some questions, one after the other.

    Attributes:
        encodings: of the windows.
        begins: which of them are the first of their question.
        labels: of all their tokens.
        places: (T, 2) start and end in the context of what may be answered, in characters; 0 and 0 for the first token of
            a window, which stands for no answer.
    """

    encodings: list[Encoding]
    begins: np.ndarray
    labels: np.ndarray
    places: np.ndarray


def room_for_question(frame: Frame, max_length: int) -> int:
    """The tokens that a question may have, so that windows of `max_length` tokens overlap and go on."""
    return max_length - frame.width - max_length // OVERLAP - 1


def windows(split: Split, tokenizer: str, frame: Frame, max_length: int) -> Windows:
    """Cut the contexts of questions into windows of at most `max_length` tokens.

    Args:
        split: of questions.
        tokenizer: as JSON.
        frame: its special tokens.
        max_length: special tokens included.

    Raises:
        UserError: a question leaves no room for its context, or the tokenizer puts no token before a text.
    """
    from tokenizers import Tokenizer

    if not frame.before:
        raise UserError(
            "the tokenizer puts no token before a text, which would stand for no answer; give a model of BERT's or "
            "RoBERTa's kind"
        )
    backend = Tokenizer.from_str(tokenizer)
    backend.no_padding()
    backend.no_truncation()
    room = room_for_question(frame, max_length)
    questions = backend.encode_batch_fast(split.text_a, add_special_tokens=False)
    for text, question in zip(split.text_a, questions, strict=True):
        if len(question) > room:
            raise UserError(
                f"{max_length} tokens are too few for the question {text!r:.60}, which has {len(question)}: at most {room} "
                "leave room for its context; shorten it, or raise this",
                argument="max_length",
            )
    backend.enable_truncation(max_length, stride=max_length // OVERLAP, strategy="only_second")
    cut = backend.encode_batch(list(zip(split.text_a, split.text_b or (), strict=True)))
    per_question = [[encoding, *encoding.overflowing] for encoding in cut]
    labels, places = [], []
    for of, answers in zip(per_question, split.labels, strict=True):
        for encoding in of:
            in_context = np.array(encoding.sequence_ids, np.float64) == 1
            offsets = np.array(encoding.offsets)[in_context]
            labels.append(_labels(in_context, offsets, answers))
            places += [np.zeros((1, 2), np.int64), offsets]
    begins = np.concatenate([np.arange(len(of)) == 0 for of in per_question])
    return Windows(
        list(chain.from_iterable(per_question)), begins, np.concatenate(labels),
        np.concatenate(places).astype(np.int32),
    )  # fmt: skip


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
