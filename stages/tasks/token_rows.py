"""Rows of tokens on disk, memory-mapped: tokenized once, read by every epoch and rank.

A directory holds flat files:

- tokens.bin: all tokens (uint16 or uint32), row after row.
- offsets.bin: where each row starts in tokens.bin (int64, rows + 1).
- lengths.bin: tokens of each row (int32).
- second.bin: where in its row segment B starts, 0 without one (int32).
- labels.bin, for tasks: the label of each row, or of each token if words have labels (int64 or float64); or for each
  row a number for each of several labels (float64).
- begins.bin, for windows of texts or of questions' contexts: whether a row is the first of its text (bool).
- places.bin, for questions: start and end in the context of all targets, in characters (int32).
- rows.json: the counts, and the token types that the tokenizer gives. It is written last, so that a half-written
  directory never opens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from checkpoints.errors import UserError
from stages.tasks.batches import Batch, normalizers
from stages.tasks.row_maker import Block, RowMaker, Segments
from stages.tasks.task_rows import TaskRows
from stages.tasks.types import CONTINUED, IGNORE_INDEX, UNLABELLED, Split
from stages.tasks.windows import END, START, pooled

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from stages.tasks.masking import Masking


MAX_UNKNOWN = 0.3  # the fraction of the tokens that may be unknown
CHECK_AFTER = 100_000  # tokens of a corpus after which that fraction is checked while it is still being read


@dataclass(frozen=True)
class TokenRows(TaskRows):
    """Rows of tokens, special tokens included.

    Attributes:
        tokens: all tokens, row after row.
        offsets: row i is tokens[offsets[i]:offsets[i + 1]].
        lengths: tokens of each row.
        second: where in its row segment B starts, 0 without one.
        labels: class ids (int64) or scores (float64) of the rows; None for a corpus. If words have labels: of all
            tokens, a word's label at its first token, and where its others learn too theirs, CONTINUED added. (rows, C),
            1.0 or 0.0, where a row has several labels.
        counts: "rows", "tokens", "longest" (tokens of the longest row), "truncated" (rows), "unknown" (tokens),
            "vocabulary", "pad" (the tokenizer's padding token), "left" (whether it pads on the left), "words" (whether
            words have the labels), "labels_a_row" (C, where a row has several labels).
        segments: the token types of the rows; None where the tokenizer gives none.
        scale: mean and deviation of scores; the scores of batches are deviations from the mean.
        width_multiple: the width of batches is a multiple of it, where no row is longer (`stages.distillation.device`).
        masking: that of the batches, if they are masked; `normalizers` then has "masked".
        begins: (N,) of windows, which are the first of their text or question; None for whole texts.
        places: (T, 2) start and end in the context of all targets of questions' windows, in characters.
        pooling: how the logits of a text's windows are joined, `Kind.pooling`.
        teacher_ids: (V,) the teacher's id of each token, where it has another vocabulary; None: both read the same ids.
    """

    unit: ClassVar[str] = "token"

    tokens: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    second: np.ndarray
    labels: np.ndarray | None
    counts: dict
    segments: Segments | None = None
    width_multiple: int = 1
    scale: tuple[float, float] = (0.0, 1.0)
    masking: Masking | None = None
    begins: np.ndarray | None = None
    places: np.ndarray | None = None
    pooling: str = ""
    teacher_ids: np.ndarray | None = None

    @classmethod
    def open(cls, directory: Path, width_multiple: int = 1) -> TokenRows:
        """Map the rows that `write_rows` wrote to `directory`."""
        counts = json.loads((directory / "rows.json").read_text())
        types = counts.pop("types")

        def mapped(name: str, length: int) -> np.ndarray:
            if not length:  # which cannot be mapped
                return np.empty(0, types[name])
            return np.memmap(directory / f"{name}.bin", types[name], mode="r", shape=(length,))

        rows = counts["rows"]
        labels = None
        if "labels" in types:
            several = counts.get("labels_a_row")
            labels = mapped("labels", counts["tokens"] if counts.get("words") else rows * (several or 1))
            labels = labels.reshape(rows, several) if several else labels
        tokens, offsets = mapped("tokens", counts["tokens"]), mapped("offsets", rows + 1)
        lengths, second = mapped("lengths", rows), mapped("second", rows)
        segments = (of := counts.pop("segments")) and Segments(**of)
        begins = mapped("begins", rows) if "begins" in types else None
        places = mapped("places", 2 * counts["targets"]).reshape(-1, 2) if "places" in types else None
        return cls(
            tokens, offsets, lengths, second, labels, counts, segments, width_multiple, begins=begins, places=places
        )  # fmt: skip

    def __len__(self) -> int:
        return self.counts["rows"]

    @cached_property
    def texts(self) -> np.ndarray:
        return np.arange(len(self)) if self.begins is None else np.cumsum(self.begins) - 1

    def of_texts(self, logits: np.ndarray) -> np.ndarray:
        return logits if self.begins is None else pooled(logits, self.begins, self.pooling)

    @cached_property
    def targets(self) -> np.ndarray:
        """Targets of each row, int64: one, or one for each word, or for each place that may be answered."""
        if not self.counts.get("words"):
            return np.broadcast_to(np.int64(1), len(self))  # takes no memory
        return np.add.reduceat(self.labels != IGNORE_INDEX, self.offsets[:-1], dtype=np.int64)

    @cached_property
    def first_targets(self) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.cumsum(self.targets) - self.targets)

    @cached_property
    def labelled(self) -> np.ndarray:
        """Targets of each row whose gold label is known, int64."""
        if self.labels is None:
            return np.broadcast_to(np.int64(0), len(self))
        if self.labels.dtype.kind == "f":
            return ~np.isnan(self.labels.reshape(len(self), -1)).any(1)
        if not self.counts.get("words"):
            return self.labels >= 0
        return np.add.reduceat(_without_marks(self.labels) >= 0, self.offsets[:-1], dtype=np.int64)

    @cached_property
    def scored(self) -> np.ndarray | None:
        """(N,) bool: which targets are scored, namely those at the first token of a word. None if all are."""
        if self.labels is None or not self.counts.get("words"):
            return None
        targets = self.labels[self.labels != IGNORE_INDEX]
        first = targets < CONTINUED + UNLABELLED
        return None if first.all() else first

    def normalizers(self, indices: np.ndarray) -> dict[str, float]:
        labelled = self.labelled[indices]
        if self.places is not None:  # a window is one target, whatever its places
            return normalizers(self.lengths[indices], labelled=labelled > 0)
        found = normalizers(self.lengths[indices], self.targets[indices], labelled)
        if self.masking is None:
            return found
        tokens = [self.tokens[self.offsets[row] : self.offsets[row + 1]] for row in indices]
        return found | {"masked": self.masking.expected(np.concatenate(tokens))}

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Batch:
        """Return rows as tensors, padded to the longest of them, and up to a multiple of `width_multiple`.

        The padding stands where the tokenizer puts it.
        """
        import torch

        indices = np.asarray(indices, np.int64)
        begins = self.offsets[indices]
        lengths = self.offsets[indices + 1] - begins
        multiple = self.width_multiple
        width = min(-(-int(lengths.max()) // multiple) * multiple, self.counts["longest"])
        first = width - lengths if self.counts.get("left") else np.zeros_like(lengths)
        places_BL = np.arange(width) - first[:, None]
        mask_BL = (places_BL >= 0) & (places_BL < lengths[:, None])
        found_T = (begins[:, None] + places_BL)[mask_BL]
        inputs = {
            "input_ids": np.full(mask_BL.shape, self.counts["pad"], np.int64),
            "attention_mask": mask_BL,
        }
        inputs["input_ids"][mask_BL] = self.tokens[found_T]
        if self.segments:
            inputs["token_type_ids"] = np.zeros(mask_BL.shape, np.int64)
            inputs["token_type_ids"][mask_BL] = self.segments.types(lengths, self.second[indices])
        if self.teacher_ids is not None:
            inputs |= {f"teacher_{name}": values for name, values in inputs.items()}
            inputs["teacher_input_ids"] = self.teacher_ids[inputs["input_ids"]]
        labels = None
        if self.labels is not None:
            kind = torch.float32 if self.labels.dtype.kind == "f" else torch.int64
            if self.counts.get("words"):
                found = np.full(mask_BL.shape, IGNORE_INDEX)
                found[mask_BL] = _without_marks(self.labels[found_T])
                if self.places is not None:
                    codes = found[..., None]
                    found = np.where(codes < 0, codes, (codes & (START, END)) != 0)
            else:
                found = self.labels[indices]
                if self.scale != (0.0, 1.0):
                    found = (found - self.scale[0]) / self.scale[1]
            labels = torch.tensor(found, dtype=kind)
        return Batch(
            {name: torch.from_numpy(values.astype(np.int64)) for name, values in inputs.items()},
            labels,
            torch.tensor(weights, dtype=torch.float32),
            torch.from_numpy(indices),
            padded=bool(lengths.min() < width or not weights.all()),
        )

    def span(self, row: int, width: int) -> slice:
        """Return where a row's tokens stand in a batch of that width."""
        length = int(self.lengths[row])
        return slice(width - length, width) if self.counts.get("left") else slice(length)

    @property
    def truncated(self) -> int:
        return self.counts["truncated"]


def _without_marks(labels: np.ndarray) -> np.ndarray:
    """Labels of tokens, that of a further token of a word as it is learned."""
    return np.where(labels >= CONTINUED + UNLABELLED, labels - CONTINUED, labels)


class _Writer:
    """Appends rows to the files of a directory; `finish` writes the counts."""

    def __init__(self, directory: Path, maker: RowMaker):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "rows.json").unlink(missing_ok=True)
        self.directory, self.maker = directory, maker
        self.types = {"tokens": maker.dtype, "offsets": "int64", "lengths": "int32", "second": "int32"}
        self.files = {name: open(directory / f"{name}.bin", "wb") for name in self.types}
        self.files["offsets"].write(np.zeros(1, "int64").tobytes())
        self.rows = self.tokens = self.longest = self.truncated = self.unknown = self.special = 0
        self.labels: list[np.ndarray] = []
        self.windows: dict[str, list[np.ndarray]] = {"begins": [], "places": []}
        self.words = False

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            file.close()

    def append(self, block: Block) -> None:
        offsets = self.tokens + np.cumsum(block.lengths, dtype="int64")
        values = {
            "tokens": block.tokens,
            "offsets": offsets,
            "lengths": block.lengths,
            "second": block.second,
        }
        for name, array in values.items():
            self.files[name].write(np.ascontiguousarray(array, self.types[name]).data)
        self.rows += len(block.lengths)
        self.tokens += len(block.tokens)
        self.longest = max(self.longest, int(block.lengths.max(initial=0)))
        self.truncated += block.truncated
        self.words |= block.words
        if block.labels is not None:
            self.labels.append(block.labels)
        for name, parts in self.windows.items():
            if (part := getattr(block, name)) is not None:
                parts.append(part)
        self.special += sum(int(np.count_nonzero(block.tokens == token)) for token in self.maker.special)
        if self.maker.unknown is not None:
            self.unknown += int(np.count_nonzero(block.tokens == self.maker.unknown))

    def check(self, max_unknown: float = MAX_UNKNOWN) -> None:
        """Refuse rows of which a larger fraction of the tokens is unknown, and no rows at all."""
        if not self.rows:
            raise UserError("there is no text to tokenize; give a task or a corpus with rows")
        fraction = self.unknown / max(1, self.tokens - self.special)
        if fraction > max_unknown:
            raise UserError(
                f"{fraction:.0%} of the tokens are {self.maker.unknown_token}, at most {max_unknown:.0%} may be: give "
                "text that fits the tokenizer's vocabulary, and check the files of both"
            )

    def finish(self, **more: object) -> None:
        """Write labels and counts, and `more` with them."""
        if self.labels:
            labels = np.concatenate(self.labels)
            self.types["labels"] = str(labels.dtype)
            labels.tofile(self.directory / "labels.bin")
            more |= {"labels_a_row": labels.shape[1]} if labels.ndim == 2 else {}
        for name, parts in self.windows.items():
            if parts:
                whole = np.concatenate(parts)
                self.types[name] = str(whole.dtype)
                whole.tofile(self.directory / f"{name}.bin")
                more |= {"targets": len(whole)} if name == "places" else {}
        counts = {name: getattr(self, name) for name in ("rows", "tokens", "longest", "truncated", "unknown")}
        counts |= {"vocabulary": self.maker.vocabulary, "pad": self.maker.pad, "types": self.types}
        counts |= {"words": True} if self.words else {}
        counts |= {"left": True} if self.maker.padding_side == "left" else {}
        counts["segments"] = self.maker.frame.segments and asdict(self.maker.frame.segments)
        (self.directory / "rows.json").write_text(json.dumps(counts | more, indent=1))


def write_rows(
    maker: RowMaker,
    blocks: Iterable[Block],
    directory: Path,
    progress: Callable[[int], None] | None = None,
    max_unknown: float = MAX_UNKNOWN,
) -> None:
    """Write rows to a directory, which `TokenRows.open` opens.

    Args:
        progress: called with the number of tokens so far.
        max_unknown: the fraction of the tokens that may be unknown.

    Raises:
        UserError: there are no rows, or too many tokens are unknown.
    """
    with _Writer(directory, maker) as writer:
        for block in blocks:
            writer.append(block)
            if writer.tokens >= CHECK_AFTER:
                writer.check(max_unknown)
            if progress:
                progress(writer.tokens)
    writer.check(max_unknown)
    writer.finish()


def write_shard(maker: RowMaker, blocks: Iterable[Block], directory: Path, first: bool, last: bool) -> int:
    """Write a shard, which `merge_shards` joins with others. Returns the number of its tokens.

    Args:
        blocks: the rows; there may be none.
        first: it is the first of all, whose unknown tokens are checked, so that the wrong text is refused early.
        last: it is the last shard of its part; kept in the counts.

    Raises:
        UserError: too many tokens of the first shard are unknown.
    """
    with _Writer(directory, maker) as writer:
        for block in blocks:
            writer.append(block)
            if first and writer.tokens >= CHECK_AFTER:
                writer.check()
    writer.finish(last=last)
    return writer.tokens


def merge_shards(
    shards: Iterable[Path], maker: RowMaker, directory: Path, limit_tokens: int | None = None
) -> None:
    """Write the rows of shards, one after the other, as `write_rows` writes them.

    Args:
        shards: directories that `write_shard` wrote.
        limit_tokens: stop after the row that reaches this many tokens.
    """
    with _Writer(directory, maker) as writer:
        for shard in shards:
            rows = TokenRows.open(shard)
            block = Block(
                rows.tokens, rows.lengths, rows.second, rows.labels, rows.counts.get("words", False),
                rows.truncated, rows.begins, rows.places,
            )  # fmt: skip
            if limit_tokens is not None and writer.tokens + len(rows.tokens) > limit_tokens:
                reached = np.searchsorted(
                    np.cumsum(rows.lengths, dtype="int64"), limit_tokens - writer.tokens
                )
                block = block.until(int(reached) + 1)
            writer.append(block)
    writer.check()
    writer.finish()


def write_task_rows(
    parts: Iterable[Split],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    directory: Path,
    max_unknown: float = MAX_UNKNOWN,
    pooling: str = "",
) -> TokenRows:
    """Tokenize the rows of a task.

    Args:
        parts: a split, as a whole or in parts.
        tokenizer: a fast one.
        max_length: tokens in a row, special tokens included. A pair that is too long loses tokens of its longer text.
        max_unknown: the fraction of the tokens that may be unknown.
        pooling: `Kind.pooling`: with it, longer texts are cut into windows.

    Raises:
        UserError: there are no rows, too many tokens are unknown, or the length has no room for text.
    """
    maker = RowMaker.of(tokenizer, max_length, bool(pooling))
    write_rows(maker, maker.task_blocks(parts), directory, max_unknown=max_unknown)
    return replace(TokenRows.open(directory), pooling=pooling)
