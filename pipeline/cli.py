"""The commands: `python -m pipeline COMMAND key=value ...`, or `make COMMAND`."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from checkpoints import store
from checkpoints.errors import UserError, told
from checkpoints.fingerprint import FileHashes
from checkpoints.store import read_json
from pipeline import options as options_module
from pipeline.finished import FinishedRun, read_run
from pipeline.hub import pin
from pipeline.launch import launch
from pipeline.options import Options
from pipeline.plan import Planned, hashed, plan, prepare
from pipeline.table import results_table, runs_table, spread_table
from pipeline.two_stage import augmentation, check, general, two_stage
from stages.tasks.corpus import find_corpus
from stages.tasks.glue import unlabelled_files
from stages.tasks.packaged import packaged_teacher, packaged_vectors
from stages.tasks.task import find_task
from stages.tasks.text import check_text

RUNS = Path("runs")
PACKAGED = "give a local directory, or teacher=packaged for the one that comes with `make setup`"
MASKED_LM = "give a local directory, or leave it empty for the teacher with a head fitted to it"
STUDENT = "give a local directory, or leave student= empty to make one"

USAGE = """\
usage: python -m pipeline COMMAND [key=value ...]

  demo             a real teacher becomes a small student, end to end, on packaged weights and text
  general-distill  stage 1: a general student from an un-tuned teacher and unlabelled text
  task-distill     stage 2: a student of a task, making first whatever it lacks     (task=NAME)
  augment          data augmentation alone: variants of a task's rows, with samples (task=NAME)
  evaluate         the tables of a finished run                                     (run=NAME)
  report           the page of a finished run, runs/NAME/report.html                (run=NAME to=FILE)
  compare          finished runs side by side, runs/compare.html                    (runs="A B" to=FILE)
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
        print(f"error: {told(error) if isinstance(error, OSError) else error}", file=sys.stderr)
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
    return _runs(["task=rotten-tomatoes", "run=demo", "baselines=true", *rest], _task_stages)


def general_distill(rest: list[str]) -> int:
    """The general stage alone."""
    return _runs(rest, _general_stages)


def task_distill(rest: list[str]) -> int:
    """The task stage, and before it whatever it lacks."""
    return _runs(rest, _task_stages)


def augment(rest: list[str]) -> int:
    """The augmented rows of a task, and before them the masked language model they need."""
    return _runs(rest, _augment_stages)


def evaluate(rest: list[str]) -> int:
    """Show the tables of a finished run."""
    given = _given(rest, "run")
    print(results_table(read_run(_finished(given.get("run") or "demo"))))
    return 0


def report(rest: list[str]) -> int:
    """Write the page of a finished run."""
    from pipeline.report import write_report  # matplotlib takes a second to start

    given = _given(rest, "run", "to")
    run = read_run(_finished(given.get("run") or "demo"))
    target = Path(given.get("to") or run.path / "report.html")
    write_report(run, [other for other in _evaluated() if other.name != run.name], target)
    print(f"the report of run {run.name} is in {target}: open it in any browser")
    return 0


def compare(rest: list[str]) -> int:
    """Write a page with several finished runs side by side, and show their table."""
    from pipeline.report import write_comparison

    given = _given(rest, "runs", "to")
    names = given.get("runs", "").replace(",", " ").split()
    if len(set(names)) < 2:
        raise UserError(
            f"runs={given.get('runs', '')!r} must name two runs or more, such as runs='demo demo-long'"
        )
    runs = [read_run(_finished(name)) for name in dict.fromkeys(names)]
    target = Path(given.get("to") or RUNS / "compare.html")
    write_comparison(runs, target)
    print(f"{runs_table(runs)}\nthe comparison is in {target}: open it in any browser")
    return 0


def export(rest: list[str]) -> int:
    """Write a finished student as a directory that its users load: transformers, onnxruntime, a model card."""
    from pipeline import hub

    given = _given(rest, "run", "to", "onnx", "license", "push")
    run = read_run(_finished(given.get("run") or "demo"))
    target = Path(given.get("to") or run.path / "export")
    if target.exists():
        raise UserError(f"{target} is there already: give another to=DIR, or remove it")
    if given.get("onnx", "true") not in ("true", "false"):
        raise UserError(f"onnx={given['onnx']} must be true or false")
    if given.get("push"):
        hub.check_push(given["push"])
    from pipeline import export, forms  # torch takes seconds to start

    made = export.export(run, target, given.get("onnx") != "false", given.get("license", ""))
    if made:
        print(f"{forms.forms_table(run, made)}\n")
    print(
        f"the student is in {target}: AutoModelForSequenceClassification.from_pretrained({str(target)!r}) loads it"
    )
    if given.get("push"):
        print(f"it is on the hub, private: {hub.push(target, given['push'])}")
    return 0


def predict(rest: list[str]) -> int:
    """What a finished or exported student answers to a text, a table, or the lines of standard input."""
    given = _given(rest, "run", "model", "text", "text_b", "file", "to", "text_columns")
    run = None if given.get("model") else read_run(_finished(given.get("run") or "demo"))
    if given.get("to") and not given.get("file"):
        raise UserError("to= is where the answers to file= go: give file=FILE")
    from pipeline import predict  # torch takes seconds to start

    student = predict.Classifier.of_run(run) if run else predict.Classifier.of_directory(Path(given["model"]))
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
    run = read_run(_finished(given.get("run") or "demo"))
    from pipeline.serve import serve_run

    serve_run(run, int(port))
    return 0


def doctor(rest: list[str]) -> int:
    """Look at the machine, at what a run needs of it, and at the run's directory; 1 if anything is wrong."""
    from pipeline import doctor, needs

    preset, overrides, seeds = _split(rest)
    o = options_module.load(preset, overrides)
    only_run = o.run and len(overrides) == 1
    stages = _task_stages(o, Path(preset).stem, "") if overrides and not only_run else None
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


ONE_RANK = ("check", "select", "evaluate")
"""Kinds of stages that train nothing, and are run by one process whatever the number of ranks."""

COMMANDS = {
    "demo": demo,
    "general-distill": general_distill,
    "task-distill": task_distill,
    "augment": augment,
    "evaluate": evaluate,
    "report": report,
    "compare": compare,
    "export": export,
    "predict": predict,
    "serve": serve,
    "doctor": doctor,
}


def _split(rest: list[str]) -> tuple[str, list[str], list[str]]:
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


def _runs(rest: list[str], declare: Callable) -> int:
    """One run, or one for each of `seeds`."""
    preset, overrides, seeds = _split(rest)
    if not seeds:
        return _run(options_module.load(preset, overrides), preset, "", declare)
    runs = []
    for seed in seeds:
        o = replace(options_module.load(preset, overrides), seed=int(seed))
        status = _run(o, preset, f"-seed{seed}", declare, runs)
        if status:
            return status
    print(f"\n{spread_table(runs)}")
    return 0


def _run(o: Options, preset: str, suffix: str, declare: Callable, runs: list[Path] | None = None) -> int:
    """Plan a run and do what is to be done, stage by stage."""
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
    with _locked(run):
        planned = plan(stages, run, o)
        store.write_json(run / "options.json", asdict(o) | {
            "run": name, "preset": preset, "stages": [stage.name for stage in stages],
        })  # fmt: skip
        _say_plan(name, planned)
        artefacts: dict[str, Path] = {}
        for step in planned:
            artefacts[step.stage.name] = step.artefact
            if step.action == "skip":
                continue
            prepare(step, artefacts, o)
            if any(other.stage.name == "evaluate" for other in planned):
                (run / "results.json").unlink(missing_ok=True)  # it spoke of other models
            if step.action == "reuse":
                continue
            print(f"[{step.stage.name}] {'goes on' if step.action == 'resume' else 'starts'}", flush=True)
            start = time.monotonic()
            job = replace(o.job, nproc=1, hostfile="") if step.stage.kind in ONE_RANK else o.job
            status = launch(step.directory, job)
            if status:
                status = status if status > 0 else 128 - status
                _say_failure(step, status)
                return status
            _note_seconds(step.directory, time.monotonic() - start)
    if "evaluate" in artefacts:
        shutil.copyfile(artefacts["evaluate"] / "results.json", run / "results.json")
        print(f"\n{results_table(read_run(run))}\n\nreport run={name}: the same as a page, with curves")
    elif "augment" in artefacts:
        print(f"\n{(artefacts['augment'] / 'samples.txt').read_text(encoding='utf-8')}")
        print(f"the augmented rows are in {artefacts['augment']}: datasets.Dataset.from_file reads each file")
    else:
        print(f"the general student is in {artefacts['general']}")
    print(f"run {name}: {_duration(time.monotonic() - began)}")
    if runs is not None:
        runs.append(run)
    return 0


def _task_stages(o: Options, preset: str, suffix: str):
    task = _task(o)

    def declared(run: Path) -> list:
        given = {"teacher": _model(o.teacher, "teacher", PACKAGED, run), "task": _data(task, run)}
        if o.student and o.student != "teacher-layers":
            given["student"] = _model(o.student, "student", STUDENT, run)
        if not o.student or o.augment and o.corpus:
            given["corpus"] = _corpus(o, run)
        if o.augment:
            given |= _for_augmentation(o, run)
        if unlabelled := unlabelled_files(task["identity"]):
            given["unlabelled"] = _data({"name": task["name"], "identity": {"files": unlabelled}}, run)
        return two_stage(o, given)

    return (o.run or f"{preset}-{task['name']}") + suffix, declared


def _augment_stages(o: Options, preset: str, suffix: str):
    task = _task(o)

    def declared(run: Path) -> list:
        given = {"teacher": _model(o.teacher, "teacher", PACKAGED, run), "task": _data(task, run)}
        given |= {"corpus": _corpus(o, run)} if o.corpus else {}
        return augmentation(o, given | _for_augmentation(o, run))

    return (o.run or f"{preset}-{task['name']}") + suffix, declared


def _task(o: Options) -> dict:
    """Where the task's rows come from."""
    if not o.task:
        raise UserError("which task? give task=NAME (make task-distill TASK=mrpc): a GLUE task, rotten-tomatoes, "
                        "a task file, or a name of your own with data=FILE")  # fmt: skip
    source = find_task(o.task, o.data, tuple(o.text_columns), o.label_column, o.metric)
    return {"name": source.name, "identity": source.identity}


def _for_augmentation(o: Options, run: Path) -> dict[str, dict]:
    """The identities of the masked language model and the word vectors, where they are given."""
    given, vectors = {}, o.augmentation.vectors
    if o.augmentation.masked_lm:
        given["masked_lm"] = _model(o.augmentation.masked_lm, "augmentation.masked_lm", MASKED_LM, run)
    if vectors not in ("", "none"):
        path = packaged_vectors() if vectors == "packaged" else Path(os.path.expanduser(vectors))
        if vectors != "packaged" and not path.is_file():
            raise UserError(
                f"augmentation.vectors={vectors}: no such file; give a GloVe text file, packaged or none"
            )
        given["vectors"] = hashed({"path": str(path.resolve())}, FileHashes(RUNS / ".cache" / "hashes.json"))
    return given


def _general_stages(o: Options, preset: str, suffix: str):
    def declared(run: Path) -> list:
        given = {"teacher": _model(o.teacher, "teacher", PACKAGED, run), "corpus": _corpus(o, run)}
        return [check(o, given, only_general=True), general(o, given)]

    return (o.run or preset) + suffix, declared


def _model(name: str, what: str, instead: str, run: Path) -> dict:
    """The identity of a given model."""
    path = packaged_teacher() if name == "packaged" else Path(os.path.expanduser(name))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{what}={path} holds no config.json: give the directory of a Hugging Face model")
        return hashed({"path": str(path.resolve())}, FileHashes(RUNS / ".cache" / "hashes.json"))
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(f"{what}={name}: there is no such directory; {instead}")
    return pin(name, "model", instead, run)


def _corpus(o: Options, run: Path) -> dict:
    source = find_corpus(o.corpus)
    return _data({"name": source.name, "identity": source.identity}, run)


def _data(source: dict, run: Path) -> dict:
    """The identity of a data source: a hub set is pinned, files are hashed."""
    if "hub" in source["identity"]:
        instead = "give data=DIRECTORY (tasks) or corpus=FILES, or the packaged ones"
        return source | {"revision": pin(source["identity"]["hub"], "dataset", instead, run)["revision"]}
    return hashed(source, FileHashes(RUNS / ".cache" / "hashes.json"))


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """One process a run. The lock goes with its process, however that dies."""
    with open(run / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(
                f"{run} is being worked on by {file.read() or 'another process'}: wait for it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # a name that is left is that of a process that died


def _given(rest: list[str], *known: str) -> dict[str, str]:
    """The options of a command that shows what is finished."""
    given = dict(text.partition("=")[::2] for text in rest)
    if unknown := given.keys() - set(known):
        takes = " and ".join(f"{name}=" for name in known)
        raise UserError(f"unknown option {', '.join(sorted(unknown))}: this command takes {takes}")
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


def _evaluated() -> Iterator[FinishedRun]:
    """All runs that this version evaluated."""
    for results in sorted(RUNS.glob("*/results.json")):
        with contextlib.suppress(UserError):
            yield read_run(results.parent)


def _no_such_run(name: str) -> UserError:
    known = ", ".join(sorted(p.parent.name for p in RUNS.glob("*/options.json"))) or "none yet"
    return UserError(f"there is no run {name!r} under {RUNS}/: there are {known}")


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
        cause = f" again: {step.cause}" if step.cause else ""
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
