"""How far a job is: the progress bar, a line of metrics every few steps, and once how long the rest will take."""

import sys
import time

from tqdm import tqdm

from stages.training.job_checkpoint import State
from stages.training.log import Log
from stages.training.stage import Stage, is_first_rank


class Progress:
    """Shows and logs the steps of a job; keeps `state.seconds`.

    Args:
        stage: whose bar and lines they are.
        state: of the job, as it starts or resumes.
        steps: of the whole training.
        log: where the lines of metrics go.
    """

    def __init__(self, stage: Stage, state: State, steps: int, log: Log):
        self.stage, self.state, self.steps, self.log = stage, state, steps, log
        self.began, self.first_step, self.seconds_before = time.monotonic(), state.step, state.seconds
        self.tokens = 0
        self.estimated = False
        self.bar = tqdm(
            total=steps, initial=state.step, desc=stage.name, unit="step", dynamic_ncols=True,
            disable=not (is_first_rank() and sys.stderr.isatty()),
        )  # fmt: skip

    def advance(self, tokens: int) -> None:
        """Count the step that was just taken, on so many tokens."""
        self.tokens += tokens
        self.state.seconds = self.seconds_before + self._elapsed
        self.bar.update()
        self._log_time_left_once()

    def write_line(self, epoch: int, learning_rate: float) -> None:
        """Log the mean losses since the last line. Called on every rank."""
        speed = self.tokens / self._elapsed
        losses = self.log.means()
        line = {"step": self.state.step, "epoch": epoch, **losses, "learning_rate": learning_rate}
        self.log.write(line | {"tokens_per_second": round(speed), "seconds": round(self.state.seconds, 1)})
        shown = {name: f"{value:.3f}" for name, value in losses.items()}
        self.bar.set_postfix(shown | {"tokens/s": f"{speed:,.0f}"})

    def close(self) -> None:
        """End the bar and the log."""
        self.bar.close()
        self.log.close()

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self.began

    def _log_time_left_once(self) -> None:
        """After the first steps: how long the rest will take at the speed measured so far."""
        done, elapsed = self.state.step - self.first_step, self._elapsed
        if self.estimated or done < 5 or elapsed < 3:
            return
        self.estimated = True
        left = self.steps - self.state.step
        limit = "at most " if self.stage.training.patience else ""
        minutes = elapsed / done * left / 60
        self.stage.log(
            f"{left} steps left, {limit}{minutes:.1f} minutes at {self.tokens / elapsed:,.0f} tokens/s"
        )
