"""What a job saves, and how it resumes: checkpoints of its whole state, and the best weights of the student."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from checkpoints import store
from checkpoints.errors import UserError
from stages.training import optimizer_state
from stages.training.engine import Engine
from stages.training.log import Sums
from stages.training.stage import Stage, is_first_rank

NUMBERS_PER_PARAMETER = 3
"""In a checkpoint: the weight and AdamW's two moments."""


class Collector(Protocol):
    """What a stage gathers while it trains (the teacher's logits), saved in every checkpoint. Called on every rank.

    Attributes:
        bytes: its size on disk.
    """

    bytes: int

    def save(self, directory: Path) -> None:
        """Write it into a checkpoint."""
        ...

    def load(self, directory: Path) -> None:
        """Read it from a checkpoint."""
        ...


@dataclass
class State:
    """A job's progress. A checkpoint holds it, the engine's state and what the stage gathers.

    Attributes:
        step: optimiser steps taken.
        best_score: the highest on dev so far, reached at `best_step`.
        best_step: None where nothing was evaluated yet.
        evaluations_without_gain: since the best one.
        seconds: training time accumulated across restarts.
        skipped: consecutive steps whose batch was left out.
        log: sums of the loss terms that are not logged yet.
    """

    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    seconds: float = 0.0
    skipped: int = 0
    log: Sums = field(default_factory=Sums)

    @staticmethod
    def of(saved: dict[str, Any]) -> "State":
        """From the JSON of a checkpoint. Raises TypeError or KeyError where it is of another version."""
        return State(**saved | {"log": Sums(**saved["log"])})


class JobCheckpoints:
    """Saves and restores a job, in its stage's directory.

    Args:
        model: what the job trains; its `student` is what is evaluated and kept.
        collector: saved with it.
    """

    def __init__(self, stage: Stage, model: nn.Module, engine: Engine, collector: Collector | None):
        self.stage, self.model, self.collector = stage, model, collector
        self.engine = engine.deepspeed
        self.directory, self.bests = stage.directory / "checkpoints", stage.directory / "best"
        self.saved_step: int | None = None
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def restore(self) -> State | None:
        """Set the engine and the collector to the newest intact checkpoint, and return its state. None: there is none.

        Raises:
            UserError: it is of another model or version.
        """
        found = [store.newest(self.directory, self.stage.log) if is_first_rank() else None]
        dist.broadcast_object_list(found)
        path = found[0]
        # Newer checkpoints are damaged; newer best weights belong to steps that are redone.
        if is_first_rank():
            for newer in (*self.directory.glob("step-*"), *self.bests.glob("step-*")):
                if path is None or newer.name > path.name:
                    store.remove(newer)
        if path is None:
            return None
        saved = json.loads((path / "state.json").read_text())
        try:
            state = State.of(saved["state"])
            optimizer_state.load(self.engine, path, saved)
        except (TypeError, KeyError, FileNotFoundError) as error:
            raise UserError(
                f"{path} is a checkpoint of another version; remove {self.directory} to start the stage again"
            ) from error
        if self.engine.torch_autocast_z0_gradscaler is not None and saved["gradient_scale"]:
            self.engine.torch_autocast_z0_gradscaler.load_state_dict(saved["gradient_scale"])
        if self.collector:
            self.collector.load(path)
        self.saved_step = state.step
        return state

    def save(self, state: State) -> None:
        """Copy what a checkpoint holds; a thread of rank 0 writes and seals it while training goes on.

        Called on every rank. The checkpoint before is finished first, and `finish` waits for the last one.

        Raises:
            UserError: of the checkpoint before: the disk is full, or a number is no longer finite.
        """
        self._finish_writing()
        target = self.directory / store.step_name(state.step)
        staging = target.with_name(f".writing-{target.name}")
        if is_first_rank():
            self.directory.mkdir(exist_ok=True)  # without parents: a stage whose disk is gone must fail
            store.need_space(self.directory, self.bytes, f"the checkpoint of step {state.step}")
            store.fresh_staging(target)
        try:
            snapshot = optimizer_state.snapshot(self.engine)
            if self.collector:
                self.collector.save(staging)
        except Exception as error:
            raise store.disk_error(error, target) from error
        scaler = self.engine.torch_autocast_z0_gradscaler
        scale = scaler.state_dict() if scaler else None
        saved = {"state": asdict(state), **snapshot.numbers, "gradient_scale": scale}
        if is_first_rank():
            self._writing = self._writer.submit(self._write, snapshot, saved, staging, target)
        self.saved_step = state.step

    def _write(
        self, snapshot: optimizer_state.Snapshot, saved: dict[str, Any], staging: Path, target: Path
    ) -> None:
        try:
            snapshot.write(staging)
            store.write_json(staging / "state.json", saved)
            store.seal(staging, target)
            store.keep_newest(self.directory, self.stage.job.keep)
        except Exception as error:  # safetensors, too, wraps what the system says of a full disk
            raise store.disk_error(error, target) from error

    def close(self) -> None:
        """End the thread that writes, with the checkpoint that it is at."""
        self._writer.shutdown()

    def finish(self) -> None:
        """Wait until the last checkpoint is sealed. Called on every rank.

        Raises:
            UserError: the disk is full, or a number is no longer finite.
        """
        self._finish_writing()
        dist.barrier()  # a rank that ended now would take rank 0 along

    def _finish_writing(self) -> None:
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def save_best(self, step: int) -> None:
        """Keep the student's weights of a step, the best so far. Called on every rank."""
        weights = optimizer_state.whole_weights(self.model.get_submodule("student"))
        if is_first_rank():
            with store.sealed(self.bests / store.step_name(step)) as directory:
                save_file(weights, directory / "student.safetensors")
            store.keep_newest(self.bests, self.stage.job.keep + 1)

    def load_best(self, step: int) -> None:
        """Set the student to the weights that were best. Called on every rank."""
        directory = self.bests / store.step_name(step)
        try:
            store.verify(directory)
        except store.Damaged as damage:
            raise UserError(
                f"the best weights are damaged ({damage}); remove {self.stage.directory} to start the stage again"
            ) from damage
        optimizer_state.set_whole_weights(
            self.model.get_submodule("student"), load_file(directory / "student.safetensors")
        )

    def need_space(self, steps: int, with_best: bool) -> None:
        """Raises UserError where the disk does not hold what a stage of so many steps keeps."""
        # During a save there is one more checkpoint, and one more set of best weights, than `keep`.
        kept = min(self.stage.job.keep, steps) + 1
        size = kept * self.bytes + (self._bytes(kept + 1) if with_best else 0)
        store.need_space(self.stage.directory, size, f"{self.stage.name} keeps checkpoints; it")

    @property
    def bytes(self) -> int:
        """The size of a checkpoint."""
        buffers = optimizer_state.persistent_buffers(self.model).values()
        size = self._bytes(NUMBERS_PER_PARAMETER) + sum(buffer.nbytes for buffer in buffers)
        return size + (self.collector.bytes if self.collector else 0)

    def _bytes(self, numbers: int) -> int:
        """Bytes of `numbers` fp32 values per parameter."""
        return 4 * numbers * sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())
