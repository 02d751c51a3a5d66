"""What a frozen teacher shows of every row, kept on disk: it runs once, whatever the number of epochs.

Reading a token's hidden states, queries and keys back costs a few microseconds, computing them in a BERT-base
some hundred: where a stage passes over its rows many times, the teacher's part of a step all but goes away.
"""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from checkpoints import store
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.batches import Batch, batches_by_length
from stages.tasks.token_rows import TokenRows
from stages.training.progress import Progress
from stages.training.stage import Stage, barrier, is_first_rank, wait_for

SHARD_ROWS = 1000
"""Rows of a file: what a killed stage may compute again."""


class TeacherCache:
    """The outputs of a teacher, from disk.

    Each token is stored as one vector of two bytes a number: its hidden states, then queries, keys and values of the
    requested layers. Those of a teacher that computes in fp32 are rounded to bf16, which has its range and 8 bits of its
    24: a relative error of 2^-8 at most. Shards are sealed: a resumed stage computes only missing ones, unless it
    resumes in another precision.

    Args:
        stage: in whose directory the shards lie until it is finished.
        name: of the rows.
        rows: tokenized.
        teacher: whose outputs are kept.
    """

    def __init__(self, stage: Stage, name: str, rows: TokenRows, teacher: FrozenTeacher):
        self.stage, self.name, self.rows, self.teacher = stage, name, rows, teacher
        rounded = teacher.precision == torch.float32
        self.stored = torch.bfloat16 if rounded else teacher.precision
        precision = stage.job.precision + ("-as-bf16" if rounded else "")
        self.directory = stage.directory / "teacher" / f"{name}-{precision}"
        outputs = teacher(rows.collate(np.arange(1), np.ones(1, np.float32)).to(teacher.device))
        self.heads = teacher.model.config.num_attention_heads
        # Logits of words lie with the layers.
        self.words = outputs.logits_BC is not None and outputs.logits_BC.ndim == 3
        self.classes = 0 if outputs.logits_BC is None or self.words else outputs.logits_BC.shape[1]
        self.widths = [part.shape[-1] for part in _parts(outputs, teacher.spec)]
        self.shards: list[Tensor] = []
        self.logits_NC: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return (
            int(self.rows.lengths.sum()) * sum(self.widths) * self.stored.itemsize
            + 4 * len(self.rows) * self.classes
        )

    def fill(self) -> "TeacherCache":
        """Run the teacher over the rows of the shards that are not there; ranks share them. Called on every rank."""
        rank, world = dist.get_rank(), dist.get_world_size()
        starts = range(0, len(self.rows), SHARD_ROWS)
        paths = [self.directory / f"shard-{start // SHARD_ROWS:05d}" for start in starts]
        mine = [i for i in range(rank, len(paths), world) if not store.is_whole(paths[i])]
        for i in mine:
            store.remove(paths[i])  # torn: no rank may take it for made
        barrier()
        if is_first_rank() and mine:
            store.need_space(
                self.stage.directory, self.bytes, f"{self.stage.name} keeps the teacher's layers; it"
            )
        what = f"teacher over the rows of {self.name}"
        with Progress(self.stage, len(mine), "shard", what=what) as progress:
            for i in mine:
                with store.sealed(paths[i]) as directory:
                    self._compute(
                        np.arange(starts[i], min(starts[i] + SHARD_ROWS, len(self.rows))), directory
                    )
                progress.advance()
        wait_for(path / store.MANIFEST for path in paths)
        for path, start in zip(paths, starts, strict=True):
            stop = min(start + SHARD_ROWS, len(self.rows))
            self.shards.append(self._mapped(path / "layers.bin", start, stop, shared=False))
        if self.classes:
            self.logits_NC = torch.from_numpy(
                np.concatenate([np.load(path / "logits.npy") for path in paths])
            )
        return self

    def __call__(self, batch: Batch) -> ModelOutputs:
        """The outputs of a batch; zeros at padded positions."""
        places_BL = batch.attention_mask.cpu()
        flat_BLF = torch.zeros(*places_BL.shape, sum(self.widths), dtype=self.stored)
        for i, row in enumerate(batch.rows.tolist()):
            shard, first = divmod(row, SHARD_ROWS)
            begin, length = self._begin(row) - self._begin(row - first), int(self.rows.lengths[row])
            flat_BLF[i, self.rows.span(row, flat_BLF.shape[1])] = self.shards[shard][begin : begin + length]
        parts = flat_BLF.to(batch.input_ids.device, self.teacher.precision).split(self.widths, dim=-1)
        outputs = ModelOutputs()
        spec, parts = self.teacher.spec, iter(parts)
        outputs.hidden_BLW = dict(zip(sorted(spec.hidden), parts, strict=False))
        for layers, of in _per_head(outputs, spec):
            for layer in sorted(layers):
                of[layer] = next(parts).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.words:
            outputs.logits_BC = next(parts)
        if self.classes:
            outputs.logits_BC = self.logits_NC[batch.rows.cpu()].to(batch.input_ids.device)
        return outputs

    def _compute(self, indices: np.ndarray, directory: Path) -> None:
        start = self._begin(indices[0])
        layers = self._mapped(directory / "layers.bin", indices[0], indices[-1] + 1, shared=True)
        logits_NC = np.zeros((len(indices), self.classes), np.float32)
        for batch in batches_by_length(self.rows, of=indices):
            outputs = self.teacher(batch.to(self.teacher.device))
            flat_BLF = torch.cat(_parts(outputs, self.teacher.spec), dim=-1).cpu()
            for row_LF, row in zip(flat_BLF, batch.rows.tolist(), strict=True):
                begin, length = self._begin(row) - start, int(self.rows.lengths[row])
                layers[begin : begin + length] = row_LF[self.rows.span(row, len(row_LF))]
            if self.classes:
                logits_NC[batch.rows.cpu().numpy() - indices[0]] = outputs.logits_BC.float().cpu()
        np.save(directory / "logits.npy", logits_NC)

    def _mapped(self, path: Path, start: int, stop: int, shared: bool) -> Tensor:
        """The (tokens, F) file of rows start to stop, made where it is not there."""
        tokens = self._begin(stop) - self._begin(start)
        size = tokens * sum(self.widths)
        return torch.from_file(str(path), shared=shared, size=size, dtype=self.stored).view(tokens, -1)

    def _begin(self, row: int) -> int:
        return int(self.rows.offsets[row])


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
