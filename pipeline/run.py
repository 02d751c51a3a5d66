"""Makes a run, stage by stage: plans it, locks its directory, starts its stages, shows the results."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.store import read_json
from pipeline.config.option_errors import SECTIONS
from pipeline.config.recipe import read_recipe
from pipeline.config.recipe_stages import recipe_stages
from pipeline.config.run_options import Options, load
from pipeline.config.two_stage import RunSpec
from pipeline.launch.in_place import job_on_given_ranks, launcher_of
from pipeline.launch.interrupts import look
from pipeline.launch.worker import REFUSAL
from pipeline.plan import (
    ACTION_LABELS,
    RUNS,
    Planned,
    check_inputs,
    plan,
    read_finished,
    reused_by_now,
    write_stage_spec,
)
from pipeline.program import as_started
from pipeline.report.run_record import read_run_record
from pipeline.report.tables import results_table, seeds_table
from pipeline.run_lock import run_lock, stage_lock
from stages.training.options import Job

ONE_RANK = ("check", "select", "evaluate")
"""Types of stages that train nothing: one process runs them, whatever the number of ranks."""

DOES = {
    "check": "reads data and models, and estimates what each stage takes",
    "teacher": "tunes the teacher on the task",
    "out_of_fold": "judges each answer by an encoder that was not tuned on it",
    "vocabulary": "chooses the student's tokens",
    "general": "a student learns the un-tuned teacher's layers on unlabelled text",
    "masked_lm": "prepares the masked language model",
    "augment": "makes variants of the training rows",
    "intermediate": "the student learns the tuned teacher's layers on the task's rows",
    "prediction": "the student learns the teacher's predictions",
    "finetune": "a baseline: the same student, fine-tuned without a teacher",
    "select": "keeps the best settings of the grid",
    "evaluate": "scores and times the models",
}
"""Type of stage -> what it does, for those who see it start."""


class StageFailed(RuntimeError):
    """A stage was interrupted or failed. What it saved is intact: the same call resumes it.

    Attributes:
        status: exit status of its process; 128 + the signal that ended it.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM ended it. A training stage has saved, unless a second signal came."""
        return self.status in (128 + signal.SIGINT, 128 + signal.SIGTERM)


class StageRefused(UserError):
    """A stage refused its inputs or options. Its process has already shown the message."""


def make(given: Mapping[str, Any], declare: Callable[[Options], RunSpec]) -> list[Path]:
    """Make a run, or one for each of `seeds`: plan it, then run or resume each stage that is not finished.

    Args:
        given: options by name, over those of their preset.

    Returns:
        The directories of the runs.

    Raises:
        UserError: an option, an input or a stage is refused.
        StageFailed: a stage was interrupted or failed.
    """
    options = load("small", given)
    options = replace(options, job=job_on_given_ranks(options.job, given))
    runs = _make_seeds(options, declare, {})
    if options.seeds:
        print(f"\n{seeds_table(runs)}")
    return runs


def make_recipe(given: Mapping[str, str]) -> list[Path]:
    """Make the runs of the recipe `name`, one for each of its seeds, and show their summary.

    The summary also counts the seeds that earlier commands finished with the same settings: they would be skipped.

    Returns:
        The directories of the runs that were asked for.

    Raises:
        UserError: the recipe, an option, an input or a stage is refused.
        StageFailed: a stage was interrupted or failed.
    """
    recipe, options = read_recipe(given)
    options = replace(options, job=job_on_given_ranks(options.job, given))
    declare = partial(recipe_stages, recipe)
    runs = _make_seeds(options, declare, given)
    from pipeline.report.recipe_summary import write_summary  # matplotlib and scipy take seconds to start

    name = options.run or recipe.name
    others = _finished_seeds(name, options, declare)
    print(f"\n{write_summary(recipe, [*runs, *others], RUNS / name)}")
    return runs


def _finished_seeds(name: str, options: Options, declare: Callable[[Options], RunSpec]) -> list[Path]:
    """The finished runs of other seeds than those of `options`, and with the same settings otherwise."""
    found = []
    for run in RUNS.glob(f"{name}-seed*"):
        number = run.name.removeprefix(f"{name}-seed")
        if not number.isdecimal() or int(number) in (options.seeds or [options.seed]):
            continue
        of_seed = replace(options, seed=int(number), seeds=[], reuse=True)
        with contextlib.suppress(UserError):
            if all(step.action == "skip" for step in plan(declare(of_seed).declare(run), run, of_seed)):
                read_run_record(run)  # raises where it is incomplete
                found.append(run)
    return found


def _make_seeds(
    options: Options, declare: Callable[[Options], RunSpec], recipe: Mapping[str, str]
) -> list[Path]:
    seeds = by_seed(options)
    last = len(seeds) - 1
    return [
        _run(of_seed, declare(of_seed), suffix, recipe, more=last - i)
        for i, (of_seed, suffix) in enumerate(seeds)
    ]


def by_seed(options: Options) -> list[tuple[Options, str]]:
    """The options of each run, and what its name ends in: one for each of `seeds`, or one alone."""
    return [(replace(options, seed=seed, seeds=[]), f"-seed{seed}") for seed in options.seeds] or [
        (options, "")
    ]


def _run(options: Options, spec: RunSpec, suffix: str, recipe: Mapping[str, str], more: int) -> Path:
    """Make one run, which `more` follow. `recipe` holds the arguments of the recipe to which it belongs."""
    began = time.monotonic()
    run = RUNS / (spec.name + suffix)
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is not a directory, so it cannot be a run: give another run=NAME")
    there = {path.name for path in run.iterdir() if not path.name.startswith(".")} if run.exists() else set()
    if there and not there & {"options.json", "hub.json"}:
        raise UserError(f"{run} is not a run (it has no options.json): give another run=NAME")
    stages = spec.declare(run)
    run.mkdir(parents=True, exist_ok=True)
    with run_lock(run), launcher_of(run) as launcher:
        look()  # from here on signals are the launcher's
        planned = plan(stages, run, options)
        arguments = [f"{name}={value}" for name, value in recipe.items()]
        store.write_json(run / "options.json", asdict(options) | {
            "run": run.name, "stages": [stage.name for stage in stages], "recipe": arguments,
        })  # fmt: skip
        _print_plan(run.name, planned)
        artefacts: dict[str, Path] = {}
        for i in range(len(planned)):
            # By now the stage `check` is finished, in this run or in another.
            if planned[0].stage.stage_type == "check" and i == 1:
                _print_estimate(planned, more)
            with _turn(planned[i], options) as step:
                planned[i], artefacts[step.stage.name] = step, step.artefact
                if step.action == "skip":
                    continue
                if step.action != "reuse":
                    check_inputs(step, {made.stage.name: made for made in planned})
                write_stage_spec(step, artefacts, options)
                if any(other.stage.name == "evaluate" for other in planned):
                    (run / "results.json").unlink(missing_ok=True)  # it describes other models
                if step.action != "reuse":
                    _make_stage(step, launcher, options.job)
    if "evaluate" in artefacts:
        shutil.copyfile(artefacts["evaluate"] / "results.json", run / "results.json")
        table = results_table(read_run_record(run))
        hint = as_started(f"make report RUN={run.name} shows the same as a page, with curves")
        print(f"\n{table}\n\n{hint}")
    elif "augment" in artefacts:
        print(f"\n{(artefacts['augment'] / 'samples.txt').read_text(encoding='utf-8')}")
        print(f"the augmented rows are in {artefacts['augment']}: datasets.Dataset.from_file reads each file")
    else:
        print(f"the general student is in {artefacts['general']}")
    seconds = time.monotonic() - began
    print(f"run {run.name}: " + (f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"))
    return run


@contextlib.contextmanager
def _turn(step: Planned, options: Options) -> Iterator[Planned]:
    """Wait while another run makes the same stage, which is then reused; yields what is to be done about the stage."""
    if step.action not in ("run", "resume") or not options.reuse or step.stage.stage_type == "evaluate":
        yield step
        return

    def waits(other: str) -> bool:
        if step.action == "run":
            which = f"run {other}, which" if other else "another run that"
            text = f"waits for {which} makes the same stage (reuse=false would make it here, too)"
            print(f"[{step.stage.name}] {text}", flush=True)
        return step.action == "run"

    run = step.directory.parent
    with stage_lock(run.parent / ".cache" / f"making-{step.fingerprint[:20]}.lock", run.name, waits):
        now = reused_by_now(step) if step.action == "run" else step
        if now.action == "reuse":
            print(f"[{step.stage.name}] {ACTION_LABELS['reuse']} ({os.path.relpath(now.made)})", flush=True)
        yield now


def _make_stage(step: Planned, launcher: Any, job: Job) -> None:
    """Run a stage, or resume it."""
    does = f": {DOES[step.stage.stage_type]}" if step.stage.stage_type in DOES else ""
    print(f"[{step.stage.name}] {'resumes' if step.action == 'resume' else 'starts'}{does}", flush=True)
    began = time.monotonic()
    if step.stage.stage_type in ONE_RANK:
        job = replace(job, nproc=1, hostfile="")
    (step.directory / REFUSAL).unlink(missing_ok=True)
    if status := launcher.launch(step.directory, job):
        raise _failure(step, status if status > 0 else 128 - status)
    finished, seconds = step.directory / "finished.json", round(time.monotonic() - began, 1)
    store.write_json(finished, read_json(finished) | {"seconds_of_last_start": seconds})


def _print_plan(name: str, planned: list[Planned]) -> None:
    print(f"run {name}")
    for step in planned:
        print(f"  {step.stage.name:<34} {step}")


def _print_estimate(planned: list[Planned], more: int) -> None:
    """Print about how long each stage takes that is still to be made, as the stage `check` counted and measured."""
    check, *others = planned
    counted = read_finished(check.made).get("scores", {}).get("stages", {})
    lines, flops, seconds = [], 0.0, 0.0
    for step in (step for step in others if step.action in ("run", "resume")):
        stage = step.stage
        name = stage.name if stage.name in counted else SECTIONS.get(stage.stage_type, stage.stage_type)
        training = stage.options.get(
            "training"
        )  # the selection from a grid, which has none, is named `prediction`
        if not training or not counted.get(name, {}).get("flops"):
            lines.append(f"  {stage.name:<34} not counted")
            continue
        of_plan = check.stage.options["stages"][name]["epochs"]  # a grid may try others
        share = training["epochs"] / of_plan
        flops += share * counted[name]["flops"]
        seconds += share * counted[name]["seconds"]
        limit = "at most " if training["patience"] or step.action == "resume" else ""
        lines.append(f"  {stage.name:<34} {limit}{_minutes(share * counted[name]['seconds'])}")
    if flops:
        follow = f"; {more} more {'seed follows' if more == 1 else 'seeds follow'}" if more else ""
        print(f"left to run: about {_minutes(seconds)} ({flops / 1e12:,.1f} TFLOP){follow}")
        print("\n".join(lines), flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} minutes" if seconds < 5400 else f"{seconds / 3600:,.1f} hours"


def _failure(step: Planned, status: int) -> StageFailed | StageRefused:
    """The exception for a stage that ended with a status other than 0."""
    refusal = step.directory / REFUSAL
    if status == 2 and refusal.is_file():
        return StageRefused(f"{step.stage.name}: {refusal.read_text(encoding='utf-8')}")
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return StageFailed("stopped; run the same command to resume", status)
    advice = " (killed; if the memory ran out: job.micro_batch=auto)"
    killed = advice if status == 128 + signal.SIGKILL else ""
    message = f"stage {step.stage.name} ended with status {status}{killed}; run the same command to resume"
    return StageFailed(message, status)
