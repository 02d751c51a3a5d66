"""What a job says while it runs: lines of metrics.jsonl, a loss that has gone bad, where the time went."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
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

EXPLODED, EXPLODED_STEPS = 10, 3
"""A loss so many times the first one's, in so many steps in a row, has exploded."""


@dataclass
class Sums:
    """What of the log is in a checkpoint.

    Attributes:
        running: sums of the logged terms since the last line, over `counted` steps.
        first_loss: the first step's, by which an exploded one is known.
        high_steps: steps in a row with an exploded loss.
    """

    running: dict[str, float] = field(default_factory=dict)
    counted: int = 0
    first_loss: float | None = None
    high_steps: int = 0


class Log:
    """The terms of all ranks, gathered when they are looked at: a step waits for no device.

    Args:
        path: of the file.
        skip_divergence_check: the loss is not compared with the first one.
    """

    def __init__(self, path: Path, skip_divergence_check: bool = False):
        self.path, self.sums, self.skip_divergence_check = path, Sums(), skip_divergence_check
        self.monitor: Monitor | None = None
        self._pending: dict[str, Tensor] = {}
        self._recent: list[tuple[int, np.ndarray, Tensor]] = []

    def add(
        self,
        step: int,
        rows: np.ndarray,
        loss: Tensor,
        parts: list[dict[str, LossTerm]],
        total: dict[str, int],
    ) -> None:
        """Note a step: its global rows, this rank's part of its loss, and its terms, one dict a micro-batch."""
        for terms in parts:
            for name, term in terms.items():
                value = (term.sum.detach() / total[term.normalizer]).double()
                self._pending[name] = self._pending[name] + value if name in self._pending else value
        self.sums.counted += 1
        self._recent.append((step, rows, loss))

    def gather(self) -> None:
        """Move the sums of all ranks to where a checkpoint finds them. Called on every rank.

        Raises:
            UserError: a loss is not finite, or has exploded.
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
        """Stop, with the last good checkpoint as it is, where the loss is not finite or has exploded."""
        recent, self._recent = self._recent, []
        losses = torch.stack([loss for *_, loss in recent])
        dist.all_reduce(losses)
        sums = self.sums
        for (step, rows, _), value in zip(recent, losses.tolist(), strict=True):
            if sums.first_loss is None:
                sums.first_loss = value
            high = value > EXPLODED * sums.first_loss and not self.skip_divergence_check
            sums.high_steps = sums.high_steps + 1 if high else 0
            finite = math.isfinite(value)
            if finite and sums.high_steps < EXPLODED_STEPS or dist.get_rank():
                continue  # the other ranks are ended with rank 0
            what = (
                f"and {EXPLODED} times the first one's for {EXPLODED_STEPS} steps" if finite else "not finite"
            )
            raise UserError(
                f"at step {step} the loss is {value:g}, {what}; its batch: {named(rows)}. The checkpoint before "
                "it is kept. Look at these rows; or lower the stage's learning_rate with restart=true; or leave "
                "batches whose loss is not finite out with job.skip_bad_batches=true"
            )

    def means(self) -> dict[str, float]:
        """Of each term since the last time, over all ranks. Called on every rank."""
        self.gather()
        means = {name: value / self.sums.counted for name, value in self.sums.running.items()}
        self.sums.running, self.sums.counted = {}, 0
        return means

    def write(self, line: dict[str, object]) -> None:
        """Add a line to the file, on rank 0."""
        if dist.get_rank() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.monitor:
            self.monitor.write(line)

    def close(self) -> None:
        """Nothing more will be written."""
        if self.monitor:
            self.monitor.close()

    def forget_after(self, step: int) -> None:
        """Remove the lines of steps that are taken again, on rank 0."""
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
    """Where the time goes, by part.

    Args:
        wait: called after each part, where work goes on behind it (a GPU's).
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
        shares = [f"{part} {seconds / whole:.0%}" for part, seconds in parts if seconds >= whole / 200]
        return f"{whole / 60:.1f} minutes: {', '.join(shares)}"


def named(rows: np.ndarray) -> str:
    """A batch by its rows' numbers, counted from 0 in the order of the data."""
    shown = ", ".join(map(str, sorted(rows.tolist())[:64]))
    return f"rows {shown}" + (f" and {len(rows) - 64} more" if len(rows) > 64 else "")
