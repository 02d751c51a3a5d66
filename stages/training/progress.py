"""How far a stage is: a bar on a terminal; elsewhere a line soon after the start, and then one a minute."""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from stages.training.stage import Stage, is_first_rank

if TYPE_CHECKING:  # with them comes DeepSpeed, which `predict` and `export` do without
    from stages.training.job_checkpoint import State
    from stages.training.log import Log

FIRST_LINE, NEXT_LINE = 5, 60
"""Seconds until the first line, and from one line to the next, where no terminal shows a bar."""

STEADY = 3
"""Units after which a speed is told; the first takes longer."""


class Progress:
    """Shows, on rank 0, how much of a stage's work is done.

    Args:
        total: number of the units; None: not known.
        unit: what is counted, such as "step".
        done: units that an earlier start has done.
        what: the work, where it is not the whole stage.
        clock: gives seconds.
    """

    def __init__(
        self, stage: Stage, total: int | None, unit: str, done: int = 0, what: str = "", clock=time.monotonic
    ):
        self.stage, self.total, self.unit, self.done, self.first = stage, total, unit, done, done
        self.what, self.clock = f"{what}: " if what else "", clock
        self.began = clock()
        on_terminal = sys.stderr.isatty()
        self.line_due = float("inf") if on_terminal else self.began + FIRST_LINE
        self.bar = tqdm(
            total=total, initial=done, desc=what or stage.name, unit=unit, unit_scale=total is None, dynamic_ncols=True,
            disable=not (is_first_rank() and on_terminal),
        )  # fmt: skip

    @property
    def elapsed(self) -> float:
        """Seconds since this start."""
        return self.clock() - self.began

    def advance(self, count: int = 1, told: Sequence[str] = ()) -> None:
        """Count what was just done; `told` is said beside it."""
        self.done += count
        self.bar.update(count)
        if told:
            self.bar.set_postfix_str(", ".join(told), refresh=False)
        if self.clock() >= self.line_due:
            self.line_due = self.clock() + NEXT_LINE
            self.stage.log(self.what + ", ".join([self._so_far(), *told]))

    def close(self) -> None:
        """End the bar."""
        self.bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _so_far(self) -> str:
        if self.total is None:
            return f"{self.done:,} {self.unit}s, {(self.done - self.first) / self.elapsed:,.0f} a second"
        here = f"{self.unit} {self.done:,} of {self.total:,}"
        seconds = self.elapsed / (self.done - self.first) * (self.total - self.done)
        steady = self.done - self.first >= STEADY or self.done == self.total
        return f"{here}, {seconds / 60:.1f} minutes left" if steady else here


class JobProgress:
    """Shows and logs the steps of a job; keeps `state.seconds`.

    Args:
        state: the job's, as it starts or resumes.
        log: where the lines of metrics go.
        unit: in which the rows' costs are counted.
    """

    def __init__(self, stage: Stage, state: "State", steps: int, log: "Log", unit: str):
        self.state, self.log, self.unit, self.seconds_before = state, log, unit, state.seconds
        self.progress = Progress(stage, steps, "step", done=state.step)
        self.units = 0
        self.losses: list[str] = []

    def advance(self, units: int) -> None:
        """Count a step. `units` is the cost of its rows: tokens, images, pairs or graphs."""
        self.units += units
        self.state.seconds = self.seconds_before + self.progress.elapsed
        self.progress.advance(told=[*self.losses, f"{self._speed:,.0f} {self.unit}s/s"])

    def write_line(self, epoch: int, learning_rate: float) -> None:
        """Log the mean losses since the last line. Called on every rank."""
        losses = self.log.means()
        line = {"step": self.state.step, "epoch": epoch, **losses, "learning_rate": learning_rate}
        self.log.write(
            line | {f"{self.unit}s_per_second": round(self._speed), "seconds": round(self.state.seconds, 1)}
        )
        self.losses = [f"{name} {value:.3f}" for name, value in losses.items()]

    def close(self) -> None:
        """End the bar and the log."""
        self.progress.close()
        self.log.close()

    @property
    def _speed(self) -> float:
        return self.units / self.progress.elapsed
