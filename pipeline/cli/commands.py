"""The commands: `python -m pipeline COMMAND key=value ...`, or `make COMMAND`."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import UserError, to_user_error
from checkpoints.store import read_json
from pipeline.config import options as options_module
from pipeline.config.errors import explain
from pipeline.config.inputs import augment_stages, general_stages, task_stages
from pipeline.config.recipe import known_recipes
from pipeline.plan import RUNS
from pipeline.report.run_record import RunRecord, read_run_record
from pipeline.report.tables import results_table, runs_table
from pipeline.run import make, make_recipe, split
from stages.tasks.text import check_text

USAGE = """\
usage: python -m pipeline COMMAND [key=value ...]

  demo             a real teacher becomes a small student, end to end, on packaged weights and text
  general-distill  stage 1: a general student from an un-tuned teacher and unlabelled text
  task-distill     stage 2: a student of a task, making first whatever it lacks     (task=NAME)
  augment          data augmentation alone: variants of a task's rows, with samples (task=NAME)
  recipe           a published system and what it is compared with, over its seeds   (name=NAME, or name=FILE.yaml)
  recipes          the recipes there are, a line each
  evaluate         the tables of a finished run                                     (run=NAME)
  report           the page of a finished run, runs/NAME/report.html                (run=NAME to=FILE)
  compare          finished runs side by side, runs/compare.html                    (runs="A B" to=FILE)
  pareto           all students of all finished runs, task by task: what each costs for what it reaches   (task=NAME)
  export           the finished student for transformers and onnxruntime, with a model card
                   (run=NAME to=DIR onnx=true|false license=ID push=OWNER/NAME)
  predict          what the student answers to text="...", to file=IN.csv (to=OUT.csv), or to lines on standard
                   input                                             (run=NAME, or model=DIR of an export)
  serve            a page on this machine: teacher and student side by side         (run=NAME port=8000)
  doctor           what the machine offers, what a run needs (options of task-distill), what is wrong with run=NAME

Every command goes on where it was stopped, skips what is finished, and makes again what changed.

  preset=NAME      settings to start from: {presets}, or a .yaml file   [small]
  seeds="1 2 3"    one run for each seed, then mean and spread

Any option as key=value, after those of the preset (defaults in brackets):
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 2 for a mistake the user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        with contextlib.suppress(BrokenPipeError):  # as in `--help | head`
            print(usage(), flush=True)
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    try:
        for text in arguments:
            check_text(text, f"the argument {text!r}")
        if command not in COMMANDS:
            raise UserError(
                f"unknown command {command!r}: there are {', '.join(COMMANDS)} (--help explains them)"
            )
        return COMMANDS[command](rest)
    except (UserError, OSError) as error:
        error = to_user_error(error) if isinstance(error, OSError) else error
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def usage() -> str:
    """The help text, with every option."""
    presets = ", ".join(sorted(p.stem for p in options_module.PRESETS.glob("*.yaml")))
    rows = [f"  {name}  [{default}]\n      {text}" for name, default, text in options_module.describe()]
    return USAGE.format(presets=presets) + "\n".join(rows)


def demo(rest: list[str]) -> int:
    """The whole pipeline on the packaged teacher, text and task."""
    return make(["task=rotten-tomatoes", "run=demo", "baselines=true", *rest], task_stages)


def general_distill(rest: list[str]) -> int:
    """The general stage alone."""
    return make(rest, general_stages)


def task_distill(rest: list[str]) -> int:
    """The task stage, and before it whatever it lacks."""
    return make(rest, task_stages)


def augment(rest: list[str]) -> int:
    """The augmented rows of a task, and before them the masked language model they need."""
    return make(rest, augment_stages)


def recipe(rest: list[str]) -> int:
    """The runs of a recipe, one for each seed, and their table."""
    return make_recipe(rest)


def recipes(rest: list[str]) -> int:
    """What recipes there are."""
    _given(rest)
    for name, about in known_recipes().items():
        print(f"{name:<22}{about}")
    return 0


def evaluate(rest: list[str]) -> int:
    """Show the tables of a finished run."""
    given = _given(rest, "run")
    print(results_table(read_run_record(_finished(given.get("run") or "demo"))))
    return 0


def report(rest: list[str]) -> int:
    """Write the page of a finished run."""
    from pipeline.report.page import write_report  # matplotlib takes a second to start

    given = _given(rest, "run", "to")
    run = read_run_record(_finished(given.get("run") or "demo"))
    target = Path(given.get("to") or run.path / "report.html")
    write_report(run, [other for other in _evaluated() if other.name != run.name], target)
    print(f"the report of run {run.name} is in {target}: open it in any browser")
    return 0


def compare(rest: list[str]) -> int:
    """Write a page with several finished runs side by side, and show their table."""
    from pipeline.report.page import write_comparison

    given = _given(rest, "runs", "to")
    names = given.get("runs", "").replace(",", " ").split()
    if len(set(names)) < 2:
        raise UserError(
            f"runs={given.get('runs', '')!r} must name two runs or more, such as runs='demo demo-long'"
        )
    runs = [read_run_record(_finished(name)) for name in dict.fromkeys(names)]
    target = Path(given.get("to") or RUNS / "compare.html")
    write_comparison(runs, target)
    print(f"{runs_table(runs)}\nthe comparison is in {target}: open it in any browser")
    return 0


def pareto(rest: list[str]) -> int:
    """One table, and picture, for each set of rows that finished runs report."""
    from pipeline.report.pareto import write_pareto

    task = _given(rest, "task").get("task")
    groups: list[list[RunRecord]] = []
    for run in _evaluated():
        if task in (None, run.task["name"]):
            like = next((group for group in groups if group[0].same_rows(run)), None)
            groups.append([run]) if like is None else like.append(run)
    if not groups:
        raise UserError(f"no finished run {f'of task {task} ' if task else ''}under {RUNS}/: make one first")
    for i, group in enumerate(groups, 1):
        name = re.sub(r"[^\w.-]+", "-", Path(group[0].task["name"]).stem)
        target = RUNS / f"pareto-{name}{f'-{i}' if len(groups) > 1 else ''}"
        print(f"{write_pareto(group, target)}\n\ndrawn in {target}.png\n")
    return 0


def export(rest: list[str]) -> int:
    """Write a finished student as a directory that its users load: transformers, onnxruntime, a model card."""
    from pipeline.deploy import hub

    given = _given(rest, "run", "to", "onnx", "license", "push")
    run = read_run_record(_finished(given.get("run") or "demo"))
    target = Path(given.get("to") or run.path / "export")
    if target.exists():
        raise UserError(f"{target} is there already: give another to=DIR, or remove it")
    if given.get("onnx", "true") not in ("true", "false"):
        raise UserError(f"onnx={given['onnx']} must be true or false")
    if given.get("push"):
        hub.check_push(given["push"])
    from pipeline.deploy import export
    from pipeline.deploy import formats as forms

    made = export.export(run, target, given.get("onnx") != "false", given.get("license", ""))
    if made:
        print(f"{forms.forms_table(run, made)}\n")
    print(f"the student is in {target}: {export.how_to_load(target)}")
    if given.get("push"):
        print(f"it is on the hub, private: {hub.push(target, given['push'])}")
    return 0


def predict(rest: list[str]) -> int:
    """What a finished or exported student answers to a text, a table, or the lines of standard input."""
    given = _given(rest, "run", "model", "text", "text_b", "file", "to", "text_columns")
    run = None if given.get("model") else read_run_record(_finished(given.get("run") or "demo"))
    if given.get("to") and not given.get("file"):
        raise UserError("to= is where the answers to file= go: give file=FILE")
    from pipeline.deploy import predict

    student = (
        predict.Classifier.of_run(run, run.main)
        if run
        else predict.Classifier.of_directory(Path(given["model"]))
    )
    with contextlib.suppress(BrokenPipeError):  # as in `predict ... | head`
        if given.get("file"):
            path, target = Path(given["file"]), Path(given["to"]) if given.get("to") else None
            columns = tuple(given.get("text_columns", "").replace(",", " ").split())
            rows = predict.predict_table(student, path, columns or predict.text_columns(run, path), target)
            if target:
                print(f"the answers to {rows:,} rows are in {target}")
        elif "text" in given:
            row = [given[name] for name in ("text", "text_b") if name in given]
            predict.print_answers(student, [student.check(row, "text=")])
        else:
            predict.predict_lines(student, sys.stdin)
        sys.stdout.flush()
    return 0


def serve(rest: list[str]) -> int:
    """A page on this machine on which teacher and student answer side by side."""
    given = _given(rest, "run", "port")
    port = given.get("port") or "8000"
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"port={port} must be a number from 1 to 65535")
    run = read_run_record(_finished(given.get("run") or "demo"))
    from pipeline.deploy.serve import serve_run

    serve_run(run, int(port))
    return 0


def doctor(rest: list[str]) -> int:
    """Look at the machine, at what a run needs of it, and at the run's directory; 1 if anything is wrong."""
    from pipeline.cli import doctor
    from pipeline.cli import resources as needs

    preset, overrides, seeds = split(rest)
    o = options_module.load(preset, overrides)
    only_run = o.run and len(overrides) == 1
    stages = task_stages(o, Path(preset).stem, "") if overrides and not only_run else None
    report = doctor.Report()
    doctor.look_at_machine(report, RUNS)
    for suffix in [f"-seed{seed}" for seed in seeds] or [""]:
        run = RUNS / ((stages[0] if stages else o.run) + suffix)
        if stages:
            needs.look_at_needs(report, run, stages[1], o)
        elif o.run and not run.is_dir():
            raise _no_such_run(run.name)
        if run != RUNS and run.is_dir():
            doctor.look_at_run(report, run)
    print(f"\n{report.wrong} wrong" if report.wrong else "\nnothing is wrong")
    return 1 if report.wrong else 0


COMMANDS = {
    "demo": demo,
    "general-distill": general_distill,
    "task-distill": task_distill,
    "augment": augment,
    "recipe": recipe,
    "recipes": recipes,
    "evaluate": evaluate,
    "report": report,
    "compare": compare,
    "pareto": pareto,
    "export": export,
    "predict": predict,
    "serve": serve,
    "doctor": doctor,
}


def _given(rest: list[str], *known: str) -> dict[str, str]:
    """The options of a command that shows what is finished."""
    given = dict(text.partition("=")[::2] for text in rest)
    if unknown := given.keys() - set(known):
        takes = " and ".join(f"{name}=" for name in known)
        raise UserError(f"unknown option {', '.join(sorted(unknown))}: this command takes {takes or 'none'}")
    return given


def _finished(name: str) -> Path:
    """The directory of a run that is finished."""
    options_module.check_run(name)
    run = RUNS / name
    if not (run / "options.json").is_file():
        raise _no_such_run(name)
    if not read_json(run / "results.json"):
        raise UserError(f"run {name!r} is not finished: run its task-distill or demo command again to go on")
    return run


def _evaluated() -> Iterator[RunRecord]:
    """All runs that this version evaluated."""
    for results in sorted(RUNS.glob("*/results.json")):
        with contextlib.suppress(UserError):
            yield read_run_record(results.parent)


def _no_such_run(name: str) -> UserError:
    known = ", ".join(sorted(p.parent.name for p in RUNS.glob("*/options.json"))) or "none yet"
    return UserError(f"there is no run {name!r} under {RUNS}/: there are {known}")
