"""The commands: `python -m pipeline COMMAND key=value ...`, or `make COMMAND`."""

import contextlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from inspect import cleandoc
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from tabulate import tabulate

from checkpoints.errors import UserError, check_file
from checkpoints.store import read_json
from pipeline.config.inputs import augment_stages, general_stages, task_stages
from pipeline.config.option_errors import explain
from pipeline.config.recipe import (
    UNUSED,
    CorpusStudentSpec,
    RecipeFile,
    StudentModel,
    StudentSpec,
    known_recipes,
    read_recipe,
)
from pipeline.config.recipe_stages import recipe_stages
from pipeline.config.run_options import Options, check_run, load
from pipeline.config.schema import CONFIG, arguments, closest, help_text, updated
from pipeline.config.two_stage import RunSpec
from pipeline.launch.given_ranks import given_ranks
from pipeline.launch.in_place import RunEnded, on_all_ranks, status_of
from pipeline.plan import RUNS
from pipeline.program import as_started
from pipeline.report.run_record import RunRecord, read_run_record
from pipeline.report.tables import results_table, runs_table, tasks_table
from pipeline.run import StageFailed, StageRefused, by_seed, make, make_recipe
from stages.tasks.readers.glue import task_directories
from stages.tasks.text import check_text, slug
from stages.training.options import option

USAGE = """\
usage: python -m pipeline COMMAND [key=value | --key value | --key=value ...]

{commands}

`python -m pipeline COMMAND --help` explains a command and lists its options.
Every command that trains resumes where it was stopped, skips what is finished, and re-runs what changed."""

DEMO = {"task": "rotten-tomatoes", "run": "demo", "preset": "demo"}
"""The options of the command `demo`."""

COMMANDS: dict[str, "Command"] = {}


@dataclass
class Command:
    """A command, whose docstring is its help.

    Attributes:
        function: called with `settings`; where these are the options of a run, with the arguments as given, by name.
        settings: the dataclass of its settings.
        makes_run: it runs stages. Where another launcher has started several ranks, all of them take part; in any other
            command rank 0 alone.
    """

    function: Callable[[Any], int | None]
    settings: type
    makes_run: bool = False

    @property
    def doc(self) -> str:
        return cleandoc(self.function.__doc__ or "")


def command(settings: type, makes_run: bool = False) -> Callable[[Callable], Callable]:
    """Register a function as the command of its name."""

    def register(function: Callable[[Any], int | None]) -> Callable:
        COMMANDS[function.__name__.replace("_", "-")] = Command(function, settings, makes_run)
        return function

    return register


def main(texts: list[str] | None = None) -> int:
    """Run a command, together with the other ranks where another launcher has started several.

    Args:
        texts: its name and arguments; None: those of the process.

    Returns:
        The exit status: 0 done, 2 for what the user can fix, 128 + a signal that ended it, 1 for anything else.
    """
    texts = sys.argv[1:] if texts is None else texts
    try:
        ranks = given_ranks()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if ranks is None:
        return _main(texts)
    texts = [text for text in texts if not text.startswith("--local_rank=")]  # DeepSpeed's launcher adds it
    known = COMMANDS.get(texts[0]) if texts else None
    if not known or not known.makes_run or {"-h", "--help"} & set(texts):
        return _main(texts) if ranks.rank == 0 else 0
    from pipeline.launch.worker import leave  # here a rank, which has torch's threads

    try:
        status = on_all_ranks(lambda: _main(texts))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except (RunEnded, SystemExit, KeyboardInterrupt) as end:
        status = status_of(end)
    except Exception:
        traceback.print_exc()
        status = 1
    leave(status)


def _main(texts: list[str]) -> int:
    try:
        for text in texts:
            check_text(text, f"the argument {text!r}")
        words = [text for text in texts if text not in ("-h", "--help")]
        asked = len(words) < len(texts) or words[:1] == ["help"]
        name, *rest = words[words[:1] == ["help"] :] or [""]
        if not name:
            return _show(_usage()) or (0 if asked else 2)
        if name not in COMMANDS:
            hint = closest(name, COMMANDS)
            raise UserError(f"unknown command {name!r}{hint} (--help explains them)")
        if asked:
            return _show(_help(name))
        known, given = COMMANDS[name], arguments(rest)
        settings = given if known.settings is Options else updated(known.settings(), given)
        return known.function(settings) or 0
    except StageRefused:
        return 2
    except StageFailed as failure:
        if failure.interrupted:
            print(failure)
        elif failure.status != 2:  # where it is 2, the stage has said why
            print(f"error: {failure}", file=sys.stderr)
        return failure.status
    except (UserError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _show(text: str) -> int:
    with contextlib.suppress(BrokenPipeError):  # as in `--help | head`
        print(text, flush=True)
    return 0


def _usage() -> str:
    lines = [f"  {name:<17}{known.doc.splitlines()[0]}" for name, known in COMMANDS.items()]
    return as_started(USAGE.format(commands="\n".join(lines)))


def _help(name: str) -> str:
    settings = COMMANDS[name].settings
    given = " [key=value ...]" if fields(settings) else ""
    parts = [f"usage: python -m pipeline {name}{given}", COMMANDS[name].doc]
    if settings is Options:
        preset = load("small", DEMO if name == "demo" else {})
        parts += _help_of_recipe(preset) if name == "recipe" else []
        title = f"Options, in brackets their values with the preset {preset.preset}"
        parts += [help_text(settings, title, preset, without=UNUSED if name == "recipe" else ())]
    elif given:
        parts += [help_text(settings)]
    return as_started("\n\n".join(parts))


def _help_of_recipe(preset: Options) -> list[str]:
    """The lines of a recipe that are not options, and those of its students."""
    student = StudentSpec(student=StudentModel(**asdict(preset.architecture)))
    return [
        help_text(RecipeFile, "Lines of a recipe, beside the options below"),
        help_text(
            StudentSpec,
            "Lines of a student: under base, stages.NAME, students.NAME or a value of grid",
            student,
        ),
        help_text(CorpusStudentSpec, beside=StudentSpec),
    ]


@dataclass
class Settings:
    """What a command takes; by itself nothing."""

    __pydantic_config__ = CONFIG


@dataclass
class OfRun(Settings):
    """What a command of a finished run takes."""

    run: str = option("demo", "name of the finished run, under runs/")


@command(Options, makes_run=True)
def demo(given: dict[str, str]) -> None:
    """Distil a real teacher end to end, on packaged weights and text.

    Example: make demo
    """
    runs = make(DEMO | given, task_stages)
    for name in (run.name for run in runs):
        print()
        report(ReportSettings(run=name))
    print(
        as_started(f"""
What to do next:
  make predict RUN={runs[0].name} TEXT="a fine film"         # what the student answers
  make export RUN={runs[0].name} ARGS="to=my-student"        # files for transformers and onnxruntime
  make task-distill PRESET=compact TASK=mine DATA=my.csv ARGS="text_columns=text label_column=label"   # your own rows""")
    )


@command(Options, makes_run=True)
def general_distill(given: dict[str, str]) -> None:
    """Stage 1: train a general student on unlabelled text, from an un-tuned teacher.

    Example: make general-distill CORPUS=text.txt ARGS="general.epochs=3"
    """
    make(given, general_stages)


@command(Options, makes_run=True)
def task_distill(given: dict[str, str]) -> None:
    """Stage 2: train a student of a task, and first what is missing, such as the general student.

    Example: make task-distill TASK=reviews DATA=reviews.csv ARGS="text_columns=review label_column=stars"

    Needs task=. With a data file, text_columns= and label_column= say what is in it; files in SQuAD's layouts (questions
    about a text) need neither.
    """
    make(given, task_stages)


@command(Options, makes_run=True)
def glue(given: dict[str, str]) -> None:
    """Stage 2 for the tasks of GLUE, one after another, with one table of all.

    Example: make glue DATA=path/to/glue PRESET=tinybert4 SEEDS="1 2 3"

    data= is the directory that holds GLUE's directories (CoLA, MRPC, ...). Those without train.tsv are left out. Without
    data=, all nine tasks are read from the hub. task="mrpc rte" takes these tasks alone. Each task is a run, named
    PRESET-TASK or RUN-TASK.
    """
    tasks = _of_glue(given)
    for options in tasks.values():  # what is refused is refused before the first task begins
        task_stages(load("small", options))
    runs = {task: make(options, task_stages) for task, options in tasks.items()}
    print(f"\n{tasks_table(runs)}")


def _of_glue(given: dict[str, str]) -> dict[str, dict[str, str]]:
    """Task of GLUE -> the options of its run."""
    chosen, tasks = given.get("task", "").replace(",", " ").split(), {}
    for task, data in task_directories(given.get("data", ""), chosen).items():
        run = {"run": f"{given['run']}-{task}"} if given.get("run") else {}
        tasks[task] = given | {"task": task, "data": data} | run
    return tasks


@command(Options, makes_run=True)
def augment(given: dict[str, str]) -> None:
    """Augment the training rows of a task, and show samples.

    Example: make augment TASK=rotten-tomatoes ARGS="augmentation.variants=20"

    Needs task=. The options under "augmentation." are about this.
    """
    make(given, augment_stages)


@command(Options, makes_run=True)
def recipe(given: dict[str, str]) -> None:
    """Make a published system and what it is compared with, over several seeds.

    Example: make recipe NAME=continuation-kd ARGS="base.training.epochs=5"

    Needs name=, of a recipe of this project (`make recipes` lists them) or a .yaml file. The options below can
    be changed, and any line of the recipe by its path.
    """
    make_recipe(given)


@command(Settings)
def recipes(given: Settings) -> None:
    """List the recipes.

    Example: make recipes
    """
    print(tabulate(known_recipes().items(), tablefmt="plain", maxcolwidths=[None, 80]))


@command(OfRun)
def evaluate(given: OfRun) -> None:
    """Show the tables of a finished run.

    Example: make evaluate RUN=demo
    """
    print(results_table(read_run_record(_finished(given.run))))


@dataclass
class ReportSettings(OfRun):
    to: str = option("", "the HTML file to write; if left out: runs/RUN/report.html")


@command(ReportSettings)
def report(given: ReportSettings) -> None:
    """Write a finished run's HTML report.

    Example: make report RUN=demo
    """
    from pipeline.report.page import write_report  # matplotlib takes a second to start

    run = read_run_record(_finished(given.run))
    target = Path(given.to or run.path / "report.html")
    write_report(run, [other for other in _evaluated() if other.name != run.name], target)
    print(f"the report of run {run.name} is in {target}: open it in any browser")


@dataclass
class CompareSettings(Settings):
    runs: str = option(
        "",
        "names of two runs or more, as in runs='demo demo-full'; those with spaces: runs='one run,another'",
    )
    to: str = option("", "the HTML file to write; if left out: runs/compare.html")


@command(CompareSettings)
def compare(given: CompareSettings) -> None:
    """Show finished runs side by side, as a table and as a page.

    Example: make compare RUNS="demo demo-full"
    """
    from pipeline.report.page import write_comparison

    names = _names(given.runs)
    if len(set(names)) < 2:
        raise UserError(f"runs={given.runs!r} must name two runs or more, such as runs='demo demo-full'")
    runs = [read_run_record(_finished(name)) for name in dict.fromkeys(names)]
    target = Path(given.to or RUNS / "compare.html")
    write_comparison(runs, target)
    print(f"{runs_table(runs)}\nthe comparison is in {target}: open it in any browser")


@dataclass
class ParetoSettings(Settings):
    task: str = option("", "name of a task; if left out: every task")


@command(ParetoSettings)
def pareto(given: ParetoSettings) -> None:
    """Compare the cost and quality of all models of all finished runs, task by task.

    Example: make pareto TASK=rotten-tomatoes
    """
    from pipeline.report.pareto import write_pareto

    groups: list[list[RunRecord]] = []
    left_out: list[str] = []
    for run in _evaluated(left_out.append):
        if given.task in ("", run.task.name):
            like = next((group for group in groups if group[0].same_rows(run)), None)
            groups.append([run]) if like is None else like.append(run)
    for reason in left_out:
        print(f"left out: {reason}")
    if not groups:
        of_task = f"of task {given.task} " if given.task else ""
        raise UserError(
            f"no {'other ' if left_out else ''}finished run {of_task}under {RUNS}/: make one first"
        )
    for i, group in enumerate(groups, 1):
        name = re.sub(r"[^\w.-]+", "-", Path(group[0].task.name).stem)
        target = RUNS / f"pareto-{name}{f'-{i}' if len(groups) > 1 else ''}"
        print(f"{write_pareto(group, target)}\n\ndrawn in {target}.png\n")


@dataclass
class SubmissionSettings(Settings):
    runs: str = option("", "names of runs of GLUE tasks; if left out: all that answered test rows")
    to: str = option("", "the zip file to write; if left out: runs/glue_submission.zip")


@command(SubmissionSettings)
def submission(given: SubmissionSettings) -> None:
    """Put the answers of GLUE runs to the unlabelled test rows into one file for GLUE's site.

    Example: make submission RUNS="tinybert4-cola tinybert4-mnli"

    A run answers them where its data directory has GLUE's test.tsv.
    """
    from pipeline.deploy.submission import FILES, NAME, join_submissions

    runs = [_finished(name) for name in _names(given.runs)]
    runs = runs or [path.parent for path in sorted(RUNS.glob(f"*/{NAME}"))]
    for run in runs:
        if not (run / NAME).is_file():
            raise UserError(
                f"run {run.name!r} has no answers to test rows of GLUE: its data must be a directory with test.tsv"
            )
    if not runs:
        raise UserError(
            f"no finished run under {RUNS}/ has answers to test rows of GLUE: make one with data=GLUE/TASK first"
        )
    target = Path(given.to or RUNS / NAME)
    by = join_submissions(runs, target)
    rows = [(file, task, by.get(file, "missing")) for file, task in FILES.items()]
    print(tabulate(rows, ["file", "task", "run"]))
    missing = [file for file in FILES if file not in by]
    print(
        f"the submission is in {target}{f', without {len(missing)} of {len(FILES)} files' if missing else ''}"
    )


@dataclass
class ExportSettings(OfRun):
    to: str = option("", "directory to write, which must not exist; if left out: runs/RUN/export")
    onnx: bool | list[Literal["int8", "int8_static", "fp16"]] = option(
        True,
        "ONNX files: true (fp32, int8), false, or fp32 with some of: int8,int8_static,fp16",
    )
    max_changed: Annotated[float, Ge(0), Le(1)] = option(
        0.02,
        "fraction of answers that a smaller ONNX file may change; above it, layers stay in fp32",
    )
    license: str = option("", "the licence that the model card states, such as apache-2.0")
    push: str = option("", "also upload it to this private repository of the hub: OWNER/NAME")
    promise: Annotated[float, Ge(0), Lt(1)] = option(
        0.0,
        "also find from which confidence on the student agrees at least this often, such as 0.95; 0: do not",
    )
    agree_with: Literal["teacher", "gold"] = option(
        "teacher", "whose labels the promise is about: teacher or gold"
    )


@command(ExportSettings)
def export(given: ExportSettings) -> None:
    """Write the finished student for transformers and onnxruntime, with a model card.

    Example: make export RUN=demo ARGS="to=my-student"
    """
    from pipeline.deploy import hub

    run = read_run_record(_finished(given.run))
    target = Path(given.to or run.path / "export")
    if target.exists():
        raise UserError(f"{target} exists: give another to=DIR, or remove it")
    if given.push:
        hub.check_push(given.push)
    from pipeline.deploy import cascade, export, formats

    if given.promise:
        cascade.check_promise(run, given.agree_with)
    if given.onnx and not export.other_than_text(run):
        print("writing ONNX files; each is compared with PyTorch on the run's rows, and timed", flush=True)
    measured, promised = export.export(
        run, target, given.onnx, given.max_changed, given.license, given.promise, given.agree_with
    )
    if promised:
        print(promised)
    if measured:
        print(f"{formats.formats_table(run, measured)}\n")
    elif given.onnx and (read := export.other_than_text(run)):
        print(f"no ONNX files: those are for models of text, and this one reads {read}")
    print(f"the student is in {target}: {export.how_to_load(target)}")
    if given.push:
        print(f"it is on the hub, private: {hub.push(target, given.push)}")


@dataclass
class PredictSettings(OfRun):
    model: str = option("", "directory of an export, instead of run=")
    text: str | None = option(
        None,
        "a text, an image's path or a node's id; if left out: file=, or the lines of standard input",
    )
    text_b: str | None = option(None, "the second text, where the task takes pairs")
    file: str = option("", "a CSV, TSV, JSON, JSONL or Parquet file with a text in each row")
    to: str = option("", "the .csv, .tsv or .jsonl file to write; if left out: standard output")
    ask_teacher: bool = option(
        False, "the teacher of run= answers the rows for which the export in model= is below its threshold"
    )
    text_columns: list[str] = option([], "text columns of the file; if left out: those of the run")
    encoding: str = option("", "encoding of the file, such as windows-1251; if left out: recognised")
    delimiter: str = option("", "separator of the file: comma, semicolon, tab, pipe; if left out: recognised")


@command(PredictSettings)
def predict(given: PredictSettings) -> None:
    """Show what the student predicts for a text, a file, or the lines of standard input.

    Example: make predict RUN=demo TEXT="a fine film"
    """
    run = None if given.model else read_run_record(_finished(given.run))
    if given.to and not given.file:
        raise UserError(f"to={given.to} is for the predictions of a file: give file=FILE")
    if given.file and (given.text is not None or given.text_b is not None):
        raise UserError("text= and file= are two inputs: give one")
    if given.file:  # before a model is loaded
        check_file(Path(given.file), "give a table of texts", "file")
    from pipeline.deploy import classifier

    if run:
        student = classifier.Classifier.of_run(run, run.about.student)
    else:
        student = classifier.Classifier.of_directory(Path(given.model))
    if given.ask_teacher:
        from pipeline.deploy.cascade import teacher_of

        if not given.model:
            raise UserError(
                "the student of a run has no threshold; give model=DIR of an export with one", "ask_teacher"
            )
        student.teacher = teacher_of(read_run_record(_finished(given.run)), student)
    with contextlib.suppress(BrokenPipeError):  # as in `predict ... | head`
        if given.file:
            path, target = Path(given.file), Path(given.to) if given.to else None
            how = {"encoding": given.encoding, "delimiter": given.delimiter}
            columns = tuple(given.text_columns) or classifier.text_columns(student.kind, run, path, **how)
            rows = classifier.predict_table(student, path, columns, target, **how)
            if target:
                print(f"the predictions for {rows:,} rows are in {target}")
        elif given.text is not None:
            row = [text for text in (given.text, given.text_b) if text is not None]
            classifier.print_predictions(student, [student.check(row, "text=")])
        else:
            if isinstance(sys.stdin, TextIOWrapper):  # which in some locales takes any bytes for text
                sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # without a byte order mark
            classifier.predict_lines(student, sys.stdin)
        sys.stdout.flush()


@dataclass
class LabelSettings(Settings):
    task: str = option("", "a name for the file of the answers; if left out: that of the data file")
    data: str = option("", "a CSV, TSV, JSON, JSONL or Parquet file with a text in each row")
    text_columns: list[str] = option(["text"], "one or two text columns of the file")
    labels: list[str] = option([], "the labels that may be answered, as in labels=positive,negative")
    to: str = option(
        "", "the .jsonl file of the answers, which grows; if left out: TASK-answers.jsonl beside the data"
    )
    base_url: str = option(
        "", "address of the server, such as http://localhost:8000/v1; if left out: OPENAI_BASE_URL"
    )
    model: str = option("", "name of the model on the server")
    prompt: str = option(
        "", "a text file with {text}, {text_b} for pairs, and {labels}; if left out: a short question"
    )
    samples: Annotated[int, Ge(1)] = option(1, "answers for each text: several at temperature 1, or one at 0")
    logprobs: bool = option(True, "with samples=1, take the labels' probabilities if the server gives them")
    concurrency: Annotated[int, Ge(1)] = option(8, "requests at a time")
    retries: Annotated[int, Ge(0)] = option(6, "how often a request that fails is sent again")
    timeout: Annotated[float, Gt(0)] = option(60.0, "seconds until a request counts as failed")
    max_requests: Annotated[int, Ge(0)] = option(0, "stop asking after this many requests; 0: no limit")
    max_tokens: Annotated[int, Ge(0)] = option(0, "stop asking after this many tokens; 0: no limit")
    encoding: str = option("", "encoding of the file, such as windows-1251; if left out: recognised")
    delimiter: str = option("", "separator of the file: comma, semicolon, tab, pipe; if left out: recognised")


@command(LabelSettings)
def label(given: LabelSettings) -> int:
    """Ask a language model behind OpenAI's chat protocol for the labels of texts.

    Example: make label DATA=texts.csv ARGS="labels=positive,negative model=NAME base_url=http://localhost:8000/v1"

    The key is read from the environment, OPENAI_API_KEY. If the command is stopped, run it again: it asks only for the
    texts that have no answer yet. The exit status is 1 while such texts are left.
    """
    if importlib.util.find_spec("openai") is None:
        raise UserError("the package openai is missing", package="openai")
    from pipeline.label import command as labelling
    from pipeline.label.endpoint import Endpoint

    if not given.data or not given.model:
        raise UserError(f"{'data' if not given.data else 'model'}= is missing: give data=FILE and model=NAME")
    path, columns = Path(given.data), tuple(given.text_columns)
    if not 1 <= len(columns) <= 2:
        raise UserError(f"{len(columns)} columns; give one, or two for pairs", "text_columns")
    target = (
        Path(given.to)
        if given.to
        else path.with_name(f"{slug(given.task or path.name.split('.')[0])}-answers.jsonl")
    )
    if target.suffix != ".jsonl" or target.resolve() == path.resolve():
        raise UserError(
            f"{target}: answers are written to a .jsonl file of their own; give another name", "to"
        )
    labels = labelling.check_labels(given.labels)
    endpoint = Endpoint(
        labelling.base_url(given.base_url), given.model, labels,
        labelling.prompt_of(given.prompt, len(columns) == 2, labels), given.samples, given.logprobs, given.concurrency,
        given.retries, given.timeout, given.max_requests, given.max_tokens,
    )  # fmt: skip
    texts = labelling.texts_of(path, columns, given.encoding, given.delimiter)
    return 0 if labelling.label_table(endpoint, texts, target) else 1


@dataclass
class ServeSettings(OfRun):
    port: Annotated[int, Ge(1), Le(65535)] = option(8000, "port of the page, on this machine alone")


@command(ServeSettings)
def serve(given: ServeSettings) -> None:
    """Serve a page on this machine with teacher and student side by side.

    Example: make serve RUN=demo ARGS="port=8000"
    """
    run = read_run_record(_finished(given.run))
    from pipeline.deploy.serve import serve_run

    serve_run(run, given.port)


@command(Options)
def doctor(given: dict[str, str]) -> int:
    """Check the machine, what a run needs of it, and a run's directory; exits with 1 if anything is wrong.

    Example: make doctor TASK=rotten-tomatoes

    Takes the options of task-distill, or with name= those of recipe; command=general-distill, glue, augment or demo
    names another command. It does what a run's stage `check` would: it downloads what is on the hub, and tokenizes
    corpus and training rows into a cache that the run then reads. run= alone checks the directory of that run; without
    options it looks at the machine alone.
    """
    from pipeline.cli import doctor, run_needs

    of_run = given.keys() <= {"run", "preset", "seeds"}
    runs = [(*of_seed, declare) for made, declare in to_make(given) for of_seed in by_seed(made)]
    report = doctor.Report()
    with report.findings("machine"):
        doctor.check_machine(report, RUNS)
    for options, suffix, declare in runs:
        name = options.run
        if not of_run:
            with report.findings("plan"):
                spec = declare(options)
                name = spec.name
                run_needs.check_needs(report, RUNS / (name + suffix), spec.declare, options)
        run = RUNS / f"{name}{suffix}"
        if of_run and name and not run.is_dir():
            raise _no_such_run(run.name)
        if name and run.is_dir():
            with report.findings("run"):
                doctor.check_run(report, run)
    print(f"\n{report.wrong} wrong" if report.wrong else "\nnothing is wrong")
    return 1 if report.wrong else 0


def to_make(given: Mapping[str, str]) -> list[tuple[Options, Callable[[Options], RunSpec]]]:
    """What `doctor` is asked about: the options of each run that a command would make, with the function that declares its stages.

    Args:
        given: the options; `command` names the command, if it is neither `recipe` (which has `name`) nor `task-distill`.
    """
    given = dict(given)
    command = given.pop("command", "recipe" if "name" in given else "task-distill")
    if command == "recipe":
        recipe, options = read_recipe(given)
        return [(options, partial(recipe_stages, recipe))]
    if command == "glue":
        return [(load("small", of_task), task_stages) for of_task in _of_glue(given).values()]
    declare = {
        "demo": task_stages,
        "general-distill": general_stages,
        "task-distill": task_stages,
        "augment": augment_stages,
    }
    if command not in declare:
        raise UserError(f"command={command} makes no run; give {', '.join(declare)}, glue or recipe")
    return [(load("small", (DEMO if command == "demo" else {}) | given), declare[command])]


def _names(runs: str) -> list[str]:
    """The names of runs that stand between commas or, without a comma, between spaces."""
    return [name.strip() for name in runs.split(",") if name.strip()] if "," in runs else runs.split()


def _finished(name: str) -> Path:
    """The directory of a finished run."""
    check_run(name)
    run = RUNS / name
    if not (run / "options.json").is_file():
        raise _no_such_run(name)
    if "evaluate" not in read_json(run / "options.json").get("stages", ["evaluate"]):
        raise UserError(
            f"run {name!r} has no results: its command (general-distill or augment) scores no models"
        )
    if not read_json(run / "results.json"):
        raise UserError(f"run {name!r} is not finished: run its command again to resume it")
    return run


def _evaluated(left_out: Callable[[str], object] = lambda reason: None) -> Iterator[RunRecord]:
    """All finished runs that can be read; `left_out` hears why another one cannot."""
    for results in sorted(RUNS.glob("*/results.json")):
        try:
            yield read_run_record(results.parent)
        except UserError as error:
            left_out(str(error))


def _no_such_run(name: str) -> UserError:
    known = ", ".join(sorted(p.parent.name for p in RUNS.glob("*/options.json"))) or "none yet"
    return UserError(f"there is no run {name!r} under {RUNS}/: there are {known}")
