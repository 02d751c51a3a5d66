"""Faults, tried on a small run through the real commands. Prints tables; docs/benchmarks/faults.md sums them up.

    make torture ARGS="--kills 50"                       # 50 kills in every stage, with 1 and 2 ranks: two hours
    make torture ARGS="--kills 9 --stages augment"       # kills in some stages alone
    make torture ARGS="--only launchers"                 # the faults under each launcher alone
    make torture ARGS="--only launchers --launchers srun"       # under one launcher

Kills: at random moments, in every stage, the faults of `KILLS` in turn. Checkpoints are written at every step, so
that many of the moments fall into a save. At the end the artefacts of all stages are bitwise those of an undisturbed
run and the logged lines are the same: no step was lost, or counted twice. Then files are damaged, a disk is
filled, the link between two hosts is cut, and ranks are ended under each of what may start them.
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from tests.integration.conftest import EACH_STEP, Workplace, workers_of
from tests.torture import by_launcher, two_hosts
from tests.torture.outcome import HEAD, Outcome

KILLS = {
    "`kill -9` of the command": signal.SIGKILL,
    "`kill -9` of one rank": signal.SIGKILL,
    "`kill -9` of the process that starts the ranks": signal.SIGKILL,
    "`kill -9` of all processes at once": signal.SIGKILL,
    "Ctrl-C: SIGINT to the command, which saves before it ends": signal.SIGINT,
    "SIGTERM to the command, which saves before it ends": signal.SIGTERM,
}
TRAINING = ("masked_lm", "teacher", "general", "intermediate", "prediction", "finetuned", "finetuned_general")
SECONDS = {"augment": 6.0} | dict.fromkeys(TRAINING, 0.5)
"""A stage is killed at most so long after it has begun: a training one to save, the other to start."""

PARTS = ("kills", "damages", "disk", "hosts", "launchers")
EPOCHS = ("tuning", "general", "masked_lm", "intermediate", "prediction", "finetuning")
AUGMENTED = (
    "augment=true",
    "augmentation.vectors=none",
    "augmentation.variants=2",
    "masked_lm.batch_size=8",
    "masked_lm.max_length=32",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5, help="kills in every stage [5]")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=SECONDS,
        default=[],
        help="kills in these alone [all, and the other faults]",
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="these parts alone [kills and all others]"
    )
    parser.add_argument(
        "--launchers",
        nargs="+",
        choices=by_launcher.PREFIXES,
        default=[],
        help="the launchers' part, of these alone",
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks [1 2]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments [0]")
    o = parser.parse_args()
    random.seed(o.seed)
    parts = ("kills",) if o.stages else o.only
    outcomes, columns = [], []
    if set(parts) != {"launchers"}:
        print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        place = Workplace(Path(name))
        for ranks in o.ranks if "kills" in parts else ():
            outcomes += _show(_kills(place, ranks, dict.fromkeys(o.stages or SECONDS, o.kills)))
        if "damages" in parts or "disk" in parts:
            outcomes += _show(_damages(place))
        if "disk" in parts:
            outcomes += _show(_full_disk(place))
        if "hosts" in parts:
            outcomes += _show(two_hosts.outcomes())
        if "launchers" in parts:
            for column in by_launcher.columns(place, o.launchers):
                columns.append(column)
                print(f"\n{by_launcher.table(columns)}", flush=True)  # each time, so that nothing is lost
    wrong = any(outcome.lost != "nothing" or outcome.survivors for outcome in outcomes)
    return int(wrong or any(column.wrong for column in columns))


def _show(outcomes: Iterator[Outcome]) -> list[Outcome]:
    done = []
    for outcome in outcomes:
        print(outcome.line(), flush=True)
        done.append(outcome)
    return done


def _kills(place: Workplace, ranks: int, left: dict[str, int]) -> Iterator[Outcome]:
    """Each stage killed as often as is left of it, the faults in turn."""
    most = max(left.values())
    same = (
        f"job.nproc={ranks}",
        "reuse=false",
        "baselines=true",
        *AUGMENTED,
        *(f"{stage}.epochs={2 + 2 * most}" for stage in EPOCHS),
    )
    whole, run = f"whole{ranks}", place.path / "runs" / f"killed{ranks}"
    status, output = place.run("task-distill", f"run={whole}", *same, timeout=3600)
    assert status == 0, output
    where = f"{ranks} rank{'s' * (ranks > 1)}"
    outcomes = {fault: Outcome(fault, where) for fault in KILLS}
    progress = tqdm(total=sum(left.values()), desc=f"kills, {where}", mininterval=10)
    process = None
    while True:
        if process is None:
            began = time.time()
            process = place.start("task-distill", f"run={run.name}", *same, EACH_STEP)
        stage = _stage_to_kill(run, process, began, left)
        if stage is None:
            output = process.communicate()[0]
            missed = [stage for stage in left if left[stage]]
            if process.returncode or not missed:
                break
            shutil.rmtree(run / missed[0])  # it ended before its last kill: once more from the start
            process = None
            continue
        time.sleep(random.uniform(0, SECONDS[stage]))
        if process.poll() is not None or (run / stage / "finished.json").exists():
            continue
        fault = list(KILLS)[left[stage] % len(KILLS)]
        outcomes[fault].times[stage] += 1
        left[stage] -= 1
        progress.update()
        _kill(process, workers_of(run), fault)
        _end(process, run, outcomes[fault])
        process = None
    progress.close()
    if process.returncode or made(run) != made(run.with_name(whole)):
        lost = f"DIFFERENT ({process.returncode})"
        print(output)
    elif place.metrics(run.name) != place.metrics(whole):
        lost = "STEPS"
    else:
        lost = "nothing"
    for outcome in outcomes.values():
        outcome.lost = lost
        if outcome.times:
            yield outcome


def _stage_to_kill(run: Path, process: subprocess.Popen, began: float, left: dict[str, int]) -> str | None:
    """Wait until a stage that is still to be killed goes on since `began`; None when the command has ended."""
    while process.poll() is None:
        for stage in left:
            sign = run / stage / ("checkpoints" if stage in TRAINING else "stage.json")
            if (
                left[stage]
                and sign.exists()
                and sign.stat().st_mtime > began  # not only what was left of it
                and not (run / stage / "finished.json").exists()
                and workers_of(run)
            ):
                return stage
        time.sleep(0.02)
    return None


def _kill(process: subprocess.Popen, workers: list[int], fault: str) -> None:
    victims = {
        "`kill -9` of one rank": workers[-1:],
        "`kill -9` of the process that starts the ranks": workers[:1],
        "`kill -9` of all processes at once": [process.pid, *workers],
    }
    for victim in victims.get(fault, [process.pid]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, KILLS[fault])


def _end(process: subprocess.Popen, run: Path, outcome: Outcome) -> None:
    """Wait for the command and its workers to end, and note how."""
    began = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=60)
    if process.poll() is None:
        process.kill()
        outcome.survivors += 1
    while workers_of(run) and time.monotonic() - began < 60:
        time.sleep(0.05)
    outcome.seconds = max(outcome.seconds, time.monotonic() - began)
    outcome.survivors += len(workers_of(run))
    outcome.statuses[process.returncode] += 1


def _damages(place: Workplace) -> Iterator[Outcome]:
    """The newest checkpoint of a killed stage damaged in each way; the one before it must serve."""
    damages = {
        "killed, then a file of the newest checkpoint cut short": lambda path: path.write_bytes(
            path.read_bytes()[:-9]
        ),
        "killed, then one bit of a file of the newest checkpoint flipped": lambda path: path.write_bytes(
            _flipped(path.read_bytes())
        ),
        "killed, then a file of the newest checkpoint removed": lambda path: path.unlink(),
        "killed, then the manifest of the newest checkpoint removed": lambda path: (
            path.parent / "manifest.json"
        ).unlink(),
        "killed, then the manifest of the newest checkpoint cut short": lambda path: (
            path.parent / "manifest.json"
        ).write_text('{"files": {"we'),
    }
    same = ("reuse=false", "general.epochs=60")
    status, output = place.run("general-distill", "run=sound", *same)
    assert status == 0, output
    run = place.path / "runs" / "torn"
    outcomes = []
    for fault, damage in damages.items():
        outcome = Outcome(fault, "general stage")
        process = place.start("general-distill", f"run={run.name}", *same, EACH_STEP)
        checkpoints, before = run / "general" / "checkpoints", _sealed(run)
        while process.poll() is None and not (len(_sealed(run)) > 1 and _sealed(run)[-1:] != before[-1:]):
            time.sleep(0.01)
        process.kill()
        outcome.times["general"] += 1
        _end(process, run, outcome)
        damaged = sorted(checkpoints.glob("step-*"))[-1]
        damage(random.choice(sorted(damaged.glob("*.safetensors"))))
        process = place.start("general-distill", f"run={run.name}", *same, EACH_STEP)
        told = ""
        while process.poll() is None and "resumed" not in told:
            told += process.stdout.readline()
        process.kill()
        _end(process, run, Outcome("", ""))
        if f"{damaged.name} is damaged" not in told:
            outcome.lost = f"NOT TOLD: {told}"
        outcomes.append(outcome)
    status, output = place.run("general-distill", f"run={run.name}", *same)
    if status or made(run) != made(run.with_name("sound")):
        outcomes[-1].lost = f"DIFFERENT {output}"
    yield from outcomes


def _full_disk(place: Workplace) -> Iterator[Outcome]:
    """A disk that is filled while a stage runs, and has room again."""
    outcome = Outcome("the disk filled up while the stage ran", "general stage")
    if os.getuid():
        return
    path = place.path / "small disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path], check=True)
    try:
        small = Workplace(path)
        same = ("reuse=false", "general.epochs=60")
        process = small.start("general-distill", "run=full", *same, EACH_STEP)
        run = path / "runs" / "full"
        while process.poll() is None and not _sealed(run):
            time.sleep(0.01)
        with contextlib.suppress(OSError), open(path / "ballast", "wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        outcome.times["general"] += 1
        began = time.monotonic()
        output = process.communicate(timeout=60)[0]
        outcome.seconds, outcome.statuses[process.returncode] = time.monotonic() - began, 1
        told = [line for line in output.splitlines() if line.startswith("error:")]
        (path / "ballast").unlink()
        status, again = small.run("general-distill", "run=full", *same)
        if len(told) != 1 or "MB" not in told[0] or "resumed at" not in again or status:
            outcome.lost = f"NOT TOLD: {output} {again}"
        elif made(run) != made(place.path / "runs" / "sound"):
            outcome.lost = "DIFFERENT"
        yield outcome
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def made(run: Path) -> dict[str, str]:
    """sha256 of what every stage of a run made."""
    found = (p for p in run.glob("*/model/*") if p.suffix in (".safetensors", ".arrow", ".npy"))
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def _sealed(run: Path) -> list[Path]:
    return sorted((run / "general" / "checkpoints").glob("step-*/manifest.json"))


def _flipped(content: bytes) -> bytes:
    place = random.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]


if __name__ == "__main__":
    sys.exit(main())
