"""The loop: one resumable DeepSpeed job.

What the loop holds is in one `State`; exactly that, the engine's own state and what the stage records are
in a checkpoint, so nothing else can be forgotten. The data order is a function of (seed, epoch, step), the
random numbers of (seed, step, micro-batch, rank): neither needs saving.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from checkpoints import store
from checkpoints.errors import UserError
from stages.distillation.losses.base import LossTerm
from stages.tasks.batches import Batch, TokenRows, collate, epoch_batches, normalizers, shard_batch
from stages.training import micro_batch as memory
from stages.training import optimizer_state as training_state
from stages.training.log import Clock, Log, Sums, named
from stages.training.monitor import Monitor
from stages.training.stage import Stage

CHECKPOINT = 3
"""Numbers a checkpoint holds for each parameter: its weight and AdamW's two moments."""

MAX_CONSECUTIVE_SKIPS = 10
"""Batches in a row: where more have no finite loss, it is the model that is broken."""


class Interrupted(Exception):
    """The stage was asked to stop, and has saved. `code` is the exit status: 128 + the signal's number."""

    def __init__(self, code: int, step: int):
        super().__init__(f"stopped at step {step}")
        self.code, self.step = code, step


class Collector(Protocol):
    """Something a stage gathers while it trains, saved in every checkpoint. Called on every rank."""

    bytes: int

    def save(self, directory: Path) -> None: ...

    def load(self, directory: Path) -> None: ...


@dataclass
class State:
    """Where a job stands.

    Attributes:
        seconds: of all starts together.
        skipped: steps in a row whose batch was left out.
    """

    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    seconds: float = 0.0
    skipped: int = 0


class Job:
    """Trains `model` on `rows`, from the newest checkpoint of its stage if there is one.

    Args:
        stage: directory, options and ranks of the stage.
        model: called as model(batch, targets), returns named terms; its `student` is what is evaluated and kept.
        rows: tokenized rows.
        targets: what the teacher says of a batch, or None.
        evaluate: score of the student on dev, higher is better; the best is kept. None: the last is kept.
        collector: gathered while training.
        set_progress: told the share of the steps that are done, where that changes the loss; what it does depends on
            nothing else, for it is not saved. Such a loss must be finite, but may grow.
        batch_transform: what is done to a batch before teacher and student see it.
    """

    def __init__(
        self,
        stage: Stage,
        model: nn.Module,
        rows: TokenRows,
        targets: Callable[[Batch], object] | None = None,
        evaluate: Callable[[], float] | None = None,
        collector: Collector | None = None,
        set_progress: Callable[[float], None] | None = None,
        batch_transform: Callable[[Batch], Batch] | None = None,
    ):
        self.stage, self.model, self.rows = stage, model, rows
        self.targets, self.evaluate, self.collector = targets, evaluate, collector
        self.set_progress, self.batch_transform = set_progress, batch_transform
        self.options, self.settings = stage.training, stage.job
        self.state = State()
        self.world, self.rank = dist.get_world_size(), dist.get_rank()
        self.checkpoints, self.bests = stage.directory / "checkpoints", stage.directory / "best"
        self.log = Log(stage.directory / "metrics.jsonl", skip_divergence_check=set_progress is not None)
        gpu = stage.device.type == "cuda"
        self.clock = Clock(torch.cuda.synchronize if gpu and self.settings.profile else None)
        self.model.to(stage.device)
        micro = self._rows_at_once()
        self.micro_batches = math.ceil(self.options.batch_size / (self.world * micro))
        self.batches_per_epoch = math.ceil(len(rows) / self.options.batch_size)
        self.steps = self.batches_per_epoch * self.options.epochs
        self.single_process = self.world == 1 and self.settings.zero == 0
        self.engine = self._engine(micro)
        self.stop = 0
        self.control_group = dist.new_group(backend="gloo") if self.world > 1 else None

    # The story: restore, step, look, save.

    def run(self) -> State:
        """Train to the end; the model then holds the best weights (or the last, where nothing is evaluated).

        Raises:
            Interrupted: a signal came; the job has saved.
            UserError: the loss is no longer finite, the disk is full, or a checkpoint does not fit.
        """
        self._restore()
        if self.settings.monitor and self.rank == 0:
            self.log.monitor = Monitor(self.stage, self.log.path)
        state, options = self.state, self.options
        self._listen()
        began, saved, before = time.monotonic(), time.monotonic(), state.seconds
        saved_step = None
        bar = tqdm(
            total=self.steps, initial=state.step, desc=self.stage.name, unit="step", dynamic_ncols=True,
            disable=not (self.rank == 0 and sys.stderr.isatty()),
        )  # fmt: skip
        epoch, batches, tokens, first = None, [], 0, state.step
        while state.step < self.steps and not self._patience_is_out():
            if epoch != (epoch := state.step // self.batches_per_epoch) or not batches:
                batches = epoch_batches(self.rows.lengths, options.batch_size, self.stage.seed, epoch)
            global_rows = batches[state.step % self.batches_per_epoch]
            rate = self._step(global_rows)
            state.step += 1
            state.seconds = before + time.monotonic() - began
            tokens += int(self.rows.lengths[global_rows].sum())
            bar.update()
            if state.step % self.settings.log_every == 0 or state.step == self.steps:
                speed = tokens / (time.monotonic() - began)
                bar.set_postfix(self._line(epoch, rate, speed) | {"tokens/s": f"{speed:,.0f}"})
            self._say_what_is_left(state.step - first, tokens, began)
            due = time.monotonic() - saved >= self.settings.checkpoint_seconds
            if self.evaluate and self._evaluation_is_due():
                due = self._evaluate(epoch) or due
            due, stop = self._sync_decision(due, self.stop)
            if due or stop:
                with self.clock("checkpoints"):
                    self._save()
                saved, saved_step = time.monotonic(), state.step
            if stop:
                bar.close()
                self.log.close()
                raise Interrupted(128 + stop, state.step)
        bar.close()
        self.log.close()
        if self.settings.profile or self.stage.device.type == "cpu":
            self.stage.log(str(self.clock))
        if saved_step != state.step:
            self._save()  # so that a job killed while its artefact is written ends at once
        if self.evaluate and state.best_step is not None:
            self._load_best()
        return state

    def _step(self, global_rows: np.ndarray) -> float:
        """One optimiser step on a global batch. Returns the learning rate."""
        rows = self.rows
        total = normalizers(rows.lengths[global_rows], rows.targets[global_rows], rows.labelled[global_rows])
        parts = shard_batch(global_rows, self.world, self.rank, self.micro_batches)
        rate = self._learning_rate()
        whole, seen = torch.zeros((), device=self.stage.device), []  # this rank's loss and terms
        self.engine.train()
        if self.set_progress:
            self.set_progress(self.state.step / self.steps)
        for i, (indices, weights) in enumerate(parts):
            seed_everything(self.stage.seed, self.state.step, i, self.rank)
            try:
                terms, loss = self._pass(indices, weights, total)
            except (RuntimeError, MemoryError) as error:
                if memory.ran_out(error):
                    raise self._too_much(indices) from error
                raise
            whole += loss
            seen.append(terms)
            with self.clock("optimiser"):
                if (
                    i == len(parts) - 1
                    and self.settings.skip_bad_batches
                    and self._is_bad(whole, global_rows)
                ):
                    for parameter in self.model.parameters():  # a step of nothing: gradient and rate are 0
                        parameter.grad = torch.zeros_like(parameter)
                    rate, seen = 0.0, []
                for group in self.engine.optimizer.param_groups:
                    group["lr"] = rate
                if self.single_process:  # as the reduction does: a parameter without gradient still decays
                    for parameter in self.model.parameters():
                        if parameter.grad is None:
                            parameter.grad = torch.zeros_like(parameter)
                self.engine.step()
        if seen:
            self.log.add(self.state.step + 1, global_rows, whole, seen, total)
        return rate

    def _pass(
        self, indices: np.ndarray, weights: np.ndarray, total: dict[str, int]
    ) -> tuple[dict[str, LossTerm], Tensor]:
        """Forward and backward of a micro-batch. Returns its terms, and its share of the global loss."""
        with self.clock("data"):
            batch = self._batch(indices, weights)
        with self.clock("teacher"):
            targets = self.targets(batch) if self.targets else None
        with self.clock("student"):
            terms = self.engine(batch, targets)
            loss = sum(term.weight * term.sum / total[term.normalizer] for term in terms.values())
        with self.clock("backward"):
            # DeepSpeed averages gradients over ranks; ours are shares of one global mean.
            self.engine.backward(loss * self.world, scale_wrt_gas=False)
        return terms, loss.detach()

    def _batch(self, indices: np.ndarray, weights: np.ndarray) -> Batch:
        batch = collate(self.rows, indices, weights).to(self.stage.device)
        return self.batch_transform(batch) if self.batch_transform else batch

    def _is_bad(self, loss: Tensor, global_rows: np.ndarray) -> bool:
        """Whether a batch's loss is not finite, on any rank. Says so, and stops where that does not end."""
        (bad,) = self._all_reduce_max(int(not torch.isfinite(loss)))
        self.state.skipped = self.state.skipped + 1 if bad else 0
        if self.state.skipped > MAX_CONSECUTIVE_SKIPS:
            raise UserError(
                f"the loss of {MAX_CONSECUTIVE_SKIPS} batches in a row is not finite: the model itself is broken since step "
                f"{self.state.step - MAX_CONSECUTIVE_SKIPS}; lower the stage's learning_rate with restart=true"
            )
        if bad:
            step = self.state.step + 1
            self.stage.log(f"step {step} left out, its loss is not finite: {named(global_rows)}")
        return bool(bad)

    def _learning_rate(self) -> float:
        """The rate of the step that is about to be taken: linear warm-up, then linear decay or constant."""
        options, done = self.options, self.state.step + 1
        warm = options.warmup * self.steps
        if done < warm:
            return options.learning_rate * done / warm
        if options.schedule == "constant":
            return options.learning_rate
        return options.learning_rate * (self.steps - done + 1) / (self.steps - warm + 1)

    # Memory.

    def _rows_at_once(self) -> int:
        """Rows of a micro-batch. What `auto` finds is kept with the stage, so that a resumed one takes as many."""
        most = math.ceil(self.options.batch_size / self.world)
        if self.settings.micro_batch != "auto":
            return int(self.settings.micro_batch) or most
        path = self.stage.directory / f"micro_batch-{self.world}-ranks.json"
        found = [store.read_json(path).get("rows") if self.rank == 0 else None]
        dist.broadcast_object_list(found)
        if found[0]:
            return found[0]
        heaviest = np.argsort(self.rows.lengths, kind="stable")[-most:]
        on_this_host = self.world if self.stage.device.type == "cpu" else 1
        with memory.errors_when_full(on_this_host):
            rows = torch.tensor(memory.rows_that_fit(most, lambda rows: self._try(heaviest[-rows:])))
        rows = rows.to(self.stage.device)
        dist.all_reduce(rows, dist.ReduceOp.MIN)
        if self.rank == 0:
            store.write_json(path, {"rows": rows.item()})
        self.stage.log(f"micro_batch=auto: {rows.item()} rows at once, of {most}")
        return rows.item()

    def _try(self, indices: np.ndarray) -> None:
        """Forward and backward of rows with weight 0, which teach nothing, beside what the optimiser will hold."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        moments = torch.ones(2, size, device=self.stage.device)
        self.model.train()
        try:
            batch = self._batch(indices, np.zeros(len(indices), np.float32))
            low = self.stage.precision != torch.float32
            with torch.autocast(self.stage.device.type, self.stage.precision, enabled=low):
                terms = self.model(batch, self.targets(batch) if self.targets else None)
            sum(term.sum for term in terms.values()).backward()
        finally:
            self.model.zero_grad(set_to_none=True)
            del moments

    def _too_much(self, indices: np.ndarray) -> UserError:
        """Memory ran out in a micro-batch."""
        longest = int(self.rows.lengths[indices].max())
        return UserError(
            f"out of memory at step {self.state.step + 1}, in {len(indices)} rows of up to {longest} tokens "
            f"({named(indices)}): give job.micro_batch a number below {len(indices)}, or job.micro_batch=auto, which "
            "finds one that fits and keeps the global batch; or lower the stage's max_length. Nothing saved is lost"
        )

    # Evaluation and the best weights.

    def _evaluation_is_due(self) -> bool:
        every = self.options.evaluate_every or self.batches_per_epoch
        return self.state.step % every == 0 or self.state.step == self.steps

    def _patience_is_out(self) -> bool:
        return 0 < self.options.patience <= self.state.evaluations_without_gain

    def _evaluate(self, epoch: int) -> bool:
        """Score the student on dev; keep it if it is the best. Returns whether it was."""
        self.engine.eval()
        with self.clock("evaluation"):
            shared = [float(self.evaluate())]
        dist.broadcast_object_list(shared)  # ranks on unlike hosts may differ in the last digit
        score = shared[0]
        state = self.state
        better = not math.isnan(score) and (state.best_score is None or score > state.best_score)
        state.evaluations_without_gain = 0 if better else state.evaluations_without_gain + 1
        if better:
            state.best_score, state.best_step = score, state.step
            weights = self.student_weights()
            if self.rank == 0:
                with store.sealed(self.bests / store.step_name(state.step)) as directory:
                    save_file(weights, directory / "student.safetensors")
                store.keep_newest(self.bests, self.settings.keep + 1)
        self.log.write({"step": state.step, "epoch": epoch, "dev": score, "best": better})
        return better

    def _load_best(self) -> None:
        directory = self.bests / store.step_name(self.state.best_step)
        try:
            store.verify(directory)
        except store.Damaged as damage:
            raise UserError(
                f"the best weights are damaged ({damage}): restart=true begins the stage anew"
            ) from damage
        weights = load_file(directory / "student.safetensors")
        student = self.model.student
        with deepspeed.zero.GatheredParameters(list(student.parameters()), modifier_rank=0):
            student.load_state_dict(weights, strict=False)  # tied weights are stored once

    def student_weights(self) -> dict[str, Tensor]:
        """The student's weights on the CPU, whole, tied ones once. Called on every rank."""
        student, seen = self.model.student, set()
        with deepspeed.zero.GatheredParameters(list(student.parameters())):
            weights = {}
            for name, tensor in student.state_dict().items():
                if tensor.data_ptr() not in seen:
                    seen.add(tensor.data_ptr())
                    weights[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return weights

    # Checkpoints.

    def _restore(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        found = [store.newest(self.checkpoints, self.stage.log) if self.rank == 0 else None]
        dist.broadcast_object_list(found)
        path = found[0]
        if self.rank == 0:  # what is newer is damaged, or was best in a future that is run again
            for newer in (*self.checkpoints.glob("step-*"), *self.bests.glob("step-*")):
                if path is None or newer.name > path.name:
                    store.remove(newer)
        if path is None:
            if self.rank == 0:
                self.log.path.unlink(missing_ok=True)
                # One checkpoint and one best more than are kept stand while the next is written.
                kept = min(self.settings.keep, self.steps) + 1
                size = kept * self._checkpoint_bytes() + (self._bytes(kept + 1) if self.evaluate else 0)
                store.need_space(self.stage.directory, size, f"{self.stage.name} keeps checkpoints; it")
            return
        saved = json.loads((path / "state.json").read_text())
        try:
            self.state, self.log.sums = State(**saved["state"]), Sums(**saved["log"])
            training_state.load(self.engine, path, saved["optimizer_steps"])
        except (TypeError, KeyError, FileNotFoundError) as error:
            raise UserError(f"{path} is of another version; restart=true begins the stage anew") from error
        if self.engine.torch_autocast_z0_gradscaler is not None and saved["gradient_scale"]:
            self.engine.torch_autocast_z0_gradscaler.load_state_dict(saved["gradient_scale"])
        if self.collector:
            self.collector.load(path)
        self.log.forget_after(self.state.step)
        self.stage.log(f"resumed at step {self.state.step} of {self.steps}")

    def _save(self) -> None:
        """Write a checkpoint staging, seal it, and remove the oldest. Called on every rank."""
        self.log.gather()
        target = self.checkpoints / store.step_name(self.state.step)
        staging = target.with_name(f".writing-{target.name}")
        if self.rank == 0:
            self.checkpoints.mkdir(exist_ok=True)  # not the stage's: a disk that is gone must not be missed
            what = f"the checkpoint of step {self.state.step}"
            store.need_space(self.checkpoints, self._checkpoint_bytes(), what)
            store.fresh_staging(target)
        dist.barrier()
        try:
            training_state.save(self.engine, staging)
            if self.collector:
                self.collector.save(staging)
            dist.barrier()
            if self.rank == 0:
                scaler = self.engine.torch_autocast_z0_gradscaler
                store.write_json(staging / "state.json", {
                    "state": asdict(self.state), "log": asdict(self.log.sums),
                    "optimizer_steps": training_state.steps(self.engine),
                    "gradient_scale": scaler.state_dict() if scaler else None,
                })  # fmt: skip
                store.seal(staging, target)
                store.keep_newest(self.checkpoints, self.settings.keep)
        except Exception as error:  # safetensors, too, wraps what the system says of a full disk
            raise store.disk_error(error, target) from error
        dist.barrier()

    def _checkpoint_bytes(self) -> int:
        return self._bytes(CHECKPOINT) + (self.collector.bytes if self.collector else 0)

    def _bytes(self, numbers: int) -> int:
        """Of so many fp32 numbers for each parameter."""
        return 4 * numbers * sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())

    # Signals, metrics and what is said.

    def _listen(self) -> None:
        def note(number: int, frame: object) -> None:
            if self.stop:
                os._exit(128 + number)  # asked twice: at once, from the last checkpoint
            self.stop = number

        signal.signal(signal.SIGINT, note)
        signal.signal(signal.SIGTERM, note)

    def _sync_decision(self, due: bool, stop: int) -> tuple[bool, int]:
        """All ranks save, or stop, at the same step: when rank 0's clock says so, or any was signalled."""
        due, stop = self._all_reduce_max(int(due and self.rank == 0), stop)
        return bool(due), stop

    def _all_reduce_max(self, *values: int) -> list[int]:
        """Of each value the highest that any rank has."""
        if self.control_group is None:
            return list(values)
        of_all = torch.tensor(values)
        dist.all_reduce(of_all, dist.ReduceOp.MAX, group=self.control_group)
        return of_all.tolist()

    def _line(self, epoch: int, rate: float, speed: float) -> dict[str, str]:
        """Write the line of the last `log_every` steps; returns the losses for the progress bar."""
        losses = self.log.means()
        line = {"step": self.state.step, "epoch": epoch, **losses, "learning_rate": rate}
        self.log.write(line | {"tokens_per_second": round(speed), "seconds": round(self.state.seconds, 1)})
        return {name: f"{value:.3f}" for name, value in losses.items()}

    def _say_what_is_left(self, done: int, tokens: int, began: float) -> None:
        """Once, after the first steps: what the rest will take at the speed just measured."""
        if self._said_what_is_left or done < 5 or time.monotonic() - began < 3:
            return
        self._said_what_is_left = True
        left = self.steps - self.state.step
        minutes = (time.monotonic() - began) / done * left / 60
        limit = "at most " if self.options.patience else ""
        self.stage.log(
            f"{left} steps left, {limit}{minutes:.1f} minutes at {tokens / (time.monotonic() - began):,.0f} tokens/s"
        )

    def _engine(self, micro: int) -> deepspeed.DeepSpeedEngine:
        self._said_what_is_left = False
        options = self.options
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": options.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        config = {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": self.micro_batches,
            "gradient_clipping": options.clip,
            "zero_optimization": {"stage": self.settings.zero},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": sys.maxsize,
        }
        if self.stage.precision != torch.float32:
            name = str(self.stage.precision).removeprefix("torch.")
            # No module may be reduced over ranks in low precision: one rank and two must agree.
            config["torch_autocast"] = {"enabled": True, "dtype": name, "lower_precision_safe_modules": []}
        optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
        engine = deepspeed.initialize(model=self.model, optimizer=optimizer, config=config)[0]
        if self.single_process:
            engine.enable_backward_allreduce = False  # it would copy every gradient, for nothing
        return engine


def seed_everything(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Random numbers of a pass are a function of (seed, step, micro-batch, rank)."""
    entropy = np.random.SeedSequence((seed, step, micro_batch, rank)).generate_state(2, np.uint32)
    torch.manual_seed(int(entropy[0]) << 32 | int(entropy[1]))
