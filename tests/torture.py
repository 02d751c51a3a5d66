"""Kills a small run at random moments, in every stage, and compares what it ends in with an undisturbed run.

    make torture ARGS="--kills 50"     # about five minutes a stage and number of ranks

Three faults in turn: kill -9 of the command (its workers must die with it), of one rank (the others must end
and the command say so), and of all processes at once. Checkpoints are written at every step, so that many of the
moments fall into a save. At the end the weights of every stage are bitwise those of the undisturbed run, and its
logged lines are the same: no step was lost, or counted twice. Prints a table.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.integration.conftest import Workplace, workers_of
from tests.integration.test_resume import STAGES, metrics

FAULTS = ("the command", "one rank", "all processes")
SPAN = 1.0  # seconds after a stage's worker has begun to train, at most
SURVIVORS_SECONDS = 10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=3, help="kills in every stage [3]")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks [1 2]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments [0]")
    o = parser.parse_args()
    random.seed(o.seed)
    path = Path(tempfile.mkdtemp(prefix="torture-"))
    place = Workplace(path)
    bad = 0
    print(f"{'ranks':<7}{'stage':<19}{'killed':<16}{'times':>6}  {'survivors':>9}  result", flush=True)
    for ranks in o.ranks:
        epochs = [f"{stage}.epochs={4 + 2 * o.kills}" for stage in ("tuning", "general", "intermediate", "prediction", "finetuning")]  # fmt: skip
        same = (f"job.nproc={ranks}", "reuse=false", *epochs)
        status, output = place.run("task-distill", f"run=whole{ranks}", *same)
        assert status == 0, output
        run, counts = path / "runs" / f"killed{ranks}", {stage: Counter() for stage in STAGES}
        survivors = 0
        while True:
            process = place.start("task-distill", f"run={run.name}", *same)
            stage = _wait_for_a_stage(run, process, counts, o.kills)
            if stage is None:
                break
            time.sleep(random.uniform(0, SPAN))
            if process.poll() is None and not (run / stage / "finished.json").exists():
                fault = FAULTS[counts[stage].total() % len(FAULTS)]
                _kill(process, workers_of(run), fault)
                counts[stage][fault] += 1
            survivors += _end(process, run)
        output = process.communicate()[0]
        same_weights = place.weights(run.name) == place.weights(f"whole{ranks}")
        same_lines = metrics(place, run.name) == metrics(place, f"whole{ranks}")
        good = process.returncode == 0 and same_weights and same_lines and not survivors
        bad += not good
        result = (
            "same weights and lines"
            if good
            else f"DIFFERENT ({process.returncode}, {same_weights}, {same_lines})"
        )
        for stage, faults in counts.items():
            for fault, times in faults.items():
                print(f"{ranks:<7}{stage:<19}{fault:<16}{times:>6}  {survivors:>9}  {result}", flush=True)
        if not good:
            print(output)
    shutil.rmtree(path)
    return bad


def _wait_for_a_stage(run: Path, process: subprocess.Popen, counts: dict, kills: int) -> str | None:
    """Wait until a stage that is still to be killed has logged a step; None when the command has ended."""
    while process.poll() is None:
        for stage, faults in counts.items():
            begun = (run / stage / "checkpoints").exists() and not (run / stage / "finished.json").exists()
            if begun and faults.total() < kills and workers_of(run):
                return stage
        time.sleep(0.02)
    return None


def _kill(process: subprocess.Popen, workers: list[int], fault: str) -> None:
    victims = {
        "the command": [process.pid],
        "one rank": workers[-1:],
        "all processes": [process.pid, *workers],
    }[fault]
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def _end(process: subprocess.Popen, run: Path) -> int:
    """Wait for the command to end; returns how many workers outlive it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=60)
    if process.poll() is None:
        process.kill()
        return 1
    deadline = time.monotonic() + SURVIVORS_SECONDS
    while workers_of(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(workers_of(run))


if __name__ == "__main__":
    sys.exit(main())
