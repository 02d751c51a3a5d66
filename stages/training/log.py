"""The log of a job: lines of metrics.jsonl, the check that the loss is sound, and where the time went."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from checkpoints.errors import UserError
from stages.distillation.losses.base import LossTerm
from stages.training.monitor import Monitor

DIVERGED_FACTOR, DIVERGED_STEPS, SMALL_LOSS = 10, 3, 0.1
"""Divergence: a loss above 10 times the first loss for 3 consecutive steps. A first loss below 0.1 counts as 0.1: where a
student is nearly right already, a few hard batches have many times the loss of an easy one."""


@dataclass
class Sums:
    """The part of the log that is in a checkpoint.

    Attributes:
        running: sum of each loss term since the last line, over `counted` steps.
        counted: steps since the last line.
        first_loss: the loss of the first step, with which later ones are compared.
        high_steps: consecutive steps whose loss is above the limit of divergence.
    """

    running: dict[str, float] = field(default_factory=dict)
    counted: int = 0
    first_loss: float | None = None
    high_steps: int = 0


class Log:
    """Logs loss terms, which stay on the device and are reduced only when logged: no step syncs.

    Args:
        sums: of the losses since the last line; the job saves them.
        skip_divergence_check: true if the loss may grow, as under a schedule.
    """

    def __init__(self, path: Path, sums: Sums, skip_divergence_check: bool = False):
        self.path, self.sums, self.skip_divergence_check = path, sums, skip_divergence_check
        self.monitor: Monitor | None = None
        self._pending: dict[str, Tensor] = {}
        self._recent: list[tuple[int, np.ndarray, Tensor]] = []

    def add(
        self,
        step: int,
        rows: np.ndarray,
        loss: Tensor,
        parts: list[dict[str, LossTerm]],
        total: dict[str, float],
    ) -> None:
        """Add a step.

        Args:
            step: its number, from 1.
            rows: the rows of its global batch.
            loss: this rank's part of the loss.
            parts: this rank's terms, a dict for each micro-batch.
            total: what each term is divided by.
        """
        for terms in parts:
            for name, term in terms.items():
                value = (term.sum.detach() / total[term.normalizer]).double()
                self._pending[name] = self._pending[name] + value if name in self._pending else value
        self.sums.counted += 1
        self._recent.append((step, rows, loss))

    def gather(self) -> None:
        """Reduce the terms over ranks into `sums`. Called on every rank.

        Raises:
            UserError: a loss is not finite, or the training diverges.
        """
        if not self._pending:
            return
        values = torch.stack([self._pending[name] for name in sorted(self._pending)])
        dist.all_reduce(values)
        for name, value in zip(sorted(self._pending), values.tolist(), strict=True):
            self.sums.running[name] = self.sums.running.get(name, 0.0) + value
        self._pending = {}
        self._refuse_bad_losses()

    def _refuse_bad_losses(self) -> None:
        """Raise where a loss since the last time is not finite, or the training diverges."""
        recent, self._recent = self._recent, []
        losses = torch.stack([loss for *_, loss in recent])
        dist.all_reduce(losses)
        sums = self.sums
        for (step, rows, _), value in zip(recent, losses.tolist(), strict=True):
            if sums.first_loss is None:
                sums.first_loss = value
            limit = DIVERGED_FACTOR * max(sums.first_loss, SMALL_LOSS)
            high = value > limit and not self.skip_divergence_check
            sums.high_steps = sums.high_steps + 1 if high else 0
            finite = math.isfinite(value)
            if finite and sums.high_steps < DIVERGED_STEPS or dist.get_rank():
                continue  # the other ranks are ended with rank 0
            diverged = f"more than {DIVERGED_FACTOR} times the first one's for {DIVERGED_STEPS} steps"
            what = diverged if finite else "not finite"
            raise UserError(
                f"the loss at step {step} is {value:g}, {what}; look at its batch ({name_rows(rows)}), lower "
                "learning_rate, or leave out batches of a loss that is not finite with skip_bad_batches; the last "
                "checkpoint is intact"
            )

    def means(self) -> dict[str, float]:
        """The mean of each term since the last call, over all ranks. Called on every rank."""
        self.gather()
        means = {name: value / self.sums.counted for name, value in self.sums.running.items()}
        self.sums.running, self.sums.counted = {}, 0
        return means

    def write(self, line: Mapping[str, object]) -> None:
        """Add a line to the file, on rank 0."""
        if dist.get_rank() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.monitor:
            self.monitor.write(line)

    def close(self) -> None:
        """End the curves; nothing is written after."""
        if self.monitor:
            self.monitor.close()

    def forget_after(self, step: int) -> None:
        """Remove the lines of later steps, which are taken again, on rank 0."""
        if dist.get_rank():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                pass  # the last line of a killed process, torn
        self.path.write_text("".join(kept), encoding="utf-8")


class Clock:
    """Measures the parts of a step.

    Args:
        wait: called after each part, so that work that a GPU still does is counted to it.
    """

    def __init__(self, wait: Callable[[], None] | None = None):
        self.seconds: dict[str, float] = defaultdict(float)
        self.wait, self.began = wait, time.monotonic()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        if self.wait:
            self.wait()
        self.seconds[part] += time.monotonic() - began

    def __str__(self) -> str:
        whole = time.monotonic() - self.began
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        fractions = [f"{part} {seconds / whole:.0%}" for part, seconds in parts if seconds >= whole / 200]
        return f"took {whole / 60:.1f} minutes: {', '.join(fractions)}"


def name_rows(rows: np.ndarray) -> str:
    """A batch by its rows' numbers, counted from 0 in the order of the data; at most 64 of them."""
    shown = ", ".join(map(str, sorted(rows.tolist())[:64]))
    return f"rows {shown}" + (f" and {len(rows) - 64} more" if len(rows) > 64 else "")
