"""Commands on ranks that another launcher has started: torchrun itself, and a stand-in for srun, whose ranks are forks."""

import contextlib
import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import EACH_STEP, ROOT, Workplace

pytestmark = pytest.mark.slow
LAUNCHERS = {
    "torchrun": ("-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python"),
    "srun": ("-m", "tests.slurm_stand_in", "2"),
}


def started_by(place: Workplace, launcher: str) -> Workplace:
    """The same workplace, whose commands another launcher starts on two ranks."""
    new = copy.copy(place)
    new.prefix = (sys.executable, *LAUNCHERS[launcher])
    if launcher == "torchrun":
        new.popen = subprocess.Popen
    return new


@pytest.fixture(params=LAUNCHERS)
def given(request, place) -> Workplace:
    return started_by(place, request.param)


@pytest.fixture(scope="module")
def whole(place) -> str:
    """A run on two ranks that the command starts itself."""
    status, output = place.run("task-distill", "run=started-itself", "job.nproc=2", "reuse=false")
    assert status == 0, output
    return "started-itself"


def ranks_of(run: str) -> list[int]:
    """Process ids of the command's ranks and of what started them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"run={run}".encode() in (path / "cmdline").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


def test_the_weights_are_those_of_ranks_that_the_command_starts(place, whole):
    """Of torchrun, too: below, from Python."""
    given = started_by(place, "srun")
    status, output = given.run("task-distill", "run=whole-srun", "reuse=false")
    assert status == 0 and output.count("[general] starts") == 1, output
    assert set(given.weights("whole-srun")) == {"teacher", "general", "intermediate", "prediction"}
    assert given.weights("whole-srun") == given.weights(whole)
    assert given.metrics("whole-srun") == given.metrics(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["sigterm", "kill"])
def test_stopped_and_started_again_it_ends_in_the_same_weights(given, whole, number):
    run = f"{number.name}-{given.prefix[2]}"
    stages = (
        ("prediction",) if given.popen is subprocess.Popen else ("teacher", "prediction")
    )  # torchrun imports for long
    for stage in stages:
        process = given.start("task-distill", f"run={run}", "reuse=false", EACH_STEP)
        checkpoints = given.path / "runs" / run / stage / "checkpoints"
        while process.poll() is None and not any(checkpoints.glob("step-*/manifest.json")):
            time.sleep(0.01)
        for rank in [process.pid] if number == signal.SIGTERM else ranks_of(run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, number)
        output = process.communicate(timeout=60)[0]
        assert process.returncode != 0 and not (checkpoints.parent / "finished.json").exists(), output
        assert ("saved at step" in output) == (number == signal.SIGTERM), output
        deadline = time.monotonic() + 20
        while ranks_of(run) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not ranks_of(run)
    status, output = given.run("task-distill", f"run={run}", "reuse=false")
    assert status == 0 and "resumed at step" in output, output
    assert given.weights(run) == given.weights(whole)
    assert given.metrics(run) == given.metrics(whole)


def test_a_rank_that_dies_ends_the_others_which_say_so_once(place):
    given, run = started_by(place, "srun"), "one-dies"
    given.popen = subprocess.Popen  # the variables of a fork are not in its /proc/PID/environ
    process = given.start("general-distill", f"run={run}", "reuse=false", "general.epochs=500")
    while process.poll() is None and not (given.path / "runs" / run / "general" / "metrics.jsonl").exists():
        time.sleep(0.01)
    victim = next(
        rank for rank in ranks_of(run) if b"SLURM_PROCID=1" in Path(f"/proc/{rank}/environ").read_bytes()
    )
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    output = process.communicate(timeout=60)[0]
    assert time.monotonic() - began < 30 and output.count("another rank ended") == 1, output
    assert "run the same command" in output and "Traceback" not in output, output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("general-distill", "general.epochs=-1"), "error: general.epochs=-1 must be greater than 0"),
        (("general-distill", "job.nproc=3"), "error: job.nproc=3: srun has already started 2 ranks"),
        (("general-distill", "architecture.heads=3"), "error: architecture.width=8 must be a multiple of"),
        (("general-distill", "general.layer_map=[1]"), "error: "),
    ],
    ids=lambda given: given[1] if isinstance(given, tuple) else "",
)
def test_a_mistake_is_one_line_and_ends_all_ranks(place, arguments, message):
    given = started_by(place, "srun")
    status, output = given.run(*arguments, "run=mistaken", "restart=true")
    errors = [line for line in output.splitlines() if "rror" in line or line.startswith(" ")]
    assert status == 2 and len([e for e in errors if e.startswith("error:")]) == 1, output
    assert message in output and "Traceback" not in output, output


def test_a_command_that_runs_no_stage_is_rank_0s_alone(place):
    given = started_by(place, "srun")
    status, output = given.run("recipes", tiny=False)
    assert status == 0 and output.count("best-practice ") == 1, output


def test_from_python_every_rank_has_the_result(place, whole, tmp_path):
    given = started_by(place, "torchrun")
    options = dict(line.split("=", 1) for line in given.given)
    task, data = options.pop("task"), options.pop("data")
    options |= {"reuse": "false"}
    script = tmp_path / "script.py"
    script.write_text(
        f"from pipeline import distill\nresult = distill({task!r}, data={data!r}, run='python', options={options!r})\n"
        "print(f'the result is {sorted(result.metrics)}\\n', end='')\n"  # in one piece: two ranks write to one pipe
    )
    done = subprocess.run(
        [*given.prefix, sys.executable, script], cwd=given.path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the result is ['distilled', 'teacher']") == 2, done.stdout
    assert done.stdout.count("[general] starts") == 1, done.stdout
    made = given.weights("python")
    assert set(made) == {"teacher", "general", "intermediate", "prediction"}
    assert made.items() <= given.weights(whole).items()
