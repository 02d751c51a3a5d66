"""The same faults under each of what may start the ranks (part of `make torture`). Fills a table of docs/benchmarks/faults.md.

Two ranks train one general stage, with a checkpoint at every step. After each fault the same command resumes; at the
end its weights and logged lines are those of a run left alone. srun is `tests.slurm_stand_in`: it passes signals on, and
does not end the other rank where one fails, as srun without `--kill-on-bad-exit`. mpirun is Open MPI's, where it is
installed.
"""

import contextlib
import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.conftest import EACH_STEP, Workplace, workers_of
from tests.integration.test_given_ranks import LAUNCHERS, ranks_of

ITSELF = "`NPROC=2`"
PREFIXES = {name: (sys.executable, *words) for name, words in LAUNCHERS.items()} | {
    "deepspeed": (
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus=2",
        "--no_python",
        "--no_local_rank",
    ),
    "mpirun": ("mpirun", "-n", "2", "--bind-to", "none", "--allow-run-as-root"),
}
"""Words before a command, which start it on two ranks."""
RANK = {"srun": "SLURM_PROCID", "mpirun": "OMPI_COMM_WORLD_RANK"}
"""Variable by which a rank knows its number, where it is not RANK."""

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

SAVES = {("mpirun", "SIGTERM to the launcher"): None, ("deepspeed", "`kill -9` of the launcher"): True}
"""Whether the ranks save, where the signal alone does not tell; None: they may. Open MPI 5's mpirun kills them right after a
SIGTERM, 4.1's lets them save; under DeepSpeed's launcher they notice its death themselves."""

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


def columns(place: Workplace, launchers: Sequence[str] = ()) -> Iterator[Column]:
    """The faults under each launcher, in turn.

    Args:
        launchers: these alone; none: the command itself and all that are installed.
    """
    same = ("general-distill", "reuse=false", "general.epochs=150")
    status, output = place.run(*same, "run=alone", "job.nproc=2", timeout=3600)
    assert status == 0, output
    for launcher in launchers or ("", *PREFIXES):
        if launcher != "mpirun" or shutil.which("mpirun"):
            yield _column(place, launcher, same)


def _column(place: Workplace, launcher: str, same: tuple[str, ...]) -> Column:
    given = copy.copy(place)
    given.prefix = PREFIXES.get(launcher, ())
    name = f"under-{launcher or 'itself'}"
    command = (*same, f"run={name}", *(() if launcher else ("job.nproc=2",)))
    title = "srun (stand-in)" if launcher == "srun" else launcher or ITSELF
    column, run = Column(title), place.path / "runs" / name
    for fault in FAULTS:
        if (launcher, fault) in NOT_UNDER:
            continue
        process = given.start(*command, EACH_STEP)
        _wait_for_steps(run, process)
        seconds = _do(fault, process, run, launcher)
        output = process.communicate(timeout=WITHIN)[0]
        saved = "saved at step" in output
        told = ", saved" if saved else ", not saved" if FAULTS[fault] == signal.SIGTERM else ""
        column.cells[fault] = f"{seconds:.1f}{told}"
        saves = SAVES.get((launcher, fault), FAULTS[fault] == signal.SIGTERM)
        if seconds > WITHIN or process.returncode == 0 or saves not in (None, saved):
            column.wrong.append(f"{fault}: ended with {process.returncode} after {seconds:.1f} s: {output}")
    status, output = given.run(*command, timeout=3600)
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
    numbers, variable = {}, RANK.get(launcher, "RANK")
    for process in ranks_of(run.name):
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        for number in (0, 1):
            if f"{variable}={number}".encode() in environment:
                numbers[number] = process
    return [numbers[0], numbers[1]]


def _processes(run: Path, process: subprocess.Popen) -> set[int]:
    """Process ids of all that still works on a run."""
    running = {process.pid} if process.poll() is None else set()
    return running | {*workers_of(run), *ranks_of(run.name)} - {process.pid}
