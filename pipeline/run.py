"""Makes a run, stage by stage: plans, locks its directory, launches what is to be done, says how it went."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.store import read_json
from pipeline.config import options as options_module
from pipeline.config.inputs import Named
from pipeline.config.options import Options
from pipeline.config.recipe import read_recipe, recipe_stages
from pipeline.launch.launcher import Launcher
from pipeline.plan import RUNS, Planned, plan, write_stage_spec
from pipeline.report.run_record import read_run_record
from pipeline.report.tables import results_table, spread_table
from pipeline.run_lock import run_lock

ONE_RANK = ("check", "select", "evaluate")
"""Kinds of stages that train nothing, and are run by one process whatever the number of ranks."""


def make(rest: list[str], declare: Callable[[Options, str, str], Named]) -> int:
    """One run, or one for each of `seeds`."""
    preset, overrides, seeds = split(rest)
    o = options_module.load(preset, overrides)
    if not seeds:
        return _run(o, preset, "", declare, [])[0]
    status, runs = make_seeds(o, preset, seeds, declare, [])
    if not status:
        print(f"\n{spread_table(runs)}")
    return status


def make_recipe(rest: list[str]) -> int:
    """The runs of a recipe, one for each of its seeds, and what they come to together."""
    name = next((text.partition("=")[2] for text in rest if text.startswith("name=")), "")
    preset, overrides, seeds = split([text for text in rest if not text.startswith("name=")])
    recipe, overrides = read_recipe(name, overrides)
    preset = recipe.preset if not any(text.startswith("preset=") for text in rest) else preset
    o = options_module.load(preset, overrides, recipe.options)
    status, runs = make_seeds(o, preset, seeds or map(str, recipe.seeds), recipe_stages(recipe), rest)
    if not status:
        from pipeline.report.recipe_summary import write_summary  # matplotlib and scipy take seconds to start

        print(f"\n{write_summary(recipe, runs, RUNS / (o.run or recipe.name))}")
    return status


def make_seeds(
    o: Options, preset: str, seeds: Iterable[str], declare: Callable, recipe: list[str]
) -> tuple[int, list[Path]]:
    """(exit status, runs): one for each seed, up to the first that fails."""
    runs = []
    for seed in seeds:
        status, run = _run(replace(o, seed=int(seed)), preset, f"-seed{seed}", declare, recipe)
        if status:
            return status, runs
        runs.append(run)
    return 0, runs


def _run(o: Options, preset: str, suffix: str, declare: Callable, recipe: list[str]) -> tuple[int, Path]:
    """Plan a run and do what is to be done, stage by stage. `recipe` are the arguments of the one it belongs to."""
    began = time.monotonic()
    name, declared = declare(o, Path(preset).stem, suffix)
    run = RUNS / name
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is not a directory, so it cannot be a run: give another run=NAME")
    there = {path.name for path in run.iterdir() if not path.name.startswith(".")} if run.exists() else set()
    if there and not there & {"options.json", "hub.json"}:
        raise UserError(f"{run} is not a run (it has no options.json): give another run=NAME")
    stages = declared(run)
    run.mkdir(parents=True, exist_ok=True)
    with run_lock(run), Launcher(run) as launcher:
        planned = plan(stages, run, o)
        store.write_json(run / "options.json", asdict(o) | {
            "run": name, "preset": preset, "stages": [stage.name for stage in stages], "recipe": recipe,
        })  # fmt: skip
        _say_plan(name, planned)
        artefacts: dict[str, Path] = {}
        for step in planned:
            artefacts[step.stage.name] = step.artefact
            if step.action == "skip":
                continue
            write_stage_spec(step, artefacts, o)
            if any(other.stage.name == "evaluate" for other in planned):
                (run / "results.json").unlink(missing_ok=True)  # it spoke of other models
            if step.action == "reuse":
                continue
            print(f"[{step.stage.name}] {'goes on' if step.action == 'resume' else 'starts'}", flush=True)
            start = time.monotonic()
            job = replace(o.job, nproc=1, hostfile="") if step.stage.stage_type in ONE_RANK else o.job
            status = launcher.launch(step.directory, job)
            if status:
                status = status if status > 0 else 128 - status
                _say_failure(step, status)
                return status, run
            _note_seconds(step.directory, time.monotonic() - start)
    if "evaluate" in artefacts:
        shutil.copyfile(artefacts["evaluate"] / "results.json", run / "results.json")
        print(
            f"\n{results_table(read_run_record(run))}\n\nmake report RUN={name} shows the same as a page, with curves"
        )
    elif "augment" in artefacts:
        print(f"\n{(artefacts['augment'] / 'samples.txt').read_text(encoding='utf-8')}")
        print(f"the augmented rows are in {artefacts['augment']}: datasets.Dataset.from_file reads each file")
    else:
        print(f"the general student is in {artefacts['general']}")
    print(f"run {name}: {_duration(time.monotonic() - began)}")
    return 0, run


def split(rest: list[str]) -> tuple[str, list[str], list[str]]:
    """(preset, options, seeds) out of a command's arguments."""
    preset, overrides, seeds = "small", [], []
    for text in rest:
        key, _, value = text.partition("=")
        if key == "preset":
            preset = value
        elif key == "seeds":
            seeds = value.replace(",", " ").split()
            if not all(seed.isdecimal() for seed in seeds):
                raise UserError(f"seeds={value!r} must be whole numbers, such as seeds='1 2 3'")
        else:
            overrides.append(text)
    return preset, overrides, seeds


def _say_plan(name: str, planned: list[Planned]) -> None:
    words = {
        "skip": "finished",
        "reuse": "made by another run",
        "resume": "half done: goes on",
        "run": "to be made",
    }
    print(f"run {name}")
    for step in planned:
        where = f" ({os.path.relpath(step.made)})" if step.action == "reuse" else ""
        again = "; changed here: " if step.action == "reuse" else " again: "
        cause = again + step.cause if step.cause else ""
        print(f"  {step.stage.name:<34} {words[step.action]}{where}{cause}")


def _say_failure(step: Planned, status: int) -> None:
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        print("stopped; run the same command to go on")
    elif status != 2:
        killed = (
            " (killed; where the memory ran out: job.micro_batch=auto)"
            if status == 128 + signal.SIGKILL
            else ""
        )
        print(
            f"error: stage {step.stage.name} ended with status {status}{killed}; run the same command to go on",
            file=sys.stderr,
        )


def _note_seconds(directory: Path, seconds: float) -> None:
    finished = read_json(directory / "finished.json")
    store.write_json(directory / "finished.json", finished | {"seconds_of_last_start": round(seconds, 1)})


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
