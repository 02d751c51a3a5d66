"""Rows of tokens on disk, memory-mapped: tokenized once, read by every epoch and rank.

A directory holds flat files:

- tokens.bin: all tokens (uint16 or uint32), row after row.
- offsets.bin: where each row starts in tokens.bin (int64, rows + 1).
- second.bin: where in its row segment B starts, 0 without one (int32).
- labels.bin, for tasks: the label of each row, or of each token if words have labels (int64 or float64).
- rows.json: the counts. It is written last, so that a half-written directory never opens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from checkpoints.errors import UserError
from stages.tasks.batches import Batch, normalizers
from stages.tasks.types import IGNORE_INDEX, Split

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


CHUNK_ROWS = 1000  # rows of a task tokenized at once
CHUNK_CHARACTERS = 1_000_000  # characters of a corpus tokenized at once
MIN_TOKENS = 16  # a shorter document is not split in two, and a shorter tail of a document is dropped
MAX_UNKNOWN = 0.3  # the fraction of the tokens that may be unknown
CHECK_AFTER = 100_000  # tokens of a corpus after which that fraction is checked while it is still being read


@dataclass(frozen=True)
class TokenRows:
    """Rows of tokens, special tokens included.

    Attributes:
        tokens: all tokens, row after row.
        offsets: row i is tokens[offsets[i]:offsets[i + 1]].
        second: where in its row segment B starts, 0 without one.
        labels: class ids (int64) or scores (float64) of the rows; None for a corpus. If words have labels: of all
            tokens, a word's label at its first token.
        counts: "rows", "tokens", "truncated" (rows), "unknown" (tokens), "vocabulary", "pad" (the tokenizer's padding
            token), "words" (whether words have the labels).
        width_multiple: of the width of batches, where no row is longer (`stages.distillation.device`).
    """

    tokens: np.ndarray
    offsets: np.ndarray
    second: np.ndarray
    labels: np.ndarray | None
    counts: dict
    width_multiple: int = 1

    @classmethod
    def open(cls, directory: Path, width_multiple: int = 1) -> TokenRows:
        """Map the rows that `write_task_rows` or `write_corpus_rows` wrote to `directory`."""
        counts = json.loads((directory / "rows.json").read_text())
        types = counts.pop("types")

        def mapped(name: str, length: int) -> np.ndarray:
            return np.memmap(directory / f"{name}.bin", types[name], mode="r", shape=(length,))

        rows = counts["rows"]
        labels = None
        if "labels" in types:
            labels = mapped("labels", counts["tokens"] if counts.get("words") else rows)
        tokens = mapped("tokens", counts["tokens"])
        return cls(
            tokens, mapped("offsets", rows + 1), mapped("second", rows), labels, counts, width_multiple
        )

    def __len__(self) -> int:
        return self.counts["rows"]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64."""
        return np.diff(self.offsets)

    @cached_property
    def targets(self) -> np.ndarray:
        """Targets of each row, int64: one, or one for each word."""
        if not self.counts.get("words"):
            return np.ones(len(self), np.int64)
        return np.add.reduceat(self.labels != IGNORE_INDEX, self.offsets[:-1], dtype=np.int64)

    @cached_property
    def first_targets(self) -> torch.Tensor:
        """(N,) int64, the number of each row's first target among those of all rows."""
        import torch

        return torch.from_numpy(np.cumsum(self.targets) - self.targets)

    @cached_property
    def labelled(self) -> np.ndarray:
        """Targets of each row whose gold label is known, int64."""
        if self.labels is None:
            return np.zeros(len(self), np.int64)
        known = ~np.isnan(self.labels) if self.labels.dtype.kind == "f" else self.labels >= 0
        return (
            np.add.reduceat(known, self.offsets[:-1], dtype=np.int64) if self.counts.get("words") else known
        )

    def normalizers(self, indices: np.ndarray) -> dict[str, int]:
        """Return what the losses of a global batch of these rows are divided by."""
        return normalizers(self.lengths[indices], self.targets[indices], self.labelled[indices])

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Batch:
        """Return rows as tensors, padded on the right to the longest of them, and up to a multiple of `width_multiple`.

        Args:
            indices: (B,) row numbers.
            weights: (B,) 1, or 0 for a row that only fills the batch.
        """
        import torch

        indices = np.asarray(indices, np.int64)
        begins = self.offsets[indices]
        lengths = self.offsets[indices + 1] - begins
        multiple = self.width_multiple
        width = min(-(-int(lengths.max()) // multiple) * multiple, int(self.lengths.max()))
        places_L = np.arange(width)
        mask_BL = places_L < lengths[:, None]
        ids_BL = np.full(mask_BL.shape, self.counts["pad"], np.int64)
        ids_BL[mask_BL] = self.tokens[(begins[:, None] + places_L)[mask_BL]]
        second = self.second[indices][:, None]
        types_BL = mask_BL & (second > 0) & (places_L >= second)
        labels = None
        if self.labels is not None:
            kind = torch.float32 if self.labels.dtype.kind == "f" else torch.int64
            if self.counts.get("words"):
                found = np.full(mask_BL.shape, IGNORE_INDEX)
                found[mask_BL] = self.labels[(begins[:, None] + places_L)[mask_BL]]
            else:
                found = self.labels[indices]
            labels = torch.tensor(found, dtype=kind)
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": types_BL}
        return Batch(
            {name: torch.from_numpy(values.astype(np.int64)) for name, values in inputs.items()},
            labels,
            torch.tensor(weights, dtype=torch.float32),
            torch.from_numpy(indices),
            padded=bool(lengths.min() < width or not weights.all()),
        )

    @property
    def truncated(self) -> int:
        """How many rows were truncated."""
        return self.counts["truncated"]


@dataclass(frozen=True)
class Frame:
    """The special tokens of a row: BERT's [CLS] A [SEP] B [SEP], RoBERTa's <s> A </s> </s> B </s>."""

    before: list[int]
    between: list[int]
    after: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """Take the special tokens from the encoding of a pair.

        Raises:
            UserError: the tokenizer is not a fast one.
        """
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} is a slow tokenizer; give a model with a tokenizer.json"
            )
        encoding = tokenizer(["a"], ["a"]).encodings[0]
        first, second = encoding.sequence_ids.index(0), encoding.sequence_ids.index(1)
        ends = [place + encoding.sequence_ids.count(segment) for segment, place in ((0, first), (1, second))]
        return cls(encoding.ids[:first], encoding.ids[ends[0] : second], encoding.ids[ends[1] :])

    @property
    def width(self) -> int:
        """The number of special tokens in a row of two segments."""
        return len(self.before) + len(self.between) + len(self.after)


class _Writer:
    """Appends rows to the files of a directory; `finish` checks them and writes the counts."""

    def __init__(self, directory: Path, tokenizer: PreTrainedTokenizerBase):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "rows.json").unlink(missing_ok=True)
        self.directory, self.tokenizer = directory, tokenizer
        small = len(tokenizer) <= np.iinfo(np.uint16).max + 1
        self.types = {"tokens": "uint16" if small else "uint32", "offsets": "int64", "second": "int32"}
        self.files = {name: open(directory / f"{name}.bin", "wb") for name in self.types}
        self.files["offsets"].write(np.zeros(1, "int64").tobytes())
        self.rows = self.tokens = self.truncated = self.unknown = self.special = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            file.close()

    def append(self, rows: Sequence[Sequence[int]], second: Sequence[int]) -> None:
        flat = np.fromiter(chain.from_iterable(rows), self.types["tokens"])
        ends = self.tokens + np.cumsum([len(row) for row in rows], dtype="int64")
        for name, values in (("tokens", flat), ("offsets", ends), ("second", np.array(second, "int32"))):
            self.files[name].write(values.tobytes())
        unknown = self.tokenizer.unk_token_id
        special = [token for token in self.tokenizer.all_special_ids if token != unknown]
        self.rows += len(rows)
        self.tokens += len(flat)
        self.special += int(np.isin(flat, special).sum())
        if unknown is not None:
            self.unknown += int((flat == unknown).sum())

    def check_unknown(self) -> None:
        fraction = self.unknown / max(1, self.tokens - self.special)
        if fraction > MAX_UNKNOWN:
            raise UserError(
                f"{fraction:.0%} of the tokens are {self.tokenizer.unk_token}, at most {MAX_UNKNOWN:.0%} may be: give "
                "text that fits the tokenizer's vocabulary, and check the files of both"
            )

    def finish(self, labels: np.ndarray | None = None, words: bool = False) -> None:
        if not self.rows:
            raise UserError("there is no text to tokenize; give a task or a corpus with rows")
        self.check_unknown()
        if labels is not None:
            self.types["labels"] = str(labels.dtype)
            labels.tofile(self.directory / "labels.bin")
        counts = {name: getattr(self, name) for name in ("rows", "tokens", "truncated", "unknown")}
        pad = self.tokenizer.pad_token_id or 0
        counts |= {"vocabulary": len(self.tokenizer), "pad": pad, "types": self.types}
        counts |= {"words": True} if words else {}
        (self.directory / "rows.json").write_text(json.dumps(counts, indent=1))


def write_task_rows(
    parts: Iterable[Split], tokenizer: PreTrainedTokenizerBase, max_length: int, directory: Path
) -> TokenRows:
    """Tokenize the rows of a task.

    Args:
        parts: a split, as a whole or in parts.
        tokenizer: a fast one.
        max_length: tokens in a row, special tokens included. A pair that is too long loses tokens of its longer text.
        directory: where the rows go.

    Raises:
        UserError: there are no rows, too many tokens are unknown, or the length has no room for text.
    """
    frame = _frame(tokenizer, max_length)
    labels: list[np.ndarray] = [np.empty(0, np.int64)]
    words = False
    with _Writer(directory, tokenizer) as writer:
        for split in parts:
            words = split.token_level
            labels += [] if words else [np.array(split.labels)]
            for start in range(0, len(split), CHUNK_ROWS):
                part = slice(start, start + CHUNK_ROWS)
                texts: list[list] = [
                    column[part] for column in (split.text_a, split.text_b) if column is not None
                ]
                if words:
                    texts = [[text.split(" ") for text in texts[0]]]
                encodings = tokenizer(
                    *texts, truncation="longest_first", max_length=max_length, is_split_into_words=words
                ).encodings
                if words:
                    labels += map(_at_first_tokens, encodings, split.labels[part])
                second = [0] * len(encodings)
                if split.text_b is not None:
                    lead = len(frame.before) + len(frame.between)
                    second = [lead + encoding.sequence_ids.count(0) for encoding in encodings]
                writer.append([encoding.ids for encoding in encodings], second)
                writer.truncated += sum(bool(encoding.overflowing) for encoding in encodings)
    writer.finish(np.concatenate(labels), words)
    return TokenRows.open(directory)


def _at_first_tokens(encoding: Encoding, labels: list[int]) -> np.ndarray:
    """Return the label of each of a row's tokens: its word's at the word's first token, else IGNORE_INDEX."""
    words = encoding.word_ids
    return np.array(
        [
            IGNORE_INDEX if word is None or word == before else labels[word]
            for before, word in zip([None, *words], words, strict=False)
        ]
    )


def write_corpus_rows(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    directory: Path,
    limit_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TokenRows:
    """Tokenize a corpus into rows of two segments of one document, so that the student learns segment B too.

    A document is cut into chunks that fill a row. A chunk is cut in two at the start of a word, between a quarter and
    three quarters of it, drawn by the number of the row. A document under 16 tokens becomes one segment; a tail under
    16 tokens is dropped. Documents are never joined.

    Args:
        documents: read once, as a stream.
        tokenizer: a fast one.
        max_length: tokens in a row, special tokens included.
        directory: where the rows go.
        limit_tokens: stop after the row that reaches this many tokens.
        progress: called with the number of tokens so far.

    Raises:
        UserError: there is no text, too many tokens are unknown, or the length has no room for text.
    """
    frame = _frame(tokenizer, max_length)
    with _Writer(directory, tokenizer) as writer:
        for chunk in _chunks(documents):
            rows, second, size = [], [], writer.tokens
            for encoding in tokenizer(chunk, add_special_tokens=False, verbose=False).encodings:
                for ids, words in _row_chunks(encoding.ids, encoding.word_ids, max_length - frame.width):
                    if limit_tokens is not None and size >= limit_tokens:
                        break
                    row, begins = _two_segments(ids, words, frame, writer.rows + len(rows))
                    rows.append(row)
                    second.append(begins)
                    size += len(row)
            writer.append(rows, second)
            if writer.tokens >= CHECK_AFTER:
                writer.check_unknown()
            if progress:
                progress(writer.tokens)
            if limit_tokens is not None and size >= limit_tokens:
                break
    writer.finish()
    return TokenRows.open(directory)


def _frame(tokenizer: PreTrainedTokenizerBase, max_length: int) -> Frame:
    frame = Frame.of(tokenizer)
    if max_length < frame.width + 2:
        raise UserError(
            f"{max_length} tokens have no room for two segments; give at least {frame.width + 2}",
            argument="max_length",
        )
    return frame


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _row_chunks(ids: list[int], words: list, room: int) -> Iterator[tuple[list[int], list]]:
    for start in range(0, len(ids), room):
        chunk = ids[start : start + room]
        if start == 0 or len(chunk) >= MIN_TOKENS:
            yield chunk, words[start : start + room]


def _two_segments(ids: list[int], words: list, frame: Frame, number: int) -> tuple[list[int], int]:
    """Return the row with its special tokens, and where segment B starts (0 without one)."""
    if len(ids) < MIN_TOKENS:
        return frame.before + ids + frame.after, 0
    cuts = range(len(ids) // 4, 3 * len(ids) // 4 + 1)
    starts = [cut for cut in cuts if words[cut] != words[cut - 1]] or cuts
    cut = starts[int(random.Random(number).random() * len(starts))]
    row = frame.before + ids[:cut] + frame.between + ids[cut:] + frame.after
    return row, len(frame.before) + cut + len(frame.between)
