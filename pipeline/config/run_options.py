"""The options of a run: what to distil, into what, on what; and the presets that set them."""

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from checkpoints.errors import UserError
from pipeline.config.schema import CONFIG, arguments, read_yaml, updated
from stages.tasks.tables import SUFFIXES
from stages.training.options import (
    Answers,
    Architecture,
    Augmentation,
    Baseline,
    General,
    Intermediate,
    Job,
    MaskedLM,
    NotNegative,
    Prediction,
    Tuning,
    option,
)

PRESETS = Path(__file__).parent / "presets"

TASK_STAGES = ("tuning", "intermediate", "prediction", "finetuning")
"""The groups of options that `max_length` sets."""


@dataclass
class Options:
    """What to distil, into what, on what."""

    __pydantic_config__ = CONFIG

    preset: str = option(
        "small", "settings to start from: small, layers, compact, tinybert4, tinybert6, or a .yaml file"
    )
    task: str = option("", "a GLUE task, rotten-tomatoes, a task file (.yaml), or any name with data=FILE")
    data: str = option(
        "", "a CSV, TSV, JSON(L) or Parquet file, or a directory; if left out: the task's own rows"
    )
    text_columns: list[str] = option([], "the one or two text columns of a data file: text_columns=a,b")
    label_column: str = option("", "label column of a data file, or of a table of answers without data=")
    label_columns: list[str] = option(
        [], "names of columns with 1 or 0, one for each of several labels a row, instead of label_column"
    )
    label_separator: str = option(
        "", "separator between several labels in a cell, such as , or | (lists need none)"
    )
    spans_column: str = option(
        "",
        "column of the spans of entities in a text: a start, an end and a kind each, instead of label_column",
    )
    tag_scheme: Literal["", "iob2", "iob1"] = option(
        "", "how .conll files mark entities: iob2 (B- begins each) or iob1 (I- does, too); if left out: iob2"
    )
    columns: list[str] = option([], "names of the columns of a data file without a header line")
    labels: list[str] = option(
        [], "class names of a data file in order, such as no,yes; if left out: those in it, sorted"
    )
    positive_label: str = option(
        "", "of the two classes of a data file, the one that F1 is computed for; if left out: the second"
    )
    unfit_rows: Literal["refuse", "leave_out"] = option(
        "refuse",
        "rows, or a teacher's answers, that cannot be used or matched: refuse, or leave_out (counted)",
    )
    max_length: NotNegative = option(
        0, "tokens at which the task stages truncate texts; a stage's own max_length wins"
    )
    rows: NotNegative = option(0, "training rows to use, drawn from the seed, for a quick try; 0: all")
    encoding: str = option("", "encoding of a data file, such as windows-1251; if left out: recognised")
    delimiter: str = option(
        "", "separator of a data file: comma, semicolon, tab, pipe or a character; if left out: recognised"
    )
    windows: Literal["", "mean", "max"] = option(
        "",
        "pool the logits of the windows of texts above max_length: mean, max; if left out: truncate them",
    )
    metric: str = option("", "metric that chooses the best step on dev, if the task has several")
    corpus: str = option(
        "packaged", "unlabelled text: packaged, files (txt, gz, jsonl, parquet), or a hub data set"
    )
    teacher: str = option(
        "packaged",
        "packaged, a local directory, or a hub name (name@revision pins it); or a table of answers to texts",
    )
    teacher_labels: list[str] = option(
        [], "the teacher's class names in its own order, if its config has LABEL_0 ..."
    )
    accept_teacher: bool = option(
        False, "accept a teacher no better than the best constant answer, or on another scale of scores"
    )
    allow_bin: bool = option(False, "also load weights in torch's .bin format (tensors only)")
    student: str = option(
        "",
        "general student: packaged, directory, hub name, run:NAME, teacher-layers (every k-th); none: made",
    )
    seed: NotNegative = option(1, "seed of initialisation, data order and dropout")
    seeds: list[NotNegative] = option([], "one run for each seed, then mean and spread: seeds='1 2 3'")
    run: str = option("", "name of the run under runs/; if left out: <preset>-<task>")
    augment: bool = option(False, "train the task stages on augmented rows")
    baselines: bool | Literal["random", "general", "layers"] = option(
        False,
        "baselines without a teacher, from: random, general, layers; true: random and as the student began",
    )
    reuse: bool = option(True, "reuse stages of other runs with equal inputs and options")
    restart: bool = option(False, "discard half-done stages and start them again")
    architecture: Architecture = field(default_factory=Architecture)
    tuning: Tuning = field(default_factory=Tuning)
    general: General = field(default_factory=General)
    masked_lm: MaskedLM = field(default_factory=MaskedLM)
    augmentation: Augmentation = field(default_factory=Augmentation)
    intermediate: Intermediate = field(default_factory=Intermediate)
    prediction: Prediction = field(default_factory=Prediction)
    finetuning: Baseline = field(default_factory=Baseline)
    answers: Answers = field(default_factory=Answers)
    job: Job = field(default_factory=Job)

    @property
    def by_answers(self) -> bool:
        """Whether the teacher is a table of answers: a model is a directory or a name on the hub."""
        path = Path(self.teacher)
        return path.is_file() or self.teacher.lower().endswith(SUFFIXES) and not path.is_dir()

    @property
    def encoder(self) -> str:
        """The teacher of the layers."""
        return self.answers.encoder if self.by_answers else self.teacher


@dataclass
class Preset:
    """A file of options.

    Attributes:
        where: its name, the prefix of messages.
        settings: option -> value.
        tasks: task -> the options that are set for it alone.
    """

    where: str
    settings: dict[str, Any]
    tasks: dict[str, dict[str, Any]]


def load(preset: str, given: Mapping[str, Any] | Iterable[str], recipe: Preset | None = None) -> Options:
    """The options of a run. Later ones win: preset, what it sets for the task, the same of the recipe, what is given.

    Args:
        preset: the preset, where `given` names none.
        given: name -> value, or the arguments of a command.

    Raises:
        UserError: an unknown preset or option, or values out of their limits.
    """
    given = dict(given if isinstance(given, Mapping) else arguments(given))
    preset = str(given.setdefault("preset", preset))
    presets, recipes = _presets(preset), [recipe] if recipe else []
    of_files = [file.settings["task"] for file in (*presets, *recipes) if file.settings.get("task")]
    task = str(given.get("task") or (of_files or [""])[-1]).lower().replace("_", "-")
    task = task.replace("sst2", "sst-2").replace("stsb", "sts-b")
    options = Options()
    for files in (presets, recipes):
        for file in files:
            options = updated(options, _with_lengths(file.settings), file.where)
        for file in files:
            options = updated(options, _with_lengths(file.tasks.get(task, {})), file.where)
    options = updated(options, _with_lengths(given))
    _check_together(options)
    check_run(options.run)
    return options


def _with_lengths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose `max_length` stands for each task stage to which they give none of its own."""
    length = settings.get("max_length")
    if str(length or 0) == "0":
        return dict(settings)
    return {"max_length": length} | {f"{stage}.max_length": length for stage in TASK_STAGES} | dict(settings)


def without_student(options: Options, why: str) -> Options:
    """The options of a command that begins from no given student, without one that the preset has for those that do.

    Args:
        why: what the command does instead, for the error.

    Raises:
        UserError: the student is not the preset's; the user has given it.
    """
    if options.student != load(options.preset, {}).student:
        raise UserError(f"{options.student!r} is not used: {why}; leave it out", argument="student")
    return replace(options, student="")


def as_preset(where: str, settings: dict[str, Any]) -> Preset:
    """The settings of a file, with those of single tasks (`tasks: {mrpc: {option: value}}`) apart."""
    tasks = settings.get("tasks") or {}
    if not isinstance(tasks, dict) or not all(isinstance(s, dict) for s in tasks.values()):
        raise UserError(f"{where}tasks must hold `task: {{option: value}}` lines")
    return Preset(where, {name: value for name, value in settings.items() if name != "tasks"}, tasks)


def _presets(name: str, extended: tuple[Path, ...] = ()) -> list[Preset]:
    """A preset, after those that it extends."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{Path(name).name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"unknown preset {name!r}: there are {known}, or give a .yaml file")
    if path in extended:
        raise UserError(
            f"preset {name!r} extends itself, or one that leads back to it: remove a line `extends:`"
        )
    settings = read_yaml(path)
    parent = settings.pop("extends", None)
    before = _presets(str(parent), (*extended, path)) if parent else []
    return [*before, as_preset(f"{path.name}: ", settings)]


def _check_together(options: Options) -> None:
    """Check limits that involve several options, and report all violations at once."""
    if broken := list(_broken_limits(options)):
        raise UserError("; ".join(broken))


def _broken_limits(options: Options) -> Iterator[str]:
    a, g, j = options.architecture, options.augmentation, options.job
    layers = options.student == "teacher-layers"
    if a.width % a.heads:
        yield f"architecture.width={a.width} must be a multiple of architecture.heads={a.heads}"
    if g.repredict and g.masks_per_pass != 1:
        yield f"augmentation.repredict=true needs augmentation.masks_per_pass=1, not {g.masks_per_pass}"
    if options.baselines == "general" and layers:
        yield "baselines=general needs a general student, which student=teacher-layers has not: baselines=layers"
    if options.baselines == "layers" and not layers:
        student = options.student or "a general student"
        yield f"baselines=layers needs student=teacher-layers, not {student}: baselines=general"
    if options.intermediate.projection_init == "general" and layers:
        yield (
            "intermediate.projection_init=general needs a general student, which student=teacher-layers has not; leave it out"
        )
    for name, group in (("general", options.general), ("masked_lm", options.masked_lm)):
        if group.patience or group.evaluate_every:
            yield (
                f"{name}.patience={group.patience} and {name}.evaluate_every={group.evaluate_every} must be 0: the stage "
                "has no dev rows"
            )
    if j.precision == "fp16" and j.zero:
        yield f"job.precision=fp16 needs job.zero=0, not {j.zero}"
    if j.skip_bad_batches and j.zero:
        yield f"job.skip_bad_batches=true needs job.zero=0, not {j.zero}"
    if j.monitor in ("tensorboard", "wandb") and not _is_installed(j.monitor):
        install = f"{sys.executable} -m pip install {j.monitor}"
        yield f"job.monitor={j.monitor} needs the package {j.monitor}: {install}"


def _is_installed(package: str) -> bool:
    """Whether Python can import it. A directory of that name, such as wandb leaves, is not a package."""
    found = importlib.util.find_spec(package)
    return bool(found and found.origin)


def check_run(name: str) -> None:
    """Check that a run's name does not lead out of runs/."""
    if name.startswith(".") or not all(c.isalnum() or c in "._- " for c in name):
        raise UserError(
            f"run={name!r}: letters, digits, '.', '_', '-' and spaces only, so that it stays under runs/"
        )
