"""The same faults under each of what may start the ranks (part of `make torture`). Fills a table of docs/benchmarks/faults.md.

Two ranks train one general stage, with a checkpoint at every step. After each fault the same command resumes; at the
end its weights and logged lines are those of a run left alone. srun is `tests.slurm_stand_in`: it passes signals on, and
does not end the other rank where one fails, as srun without `--kill-on-bad-exit`.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.conftest import EACH_STEP, Workplace, workers_of
from tests.integration.test_given_ranks import LAUNCHERS, ranks_of, started_by

ITSELF = "`NPROC=2`"
NAMES = {"torchrun": "torchrun", "srun": "srun (stand-in)"}
RANK = {"torchrun": "RANK", "srun": "SLURM_PROCID"}
"""Variable by which a rank knows its number."""

FAULTS = {
    "`kill -9` of rank 1": signal.SIGKILL,
    "`kill -9` of rank 0": signal.SIGKILL,
    "`kill -9` of the launcher": signal.SIGKILL,
    "`kill -9` of all, while a checkpoint is sealed": signal.SIGKILL,
    "SIGTERM to the launcher": signal.SIGTERM,
    "SIGTERM to rank 1": signal.SIGTERM,
}
NOT_UNDER = {("srun", "`kill -9` of the launcher")}
"""A stand-in's death says nothing about srun's."""

WITHIN = 60
"""Seconds in which all processes must have ended."""


@dataclass
class Column:
    """What came of the faults under one launcher.

    Attributes:
        cells: by fault.
        wrong: what is not as it should be; empty where all is well.
    """

    name: str
    cells: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def table(columns: list[Column]) -> str:
    """The columns in Markdown, and what is wrong below."""
    heads = ["fault", *(column.name for column in columns)]
    lines = [heads, ["---"] * len(heads)]
    lines += [[fault, *(column.cells.get(fault, "") for column in columns)] for fault in FAULTS]
    ends = ["weights and log at the end", *("WRONG" if column.wrong else "the same" for column in columns)]
    wrong = [f"{column.name}: {text}" for column in columns for text in column.wrong]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in [*lines, ends]), *wrong])


def columns(place: Workplace) -> Iterator[Column]:
    """The faults under each launcher, in turn."""
    same = ("general-distill", "reuse=false", "general.epochs=150")
    status, output = place.run(*same, "run=alone", "job.nproc=2")
    assert status == 0, output
    for launcher in ("", *LAUNCHERS):
        yield _column(place, launcher, same)


def _column(place: Workplace, launcher: str, same: tuple[str, ...]) -> Column:
    given = started_by(place, launcher) if launcher else place
    name = f"under-{launcher or 'itself'}"
    command = (*same, f"run={name}", *(() if launcher else ("job.nproc=2",)))
    column, run = Column(NAMES.get(launcher, ITSELF)), place.path / "runs" / name
    for fault in FAULTS:
        if (launcher, fault) in NOT_UNDER:
            continue
        process = given.start(*command, EACH_STEP)
        _wait_for_steps(run, process)
        seconds = _do(fault, process, run, launcher)
        output = process.communicate(timeout=WITHIN)[0]
        saved = "saved at step" in output
        column.cells[fault] = f"{seconds:.1f}{', saved' * saved}"
        if seconds > WITHIN or process.returncode == 0 or saved != (FAULTS[fault] == signal.SIGTERM):
            column.wrong.append(f"{fault}: ended with {process.returncode} after {seconds:.1f} s: {output}")
    status, output = given.run(*command)
    if status or "resumed at step" not in output:
        column.wrong.append(f"did not resume: {status} {output}")
    elif place.weights(name) != place.weights("alone"):
        column.wrong.append("other weights")
    elif place.metrics(name) != place.metrics("alone"):
        column.wrong.append("steps are missing, or logged twice")
    return column


def _wait_for_steps(run: Path, process: subprocess.Popen) -> None:
    """Wait until a run has gone on, and has sealed a checkpoint since."""
    before = _sealed(run)
    while process.poll() is None and not _sealed(run) - before:
        time.sleep(0.01)
    if process.poll() is not None:
        raise AssertionError(f"ended before its fault: {process.communicate()[0]}")


def _sealed(run: Path) -> set[str]:
    return {path.parent.name for path in (run / "general" / "checkpoints").glob("step-*/manifest.json")}


def _do(fault: str, process: subprocess.Popen, run: Path, launcher: str) -> float:
    """Do it; returns the seconds until all processes of the run had ended."""
    ranks = _ranks(run, launcher)
    if "sealed" in fault:
        while not any((run / "general" / "checkpoints").glob(".writing-*")):
            time.sleep(0.0005)
        victims = {process.pid, *_processes(run, process)}
    else:
        victims = {ranks[1] if "rank 1" in fault else ranks[0] if "rank 0" in fault else process.pid}
    began = time.monotonic()
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, FAULTS[fault])
    while _processes(run, process) and time.monotonic() - began <= WITHIN:
        time.sleep(0.02)
    seconds = time.monotonic() - began
    for survivor in _processes(run, process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(survivor, signal.SIGKILL)
    return seconds


def _ranks(run: Path, launcher: str) -> list[int]:
    """Process ids of the two ranks, in order."""
    if not launcher:
        return workers_of(run)[1:]  # the first is their parent
    numbers = {}
    for process in ranks_of(run.name):
        for number in (0, 1):
            if f"{RANK[launcher]}={number}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(
                b"\0"
            ):
                numbers[number] = process
    return [numbers[0], numbers[1]]


def _processes(run: Path, process: subprocess.Popen) -> set[int]:
    """Process ids of all that still works on a run."""
    running = {process.pid} if process.poll() is None else set()
    return running | {*workers_of(run), *ranks_of(run.name)} - {process.pid}
