"""What a frozen teacher shows of every row, kept on disk: it runs once, whatever the number of epochs.

Reading a token's hidden states, queries and keys back costs a few microseconds, computing them in a BERT-base
some hundred: where a stage passes over its rows many times, the teacher's part of a step all but goes away.
"""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from checkpoints import store
from stages.distillation.capture import Needs, View
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.batches import Batch, TokenRows, batches_by_length, collate
from stages.training.stage import Stage, barrier, is_first_rank, wait_for

SHARD_ROWS = 1000
"""Rows of a file: what a killed stage may compute again."""


class TeacherCache:
    """The views of a teacher, from disk.

    A token is one vector: its hidden states, then queries, keys and values of the layers that are needed, in the
    precision of the teacher's products (so hidden states are rounded to it). Shards are sealed: what is there
    when a stage goes on is not computed again, unless it goes on in another precision.

    Args:
        stage: in whose directory the shards lie until it is finished.
        name: of the rows.
        rows: tokenized.
        teacher: whose views are kept.
    """

    def __init__(self, stage: Stage, name: str, rows: TokenRows, teacher: FrozenTeacher):
        self.stage, self.rows, self.teacher = stage, rows, teacher
        self.directory = stage.directory / "teacher" / f"{name}-{stage.job.precision}"
        view = teacher(collate(rows, np.arange(1), np.ones(1, np.float32)).to(teacher.device))
        self.heads = teacher.model.config.num_attention_heads
        # Logits of words lie with the layers.
        self.words = view.logits_BC is not None and view.logits_BC.ndim == 3
        self.classes = 0 if view.logits_BC is None or self.words else view.logits_BC.shape[1]
        self.widths = [part.shape[-1] for part in _parts(view, teacher.needs)]
        self.shards: list[Tensor] = []
        self.logits_NC: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        size = torch.empty(0, dtype=self.teacher.precision).element_size()
        return int(self.rows.lengths.sum()) * sum(self.widths) * size + 4 * len(self.rows) * self.classes

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
        for i in tqdm(
            mine, f"teacher, {self.directory.name}", unit="shard", disable=None if rank == 0 else True
        ):
            with store.sealed(paths[i]) as directory:
                self._compute(np.arange(starts[i], min(starts[i] + SHARD_ROWS, len(self.rows))), directory)
        wait_for(path / store.MANIFEST for path in paths)
        for path, start in zip(paths, starts, strict=True):
            stop = min(start + SHARD_ROWS, len(self.rows))
            self.shards.append(self._mapped(path / "layers.bin", start, stop, shared=False))
        if self.classes:
            self.logits_NC = torch.from_numpy(
                np.concatenate([np.load(path / "logits.npy") for path in paths])
            )
        return self

    def __call__(self, batch: Batch) -> View:
        """The view of a batch; zeros at padded positions."""
        places_BL = batch.attention_mask.cpu()
        flat_BLF = torch.zeros(*places_BL.shape, sum(self.widths), dtype=self.teacher.precision)
        for i, row in enumerate(batch.rows.tolist()):
            shard, first = divmod(row, SHARD_ROWS)
            begin, length = self._begin(row) - self._begin(row - first), int(self.rows.lengths[row])
            flat_BLF[i, :length] = self.shards[shard][begin : begin + length]
        parts = flat_BLF.to(batch.input_ids.device).split(self.widths, dim=-1)
        view = View(mask_BL=batch.attention_mask * batch.weight[:, None])
        needs, parts = self.teacher.needs, iter(parts)
        view.hidden_BLW = dict(zip(sorted(needs.hidden), parts, strict=False))
        for layers, of in _per_head(view, needs):
            for layer in sorted(layers):
                of[layer] = next(parts).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.words:
            view.logits_BC = next(parts)
        if self.classes:
            view.logits_BC = self.logits_NC[batch.rows.cpu()].to(batch.input_ids.device)
        return view

    def _compute(self, indices: np.ndarray, directory: Path) -> None:
        start = self._begin(indices[0])
        layers = self._mapped(directory / "layers.bin", indices[0], indices[-1] + 1, shared=True)
        logits_NC = np.zeros((len(indices), self.classes), np.float32)
        for batch in batches_by_length(self.rows, of=indices):
            view = self.teacher(batch.to(self.teacher.device))
            flat_BLF = torch.cat(_parts(view, self.teacher.needs), dim=-1).cpu()
            for row_LF, row in zip(flat_BLF, batch.rows.tolist(), strict=True):
                begin, length = self._begin(row) - start, int(self.rows.lengths[row])
                layers[begin : begin + length] = row_LF[:length]
            if self.classes:
                logits_NC[batch.rows.cpu().numpy() - indices[0]] = view.logits_BC.float().cpu()
        np.save(directory / "logits.npy", logits_NC)

    def _mapped(self, path: Path, start: int, stop: int, shared: bool) -> Tensor:
        """The (tokens, F) file of rows start to stop, made where it is not there."""
        tokens = self._begin(stop) - self._begin(start)
        size, dtype = tokens * sum(self.widths), self.teacher.precision
        return torch.from_file(str(path), shared=shared, size=size, dtype=dtype).view(tokens, -1)

    def _begin(self, row: int) -> int:
        return int(self.rows.offsets[row])


def _parts(view: View, needs: Needs) -> list[Tensor]:
    """(B, L, ...) of a view, in the order in which they are kept."""
    hidden = [view.hidden_BLW[i] for i in sorted(needs.hidden)]
    per_head = [
        of[layer].transpose(1, 2).flatten(2)
        for layers, of in _per_head(view, needs)
        for layer in sorted(layers)
    ]
    words = [view.logits_BC] if view.logits_BC is not None and view.logits_BC.ndim == 3 else []
    return hidden + per_head + words


def _per_head(view: View, needs: Needs) -> list[tuple[frozenset[int], dict[int, Tensor]]]:
    """The layers that are needed, and where the view has them: queries, keys, values."""
    return [
        (needs.scores, view.queries_BHLD),
        (needs.scores, view.keys_BHLD),
        (needs.values, view.values_BHLD),
    ]
