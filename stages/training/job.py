"""The training loop: one resumable DeepSpeed job.

A checkpoint holds the job's `State`, the engine's state and what the stage gathers. The order of the data is a function
of (seed, epoch, step), random numbers of (seed, step, micro-batch, rank); so neither is saved.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from checkpoints.errors import UserError
from stages.distillation.device import tf32_products
from stages.distillation.losses.base import LossTerm
from stages.training.compiled import compile_model
from stages.training.data_order import BUFFER_ROWS, epoch_batches, shard_batch
from stages.training.engine import Engine
from stages.training.job_checkpoint import Collector, JobCheckpoints, State
from stages.training.log import Clock, Log, name_rows
from stages.training.micro_batch import explain_out_of_memory, find_micro_batch, trial
from stages.training.monitor import Monitor
from stages.training.optimizer_state import whole_weights
from stages.training.progress import JobProgress
from stages.training.rows import Rows
from stages.training.signals import StopSignal
from stages.training.stage import Stage
from stages.training.step import Step, StepKind, refuse_ranks, refuse_unsupported

FIRST_CHECKPOINT_SECONDS = 15.0
"""Seconds until the first checkpoint. Each later interval is twice as long, up to `job.checkpoint_seconds`, so that a kill
costs a short stage little."""

MAX_CONSECUTIVE_SKIPS = 10
"""Abort after more consecutive batches than this with a non-finite loss."""


class Interrupted(Exception):
    """The stage was asked to stop, and has saved. `code` is the exit status: 128 + the signal's number."""

    def __init__(self, code: int, step: int):
        super().__init__(f"stopped at step {step}")
        self.code, self.step = code, step


class Job:
    """Trains `model` on `rows`, from the newest checkpoint of its stage if there is one.

    Args:
        stage: directory, options and ranks of the stage.
        model: called as model(batch, targets), returns `LossTerm`s by name; its `student` is evaluated and kept. To be
            compiled it must define `compile`, which says which parts are; the whole cannot be, for the engine hangs hooks
            on it.
        targets: called with a batch, returns the teacher's outputs for it. None: the model takes no targets.
        evaluate: the student's score on dev, higher is better; the best weights are kept. None: the last are kept.
        collector: saved with every checkpoint.
        set_progress: called before each step with the fraction of steps completed. Must be stateless: it is not
            checkpointed. With it the check for a diverging loss is off.
        batch_transform: called with (batch, epoch) while the batch is still in the CPU's memory.
        step: what the stage declares of an optimiser step. None: one loss, one backward pass, one AdamW.

    Raises:
        UserError: ranks, ZeRO stage, micro-batch or precision do not go with the rows, the step or a loss.
    """

    def __init__(
        self,
        stage: Stage,
        model: nn.Module,
        rows: Rows,
        targets: Callable[[Any], object] | None = None,
        evaluate: Callable[[], float] | None = None,
        collector: Collector | None = None,
        set_progress: Callable[[float], None] | None = None,
        batch_transform: Callable[[Any, int], Any] | None = None,
        step: Step | None = None,
    ):
        self.stage, self.model, self.rows = stage, model, rows
        self.targets, self.evaluate = targets, evaluate
        self.set_progress, self.batch_transform = set_progress, batch_transform
        self.options, self.settings = stage.training, stage.job
        self.world, self.rank = dist.get_world_size(), dist.get_rank()
        step = step or Step()
        kind = step.kind(model)
        refuse_ranks(rows, self.world)
        self.state = State()
        self.batches_per_epoch = math.ceil(len(rows) / self.options.batch_size)
        self.steps = self.batches_per_epoch * self.options.epochs
        self.batches_of = lru_cache(1)(
            partial(epoch_batches, rows.lengths, self.options.batch_size, stage.seed)
        )
        self.model.to(stage.device)
        # Before the model is compiled, which holds for these settings alone.
        stage.resources.enter_context(tf32_products(stage.device, stage.precision))
        micro_batch = self._micro_batch(whole=kind.takes_batch_whole)
        self.micro_batches = math.ceil(self.options.batch_size / (self.world * micro_batch))
        refuse_unsupported(kind, self.settings, self.world, self.micro_batches)
        compile_model(
            stage, model, self._parts(), rows.lengths, self.steps, self._why_not_compiled(kind), self._try
        )
        self.engine = Engine(stage, model, step, micro_batch, self.micro_batches, self.steps)
        self.checkpoints = JobCheckpoints(stage, model, self.engine, collector)
        may_grow = set_progress is not None or kind.passes
        self.log = Log(stage.directory / "metrics.jsonl", self.state.log, skip_divergence_check=may_grow)
        gpu = stage.device.type == "cuda"
        self.clock = Clock(torch.cuda.synchronize if gpu and self.settings.profile else None)
        self.stop = StopSignal()
        self.control_group = dist.new_group(backend="gloo") if self.world > 1 else None
        stage.resources.callback(self._close)

    def run(self) -> State:
        """Train to the end; the model then holds the best weights (or the last, where nothing is evaluated).

        Raises:
            Interrupted: a signal came; the job has saved.
            UserError: the loss is no longer finite, the disk is full, or a checkpoint is of another model or version.
        """
        self._restore()
        self.loss_scale = self.engine.loss_scale
        if len(self.rows) > BUFFER_ROWS:
            self.stage.log(
                f"more than {BUFFER_ROWS:,} rows: their order is drawn buffer by buffer, of blocks of rows"
            )
        self.stop.listen()
        state, saved_at = self.state, time.monotonic()
        interval = min(FIRST_CHECKPOINT_SECONDS, self.settings.checkpoint_seconds)
        unit = getattr(self.rows, "unit", "token")
        with closing(JobProgress(self.stage, state, self.steps, self.log, unit)) as progress:
            while state.step < self.steps and not self._patience_is_out():
                epoch, place = divmod(state.step, self.batches_per_epoch)
                global_rows = self.batches_of(epoch)[place]
                learning_rate = self.step(global_rows)
                progress.advance(int(self.rows.lengths[global_rows].sum()))
                if state.step % self.settings.log_every == 0 or state.step == self.steps:
                    progress.write_line(epoch, learning_rate)
                    self._report_overflows()
                improved = self._evaluate_if_due(epoch)
                due = improved or time.monotonic() - saved_at >= interval
                due, stop = self._sync_decision(due, self.stop.number)
                if due or stop:
                    self._save()
                    saved_at = time.monotonic()
                    interval = min(2 * interval, self.settings.checkpoint_seconds)
                if stop:
                    self.checkpoints.finish()
                    self.stop.obeyed()
                    raise Interrupted(128 + stop, state.step)
        if self.settings.profile or self.stage.device.type == "cpu":
            self.stage.log(str(self.clock))
        if not self.steps:  # the model is kept as it begins
            self._evaluate_if_due(0)
        elif self.checkpoints.saved_step != state.step:
            self._save()  # so that a job killed while its artefact is written ends at once
        self.checkpoints.finish()
        if self.evaluate and state.best_step is not None:
            self.checkpoints.load_best(state.best_step)
        return state

    def _report_overflows(self) -> None:
        """Log steps of fp16 whose gradients overflowed since the last line: they changed no weight."""
        before, self.loss_scale = self.loss_scale, self.engine.loss_scale
        if self.loss_scale < before:
            steps = round(math.log2(before / self.loss_scale))
            self.stage.log(
                f"fp16: gradients overflowed in {steps} of the steps up to {self.state.step}, which changed no weight; a "
                "few at the start are usual, many mean that the model needs bf16 or fp32"
            )

    def _close(self) -> None:
        """Leave nothing behind for the next job of this process."""
        self.checkpoints.close()
        self.engine.close()
        if self.control_group is not None:
            dist.destroy_process_group(self.control_group)
        self.stop.close()

    def step(self, global_rows: np.ndarray) -> float:
        """Take one optimiser step on a global batch. Returns the learning rate, 0 where the batch was left out."""
        total = self.rows.normalizers(global_rows)
        parts = shard_batch(global_rows, self.world, self.rank, self.micro_batches)
        loss, terms = torch.zeros((), device=self.stage.device), []  # this rank's
        may_skip = self.settings.skip_bad_batches
        buffers = self.engine.copy_buffers() if may_skip else {}
        self.engine.deepspeed.train()
        if self.set_progress:
            self.set_progress(self.state.step / self.steps)
        for i, (indices, weights) in enumerate(parts):
            if i:
                self.engine.end_micro_batch()
            seed_everything(self.stage.seed, self.state.step, i, self.rank)
            with explain_out_of_memory(self.state.step + 1, self.rows.lengths, indices):
                ends_step = i == self.micro_batches - 1
                seen, part = self._forward_and_backward(indices, weights, total, ends_step)
            terms.append(seen)
            loss += part
        with self.clock("optimiser"):
            skip = may_skip and self._is_bad(loss, global_rows)
            learning_rate = self.engine.step(self.state.step + 1, skip_to=buffers if skip else None)
        self.state.step += 1
        if not skip:
            self.log.add(self.state.step, global_rows, loss, terms, total)
        return learning_rate

    def _forward_and_backward(
        self, indices: np.ndarray, weights: np.ndarray, total: dict[str, float], ends_step: bool
    ) -> tuple[dict[str, LossTerm], Tensor]:
        """Both passes of a micro-batch. Returns its terms, and its part of the global loss."""
        with self.clock("data"):
            batch = self._batch(indices, weights)
        with self.clock("teacher"):
            targets = self.targets(batch) if self.targets else None
        with self.clock("forward"):
            terms = self.engine.deepspeed(batch, targets)
            losses: dict[str, Tensor] = {}
            for term in terms.values():
                losses[term.tag] = losses.get(term.tag, 0) + term.weight * term.sum / total[term.normalizer]
        with self.clock("backward"):
            self.engine.backward(losses, ends_step)
        return terms, torch.stack([loss.detach() for loss in losses.values()]).sum()

    def _batch(self, indices: np.ndarray, weights: np.ndarray) -> Any:
        batch = self.rows.collate(indices, weights)
        if self.batch_transform:
            batch = self.batch_transform(batch, self.state.step // self.batches_per_epoch)
        return batch.to(self.stage.device)

    def _is_bad(self, loss: Tensor, global_rows: np.ndarray) -> bool:
        """Whether a batch's loss is not finite on any rank. Logs it.

        Raises:
            UserError: there were too many such batches in a row.
        """
        (bad,) = self._all_reduce_max(int(not torch.isfinite(loss)))
        step = self.state.step + 1
        self.state.skipped = self.state.skipped + 1 if bad else 0
        if self.state.skipped > MAX_CONSECUTIVE_SKIPS:
            raise UserError(
                f"more than {MAX_CONSECUTIVE_SKIPS} consecutive batches had a non-finite loss: the model is broken since "
                f"step {step - 1 - MAX_CONSECUTIVE_SKIPS}; lower the rate",
                argument="learning_rate",
            )
        if bad:
            self.stage.log(f"step {step} left out, its loss is not finite: {name_rows(global_rows)}")
        return bool(bad)

    # Micro-batches.

    def _micro_batch(self, whole: bool) -> int:
        """Rows that a rank takes at once; `whole`: its part of the global batch must not be split."""
        most = math.ceil(self.options.batch_size / self.world)
        if self.settings.micro_batch != "auto":
            return int(self.settings.micro_batch) or most
        attempt = partial(self._try, weight=0.0)
        return most if whole else find_micro_batch(self.stage, self.rows.lengths, most, attempt)

    def _try(self, indices: np.ndarray, weight: float = 1.0) -> None:
        """Do a forward and a backward pass of a micro-batch, which teach nothing: the gradients are dropped."""
        precision = self.stage.precision
        with trial(self.model):
            batch = self._batch(indices, np.full(len(indices), weight, np.float32))
            with torch.autocast(self.stage.device.type, precision, enabled=precision != torch.float32):
                terms = self.model(batch, self.targets(batch) if self.targets else None)
            sum(term.sum for term in terms.values()).backward()

    # Compiling.

    def _parts(self) -> Iterator[np.ndarray]:
        """This rank's first micro-batch of each step of the first epoch, as row numbers."""
        for rows in self.batches_of(0):
            yield shard_batch(rows, self.world, self.rank, self.micro_batches)[0][0]

    def _why_not_compiled(self, kind: StepKind) -> str:
        """Return why a step cannot be compiled: what it computes changes from step to step, or has several parts. "" if it can."""
        not_said = type(self.model).compile is nn.Module.compile
        reasons = {
            f"{type(self.model).__name__} does not say what of it to compile": not_said,
            "a schedule changes its losses at each step": self.set_progress is not None,
            "its batches are changed as they are read": self.batch_transform is not None,
            "its optimiser step is the method's own": kind.is_own,
            f"ZeRO stage {self.settings.zero} shards what it trains": self.settings.zero > 0,
            "ranks would decide each for itself": self.world > 1 and self.settings.compile == "auto",
            "a loss over the whole batch waits for the other ranks": self.world > 1
            and kind.takes_batch_whole,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    # Evaluation and the best weights.

    def _patience_is_out(self) -> bool:
        return 0 < self.options.patience <= self.state.evaluations_without_gain

    def _evaluate_if_due(self, epoch: int) -> bool:
        """Score the student on dev and keep it if it is the best so far. Returns whether it is."""
        every, state = self.options.evaluate_every or self.batches_per_epoch, self.state
        if self.evaluate is None or (state.step % every and state.step < self.steps):
            return False
        self.engine.deepspeed.eval()
        with self.clock("evaluation"):
            of_rank_0 = [float(self.evaluate())]
        dist.broadcast_object_list(of_rank_0)  # ranks on unlike hosts may differ in the last digit
        score = of_rank_0[0]
        better = not math.isnan(score) and (state.best_score is None or score > state.best_score)
        state.evaluations_without_gain = 0 if better else state.evaluations_without_gain + 1
        if better:
            state.best_score, state.best_step = score, state.step
            self.checkpoints.save_best(state.step)
        self.log.write({"step": state.step, "epoch": epoch, "dev": score, "best": better})
        return better

    def student_weights(self) -> dict[str, Tensor]:
        """The student's weights on the CPU, unsharded; tied weights appear once. Called on every rank."""
        return whole_weights(self.model.get_submodule("student"))

    # Checkpoints, and what ranks agree on.

    def _restore(self) -> None:
        """Resume from the newest intact checkpoint, or start; then open the log."""
        if restored := self.checkpoints.restore():
            self.state, self.log.sums = restored, restored.log
            self.log.forget_after(restored.step)
            self.stage.log(f"resumed at step {restored.step} of {self.steps}")
        elif self.rank == 0:
            self.log.path.unlink(missing_ok=True)
            self.checkpoints.need_space(self.steps, with_best=self.evaluate is not None)
        if self.settings.monitor and self.rank == 0:
            self.log.monitor = Monitor(self.stage, self.log.path)

    def _save(self) -> None:
        with self.clock("checkpoints"):
            self.log.gather()
            self.checkpoints.save(self.state)

    def _sync_decision(self, due: bool, stop: int) -> tuple[bool, int]:
        """All ranks save, or stop, at the same step: when rank 0's clock says so, or any was signalled."""
        save, number = self._all_reduce_max(int(due and self.rank == 0), stop)
        return bool(save), number

    def _all_reduce_max(self, *values: int) -> list[int]:
        """Of each value the highest that any rank has."""
        if self.control_group is None:
            return list(values)
        highest = torch.tensor(values)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.control_group)
        return highest.tolist()


def seed_everything(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Make the random numbers of a pass a function of (seed, step, micro-batch, rank)."""
    entropy = np.random.SeedSequence((seed, step, micro_batch, rank)).generate_state(2, np.uint32)
    drawn = int(entropy[0]) << 32 | int(entropy[1])
    if torch.accelerator.is_available():
        torch.manual_seed(drawn)
    else:  # the same in a 500th of the time: nothing is noted down for devices that may come
        torch.default_generator.manual_seed(drawn)
