"""What a frozen teacher shows of every row, kept on disk: it runs once, whatever the number of epochs.

Reading a token's hidden states, queries and keys back costs a few microseconds, computing them in a BERT-base
some hundred: where a stage passes over its rows many times, the teacher's part of a step all but goes away.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoints import store
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.batches import Batch, indices_by_length
from stages.tasks.token_rows import TokenRows
from stages.teaching.shards import Fill, make_shards
from stages.training.stage import Stage, is_first_rank

SHARD_ROWS = 1000
"""Rows of a file: what a killed stage may compute again."""
FILES = ("layers.bin", "scores.bin")
"""Of a shard, as `_Shard` has them."""


@dataclass
class _Shard:
    """What is kept of some rows: (tokens, F) of their tokens, and the scores of their pairs, row by row."""

    layers: Tensor
    scores: Tensor


class TeacherCache:
    """The outputs of a teacher, from disk.

    Each token is stored as one vector of two bytes a number: its hidden states, then queries, keys and values of the
    requested layers. If the losses need only attention scores, and these take less room than queries and keys (rows are
    shorter than 2 D), they are kept instead, (L, L) for each head and layer of a row. Numbers of a teacher that computes in
    fp32 are rounded to bf16, which has its range and 8 bits of its 24: a relative error of 2^-8 at most. Shards are
    sealed: a resumed stage computes only missing ones, unless it resumes in another precision.

    Where the disk has room for the first rows only, the teacher runs for the others each time. What it shows of them is
    rounded as well, so that it does not matter which rows are kept.

    Args:
        stage: in whose directory the shards lie until it is finished.
        rows: tokenized.
    """

    def __init__(self, stage: Stage, name: str, rows: TokenRows, teacher: FrozenTeacher):
        self.stage, self.name, self.rows, self.teacher = stage, name, rows, teacher
        rounded = teacher.precision == torch.float32
        self.stored = torch.bfloat16 if rounded else teacher.precision
        outputs = teacher(rows.collate(np.arange(1), np.ones(1, np.float32)).to(teacher.device))
        self.heads = teacher.model.config.num_attention_heads
        self.pairs = np.concatenate([[0], np.square(rows.lengths, dtype=np.int64).cumsum()])
        """Pairs of tokens in the rows before each, and in all."""
        self.spec, self.scored = self._smallest(outputs)
        form = stage.job.precision + ("-as-bf16" if rounded else "") + ("-scores" if self.scored else "")
        self.directory = stage.directory / "teacher" / f"{name}-{form}"
        # Logits of words lie with the layers.
        self.words = outputs.logits_BC is not None and outputs.logits_BC.ndim == 3
        self.classes = 0 if outputs.logits_BC is None or self.words else outputs.logits_BC.shape[1]
        self.widths = [part.shape[-1] for part in _parts(outputs, self.spec)]
        self.shards: list[_Shard] = []
        self.logits_NC = torch.zeros(len(rows), self.classes)

    def bytes_of(self, rows: int) -> int:
        """Return the bytes on disk of the layers of the first `rows` rows."""
        numbers = self._begin(rows) * sum(self.widths) + int(self.pairs[rows]) * self.heads * len(self.scored)
        return numbers * self.stored.itemsize + 4 * rows * self.classes

    def rows_that_fit(self, room: float) -> int:
        """Return how many rows, from the first on, `room` bytes of disk hold: all of them, or whole shards."""
        ends = [*range(0, len(self.rows), SHARD_ROWS), len(self.rows)]
        return max((end for end in ends if self.bytes_of(end) <= room), default=0)

    def _smallest(self, outputs: ModelOutputs) -> tuple[CaptureSpec, list[int]]:
        """What is kept of each token, and the layers of which scores are kept of each pair of tokens."""
        spec, tokens = self.teacher.spec, int(self.rows.lengths.sum())
        layers = spec.scores - spec.queries_keys
        if any(self.pairs[-1] < tokens * 2 * outputs.queries_BHLD[layer].shape[-1] for layer in layers):
            return spec, sorted(layers)
        return replace(spec, queries_keys=spec.queries_keys | layers), []

    def fill(self, rows: int) -> "TeacherCache":
        """Run the teacher over the first rows. Shards that exist are skipped; ranks divide the others. Called on every rank."""
        starts = range(0, rows, SHARD_ROWS)

        def start() -> Fill:
            if is_first_rank():
                what = f"{self.stage.name} keeps the teacher's layers; it"
                store.need_space(self.stage.directory, self.bytes_of(rows) - kept_bytes(self.directory), what)
            ends = [*starts[1:], rows]
            return lambda i, directory: self._compute(np.arange(starts[i], ends[i]), directory)

        what = f"teacher over the rows of {self.name}"
        self.paths = make_shards(self.stage, self.directory, len(starts), what, start)
        for path, first in zip(self.paths, starts, strict=True):
            stop = min(first + SHARD_ROWS, rows)
            self.shards.append(self._mapped(path, first, stop, shared=False))
            self.logits_NC[first:stop] = torch.from_numpy(np.load(path / "logits.npy"))
        return self

    def __call__(self, batch: Batch) -> ModelOutputs:
        """The outputs of a batch; zeros at padded positions."""
        rows, length = batch.rows.tolist(), batch.attention_mask.shape[1]
        self._read_ahead(rows)
        flat_BLF = torch.zeros(len(rows), length, sum(self.widths), dtype=self.stored)
        scores_BSLL = torch.zeros(len(rows), self.heads * len(self.scored), length, length, dtype=self.stored)
        others = [row for row in rows if row // SHARD_ROWS >= len(self.shards)]
        shown = {row: (flat_LF, scores_SLL) for row, flat_LF, scores_SLL in self._computed(others)}
        for i, row in enumerate(rows):
            places = self.rows.span(row, length)
            flat_LF, scores_SLL = shown[row] if row in shown else self._kept(row)
            flat_BLF[i, places] = flat_LF
            scores_BSLL[i, :, places, places] = scores_SLL
        device, precision = batch.input_ids.device, self.teacher.precision
        parts = iter(flat_BLF.to(device, precision).split(self.widths, dim=-1))
        outputs = ModelOutputs()
        outputs.hidden_BLW = dict(zip(sorted(self.spec.hidden), parts, strict=False))
        for layers, of in _per_head(outputs, self.spec):
            for layer in sorted(layers):
                of[layer] = next(parts).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = scores_BSLL.to(device, precision).split(self.heads, dim=1)
        outputs.scores_BHLL = dict(zip(self.scored, scores, strict=False))
        if self.words:
            outputs.logits_BC = next(parts)
        if self.classes:
            outputs.logits_BC = self.logits_NC[batch.rows.cpu()].to(batch.input_ids.device)
        return outputs

    def _read_ahead(self, rows: list[int]) -> None:
        """Ask the system to read these rows at once: 1.5 times as fast (measured) if they are not in its memory."""
        kept = [row for row in rows if row // SHARD_ROWS < len(self.shards)]
        for row in kept if hasattr(os, "posix_fadvise") else ():
            for name, part in zip(FILES, self._kept(row), strict=True):
                if part.numel():
                    with open(self.paths[row // SHARD_ROWS] / name, "rb") as file:
                        place = int(part.storage_offset()) * part.itemsize
                        os.posix_fadvise(file.fileno(), place, part.nbytes, os.POSIX_FADV_WILLNEED)

    def _compute(self, indices: np.ndarray, directory: Path) -> None:
        first = int(indices[0])
        shard = self._mapped(directory, first, first + len(indices), shared=True)
        for of_batch in indices_by_length(self.rows, of=indices):
            for row, flat_LF, scores_SLL in self._computed(of_batch):
                self._tokens(shard, row, first).copy_(flat_LF)
                self._scores(shard, row, first).copy_(scores_SLL)
        np.save(directory / "logits.npy", self.logits_NC[indices].numpy())

    def _computed(self, indices: np.ndarray | list[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Run the teacher: for each row its number, (L, F) and (S, L, L) as they are kept. Logits go to `logits_NC`."""
        if not len(indices):
            return
        batch = self.rows.collate(np.asarray(indices), np.ones(len(indices), np.float32))
        b, length = batch.attention_mask.shape
        with torch.autocast(self.teacher.device.type, enabled=False):  # as when the shards are made
            outputs = self.teacher(batch.to(self.teacher.device))
            parts = [part.cpu() for part in _parts(outputs, self.spec)]
            scores = [outputs.attention_scores(layer).cpu() for layer in self.scored]
        flat_BLF = torch.cat([torch.empty(b, length, 0), *parts], dim=-1)
        scores_BSLL = torch.cat([torch.empty(b, 0, length, length), *scores], dim=1)
        if self.classes:
            self.logits_NC[batch.rows] = outputs.logits.float().cpu()
        for i, row in enumerate(batch.rows.tolist()):
            places = self.rows.span(row, length)
            yield row, flat_BLF[i, places], scores_BSLL[i, :, places, places]

    def _mapped(self, directory: Path, start: int, stop: int, shared: bool) -> _Shard:
        """The files of rows start to stop, made where they are not there."""

        def file(name: str, numbers: int) -> Tensor:
            if not numbers:
                return torch.empty(0, dtype=self.stored)
            if shared:
                store.reserve(directory / name, numbers * self.stored.itemsize)
            return torch.from_file(str(directory / name), shared=shared, size=numbers, dtype=self.stored)

        tokens = self._begin(stop) - self._begin(start)
        width, pairs = sum(self.widths), int(self.pairs[stop] - self.pairs[start])
        layers = file(FILES[0], tokens * width).view(tokens, width)
        return _Shard(layers, file(FILES[1], pairs * self.heads * len(self.scored)))

    def _kept(self, row: int) -> tuple[Tensor, Tensor]:
        """(L, F) and (S, L, L) of a row that is on disk."""
        shard, first = self.shards[row // SHARD_ROWS], row - row % SHARD_ROWS
        return self._tokens(shard, row, first), self._scores(shard, row, first)

    def _tokens(self, shard: _Shard, row: int, first: int) -> Tensor:
        """The (L, F) numbers of a row, of a shard that begins with the row `first`."""
        begin = self._begin(row) - self._begin(first)
        return shard.layers[begin : begin + int(self.rows.lengths[row])]

    def _scores(self, shard: _Shard, row: int, first: int) -> Tensor:
        """The (S, L, L) scores of a row, S all heads of all layers of which scores are kept."""
        maps, length = self.heads * len(self.scored), int(self.rows.lengths[row])
        begin, end = (int(self.pairs[i] - self.pairs[first]) * maps for i in (row, row + 1))
        return shard.scores[begin:end].view(maps, length, length)

    def _begin(self, row: int) -> int:
        return int(self.rows.offsets[row])


def kept_bytes(directory: Path) -> int:
    """The bytes of the shards under a directory."""
    return sum(path.stat().st_size for path in directory.rglob("step-*/*"))


def _parts(outputs: ModelOutputs, spec: CaptureSpec) -> list[Tensor]:
    """(B, L, ...) of outputs, in the order in which they are kept."""
    hidden = [outputs.hidden_BLW[i] for i in sorted(spec.hidden)]
    per_head = [
        of[layer].transpose(1, 2).flatten(2)
        for layers, of in _per_head(outputs, spec)
        for layer in sorted(layers)
    ]
    words = [outputs.logits_BC] if outputs.logits_BC is not None and outputs.logits_BC.ndim == 3 else []
    return hidden + per_head + words


def _per_head(outputs: ModelOutputs, spec: CaptureSpec) -> list[tuple[frozenset[int], dict[int, Tensor]]]:
    """The layers that are asked for, and where the outputs have them: queries, keys, values."""
    return [
        (spec.queries_keys, outputs.queries_BHLD),
        (spec.queries_keys, outputs.keys_BHLD),
        (spec.values, outputs.values_BHLD),
    ]
