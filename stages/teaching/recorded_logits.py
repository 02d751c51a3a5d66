"""The teacher's logits by row: recorded while it runs anyway, or asked for once, so that a later stage needs no teacher.

Axes in names: N targets of the rows, C classes.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from checkpoints import store
from checkpoints.fingerprint import sha256_file
from stages.distillation.models import load_tokenizer
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.tasks.batches import Batch, indices_by_length, label_index
from stages.tasks.task import Task
from stages.tasks.task_rows import TaskRows
from stages.tasks.token_rows import TokenRows
from stages.teaching.live_teacher import task_teacher
from stages.teaching.shards import Fill, make_shards
from stages.training.cached_rows import is_there, train_rows
from stages.training.stage import Stage, is_first_rank, wait_for

TEACHER_LOGITS_FILE = "teacher_logits.npy"
SHARD_BATCHES = 64
"""Batches of a file: what a killed stage may compute again."""


def teacher_logits(stage: Stage, task: Task, rows: TokenRows, given: str = "teacher") -> np.ndarray:
    """A teacher's logits for every target of `rows`, (N, C). Computed once, then read from the cache of all runs.

    Args:
        stage: whose input `given` is the teacher.
        rows: in the teacher's tokens.
    """
    assert isinstance(rows.tokens, np.memmap), "rows of a task are read from the cache"
    kept = Path(str(rows.tokens.filename)).parent
    teacher = sha256_file(stage.artifact_dir(given) / store.MANIFEST)
    kept = kept.with_name(f"{kept.name}-answers-{teacher[:12]}-{stage.job.precision}")
    if not is_there(stage, kept, "the teacher's logits are"):
        table_NC = compute_logits(stage, task, rows, np.arange(len(rows)), given)
        if is_first_rank():
            with store.sealed(kept, shared=True) as directory:
                np.save(directory / TEACHER_LOGITS_FILE, table_NC)
    wait_for([kept / store.MANIFEST])
    return np.load(kept / TEACHER_LOGITS_FILE)


def training_logits(stage: Stage, task: Task, given: str = "teacher") -> tuple[np.ndarray, TokenRows]:
    """A model's logits (N, C) of the rows that a recipe's stage trains on; and these rows, in that model's tokens.

    Args:
        stage: whose input `given` is the model.
    """
    length, everything = stage.training.max_length, stage.options.get("with_unlabelled", False)
    rows = train_rows(stage, task, load_tokenizer(stage.model(given)), length, everything)
    return teacher_logits(stage, task, rows, given), rows


def compute_logits(
    stage: Stage, task: Task, rows: TokenRows, indices: np.ndarray, given: str = "teacher"
) -> np.ndarray:
    """The logits of the teacher `given` for the targets of some rows, in a table for the targets of all of them, (N, C).

    Ranks share the batches, in sealed shards in the stage's directory: a resumed stage computes only missing ones.
    Called on every rank.
    """
    which = hashlib.sha256(indices.tobytes() + given.encode()).hexdigest()[:12]
    shards = stage.directory / "teacher" / f"logits-{which}-{stage.job.precision}"
    batches = indices_by_length(rows, of=indices)
    stage.log(f"one teacher pass over {len(indices):,} rows without recorded logits")

    def start() -> Fill:
        teacher = task_teacher(stage, task, CaptureSpec(logits=True), given)

        def fill(i: int, directory: Path) -> None:
            places, logits = [], []
            for chunk in batches[i * SHARD_BATCHES : (i + 1) * SHARD_BATCHES]:
                batch = rows.collate(chunk, np.ones(len(chunk), np.float32))
                logits_BC = teacher(batch.to(stage.device)).logits.float().cpu()
                places.append(label_index(rows.first_targets, batch)[batch.label_mask].numpy())
                logits.append(logits_BC[batch.label_mask].numpy())
            np.savez(directory / "logits.npz", places=np.concatenate(places), logits=np.concatenate(logits))

        return fill

    paths = make_shards(stage, shards, -(-len(batches) // SHARD_BATCHES), "teacher", start)
    table_NC = np.empty((rows.targets.sum(), task.kind.outputs), np.float32)
    for path in paths:
        with np.load(path / "logits.npz") as shard:
            table_NC[shard["places"]] = shard["logits"]
    return table_NC


def by_windows(logits_NC: np.ndarray, theirs: TokenRows, ours: TokenRows) -> np.ndarray:
    """Logits of the teacher's rows for the student's: where its tokens cut a text otherwise, a window has the text's."""
    if np.array_equal(theirs.texts, ours.texts):
        return logits_NC
    return theirs.of_texts(logits_NC)[ours.texts]


def logits_as_outputs(
    table_NC: np.ndarray, rows: TaskRows, device: torch.device
) -> Callable[[Batch], ModelOutputs]:
    """Outputs that hold the teacher's logits of the rows' targets, and nothing else."""
    table, first_targets = torch.from_numpy(table_NC).to(device), rows.first_targets.to(device)
    return lambda batch: ModelOutputs(logits_BC=table[label_index(first_targets, batch)])


class TeacherLogits:
    """The teacher's logits of the rows' targets, recorded while it runs anyway, so that a later stage needs no teacher.

    Saved with each checkpoint; targets not seen yet are NaN.
    """

    def __init__(self, rows: TokenRows, classes: int, device: torch.device):
        self.first_targets = rows.first_targets.to(device)
        targets = int(rows.targets.sum())
        # A last row takes what is no target: selecting by a mask would wait for a GPU in each step.
        self._with_rest = torch.full((targets + 1, classes), torch.nan, device=device)
        self.table_NC = self._with_rest[:targets]
        self.bytes = self.table_NC.nbytes

    def note(self, batch: Batch, outputs: ModelOutputs) -> None:
        """Keep the logits of a batch's rows that count and were not seen before."""
        counts = batch.weight > 0
        if batch.label_mask.ndim == 2:  # at token level
            counts = counts[:, None] & batch.label_mask
        places = label_index(self.first_targets, batch)
        places_T = torch.where(counts, places, len(self.table_NC)).flatten()
        known_TC = self._with_rest[places_T]
        new_T1 = known_TC.isnan().any(dim=1, keepdim=True)
        self._with_rest[places_T] = torch.where(new_T1, outputs.logits.float().flatten(0, -2), known_TC)

    def gather(self) -> None:
        """Merge the tables of all ranks; in its first epoch each row is seen by exactly one rank."""
        table_NC = self.table_NC.nan_to_num(-torch.inf)
        dist.all_reduce(table_NC, dist.ReduceOp.MAX)
        self.table_NC.copy_(torch.where(table_NC == -torch.inf, torch.nan, table_NC))

    def save(self, directory: Path) -> None:
        """Write the gathered table, on rank 0."""
        self.gather()
        if dist.get_rank() == 0:
            self.write(directory)

    def write(self, directory: Path) -> None:
        """Write the table as it is."""
        np.save(directory / TEACHER_LOGITS_FILE, self.table_NC.cpu().numpy())

    def load(self, directory: Path) -> None:
        """Go on from a checkpoint."""
        self.table_NC.copy_(torch.from_numpy(np.load(directory / TEACHER_LOGITS_FILE)))
