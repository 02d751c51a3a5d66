"""Runs the commands as a user does, on a tiny random teacher."""

import copy
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.config.recipe import UNUSED
from tests.conftest import make_corpus, make_encoder, make_task
from tests.forked_commands import ForkedPopen

ROOT = Path(__file__).parents[2]
TINY = [
    "preset=small", "text_columns=text", "label_column=label", "job.precision=fp32", "job.log_every=1",
    "architecture.layers=2", "architecture.width=8", "architecture.feed_forward=16", "architecture.heads=2",
    "finetuning.grid=", "finetuning.patience=0",
    *(f"{stage}.epochs=2" for stage in ("tuning", "general", "intermediate", "prediction", "finetuning")),
    *(f"{stage}.batch_size=8" for stage in ("tuning", "general", "intermediate", "prediction", "finetuning")),
    *(f"{stage}.max_length=32" for stage in ("tuning", "general", "intermediate", "prediction", "finetuning")),
]  # fmt: skip

EACH_STEP = "job.checkpoint_seconds=0"
"""Has a run that is to be stopped save after each step; others are spared it."""


def read_by_recipes(given: list[str]) -> list[str]:
    """Those of some options that a recipe does not refuse."""
    return [option for option in given if option.split("=")[0].split(".")[0] not in UNUSED]


class Workplace:
    """A directory with a tiny teacher, corpus and task, in which commands are run.

    Args:
        path: the directory.
        prefix: words before each command, that run it elsewhere.
        popen: starts the commands: `ForkedPopen` spares them the seconds of imports.
    """

    def __init__(self, path: Path, prefix: Sequence[str] = (), popen: type = subprocess.Popen):
        self.path, self.prefix, self.popen = path, prefix, popen
        make_encoder(path / "teacher")
        make_corpus(path / "corpus.txt", 12)
        make_task(path / "data")
        self.given = ["teacher=teacher", "corpus=corpus.txt", "task=tiny", "data=data", *TINY]

    def start(self, command: str, *arguments: str, tiny: bool = True) -> subprocess.Popen:
        """Start a command in a process group of its own."""
        given = self.given if tiny else []
        if any(argument.startswith("name=") for argument in arguments):
            given = read_by_recipes(given)
        return self.popen(
            [*self.prefix, sys.executable, "-m", "pipeline", command, *given, *arguments],
            cwd=self.path, env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, command: str, *arguments: str, tiny: bool = True, timeout: float = 300) -> tuple[int, str]:
        """Run a command to its end: (exit status, output)."""
        process = self.start(command, *arguments, tiny=tiny)
        output = process.communicate(timeout=timeout)[0]
        return process.returncode, output

    def served(self, run: str, *texts: str) -> dict:
        """What the page of a run is answered for a text, or two."""
        from pipeline.deploy.serve import Predictor
        from pipeline.report.run_record import read_run_record

        predictor = Predictor(read_run_record(self.path / "runs" / run))
        return predictor.answer(json.dumps({"texts": texts}).encode())

    def interrupt(self, when: Callable[[], bool], signal_number: int, command: str, *arguments: str):
        """Start a command that saves after each step, and signal it as soon as `when()` holds: (exit status, output)."""
        process = self.start(command, EACH_STEP, *arguments)
        while process.poll() is None and not when():
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal_number)
        output = process.communicate(timeout=300)[0]
        return process.returncode, output

    def kill_during(self, run: str, stage: str, *arguments: str, command: str = "task-distill") -> str:
        """kill -9 of the command (its workers die with it) once the stage has made a checkpoint.

        A short stage may end before the signal comes: then what was made is removed, and the command starts again.
        """
        directory = self.path / "runs" / run
        before = set(directory.glob("*"))

        def there() -> bool:
            return any((directory / stage / "checkpoints").glob("step-*/manifest.json"))

        for _ in range(5):
            status, output = self.interrupt(there, signal.SIGKILL, command, f"run={run}", *arguments)
            deadline = time.monotonic() + 20
            while workers_of(directory) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not workers_of(directory)
            if not (directory / stage / "finished.json").exists():
                assert status == -signal.SIGKILL, output
                return output
            for path in set(directory.glob("*")) - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise AssertionError(f"{stage} ended five times before it could be killed\n{output}")

    def resumes(
        self, run: str, stages: Sequence[str], *arguments: str, command: str = "task-distill"
    ) -> None:
        """Make stages of a finished run again, each killed once: their weights and metrics must be what they were.

        Args:
            run: name of the run's directory.
            stages: in their order.
            arguments: of the command that made it, without `run`; `reuse=false` among them.
            command: that made it; the name of a recipe's run lacks `-seed1`.
        """
        before = self.weights(run), self.metrics(run)
        for stage in stages:
            shutil.rmtree(self.path / "runs" / run / stage)
        arguments = (*arguments, f"run={run.removesuffix('-seed1')}")
        for stage in stages:
            self.kill_during(run, stage, *arguments, command=command)
        status, output = self.run(command, *arguments)
        assert status == 0 and f"[{stages[-1]}] resumes" in output, output
        assert output.count("resumed at step") == 1, output
        assert (self.weights(run), self.metrics(run)) == before and {*stages} <= before[0].keys()

    def metrics(self, run: str) -> dict[str, list[dict]]:
        """The lines that each stage logged, without what depends on the clock."""
        lines: dict[str, list[dict]] = {}
        for path in sorted((self.path / "runs" / run).glob("*/metrics.jsonl")):
            for line in map(json.loads, path.read_text().splitlines()):
                kept = {
                    name: value
                    for name, value in line.items()
                    if name != "seconds" and not name.endswith("_per_second")
                }
                lines.setdefault(path.parent.name, []).append(kept)
        return lines

    def weights(self, run: str) -> dict[str, str]:
        """sha256 of every stage's weights."""
        found = (self.path / "runs" / run).glob("*/model/model.safetensors")
        return {path.parts[-3]: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def workers_of(run: Path) -> list[int]:
    """Process ids of what lives on stages of a run: the ranks' parent, then the ranks as they were started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().decode().split("\0")
            state = (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
            here = os.readlink(path / "cwd") == str(run.parent.parent)
        except (OSError, IndexError):
            continue
        if here and state != "Z" and any(f"runs/{run.name}/" in part for part in line):
            found.append(int(path.name))
    return sorted(found)


@pytest.fixture(scope="module")
def place(tmp_path_factory, request) -> Workplace:
    """The workplace of a file of tests, each of which uses runs of its own."""
    return Workplace(tmp_path_factory.mktemp(f"{request.path.stem} with späces"), popen=ForkedPopen)


@pytest.fixture
def started_place(place) -> Workplace:
    """The same workplace, whose commands are processes that start up as a user's do."""
    started = copy.copy(place)
    started.popen = subprocess.Popen
    return started
