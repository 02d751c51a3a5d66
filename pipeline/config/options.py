"""Every option, defined once: its name, default, unit and source. `--help` and the docs come from here."""

import dataclasses
import difflib
import importlib.util
import math
import sys
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from stages.tasks.text import parse_yaml
from stages.training.options import (
    Architecture,
    Augmentation,
    Baseline,
    Distilling,
    General,
    Job,
    MaskedLM,
    Prediction,
    Pretraining,
    Training,
    Tuning,
    option,
)

PRESETS = Path(__file__).parent / "presets"


@dataclass
class Options:
    """What to distil, into what, on what."""

    task: str = option("", "a GLUE task, rotten-tomatoes, a task file (.yaml), or any name with data=FILE")
    data: str = option(
        "", "directory in GLUE's layout, or a CSV, TSV or JSONL file; none: the hub or the package"
    )
    text_columns: list = option([], "names of the one or two text columns of a data file")
    label_column: str = option("", "name of the label column of a data file")
    metric: str = option("", "metric that dev selection uses, where the task has several")
    corpus: str = option(
        "packaged", "unlabelled text: packaged, files (txt, gz, jsonl, parquet), or a hub data set"
    )
    teacher: str = option("packaged", "packaged, a local directory, or a hub name (name@revision pins it)")
    teacher_labels: list = option(
        [], "the teacher's class names in its own order, if its config has LABEL_0 ..."
    )
    accept_teacher: bool = option(False, "go on with a given teacher that does no better than a constant")
    allow_bin: bool = option(False, "load weights from others in torch's .bin form (tensors only)")
    student: str = option(
        "", "a general student: directory or hub name; teacher-layers: every k-th; none: made"
    )
    seed: int = option(1, "seed of initialisation, data order and dropout")
    run: str = option("", "name of the run under runs/; none: <preset>-<task>")
    augment: bool = option(False, "train the task stages on augmented rows")
    baselines: bool = option(False, "also fine-tune the same student without a teacher")
    reuse: bool = option(True, "take stages with equal inputs and options from other runs")
    restart: bool = option(False, "begin half-done stages anew when their options changed")
    architecture: Architecture = field(default_factory=Architecture)
    tuning: Tuning = field(default_factory=Tuning)
    general: General = field(default_factory=General)
    masked_lm: MaskedLM = field(default_factory=MaskedLM)
    augmentation: Augmentation = field(default_factory=Augmentation)
    intermediate: Distilling = field(default_factory=Distilling)
    prediction: Prediction = field(default_factory=Prediction)
    finetuning: Baseline = field(default_factory=Baseline)
    job: Job = field(default_factory=Job)


def load(preset: str, overrides: list[str], recipe: dict[str, Any] | None = None) -> Options:
    """Options from a preset, a recipe, the preset's settings for the task, and `key=value` overrides, in this order.

    Raises:
        UserError: an unknown preset or option, or a value of the wrong kind.
    """
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{Path(preset).name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"unknown preset {preset!r}: there are {known}, or give a .yaml file")
    settings = read_yaml(path)
    tasks = settings.pop("tasks", None) or {}
    if not isinstance(tasks, dict) or not all(isinstance(s, dict) for s in tasks.values()):
        raise UserError(f"{path.name}: tasks must hold `task: {{option: value}}` lines")
    options = Options()
    fill(options, settings, f"{path.name}: ")
    fill(options, recipe or {}, "recipe: ")
    given = dict(_parse(text) for text in overrides)
    name = _canonical(str(given.get("task") or options.task))
    for key, value in tasks.get(name, {}).items():
        _set(options, str(key), value, f"{path.name}: ")
    for key, value in given.items():
        _set(options, key, value)
    _check(options)
    return options


def describe(group: Any = Options, prefix: str = "") -> list[tuple[str, str, str]]:
    """(name, default, help) of every option, in the order of definition."""
    rows = []
    for entry in fields(group):
        if is_dataclass(entry.type):
            rows += describe(entry.type, f"{prefix}{entry.name}.")
        else:
            default = entry.default if entry.default is not dataclasses.MISSING else entry.default_factory()
            rows.append((prefix + entry.name, show(default), entry.metadata["help"]))
    return rows


def show(value: Any) -> str:
    """A value as the help shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value in ("", None, []) else str(value)


def _canonical(task: str) -> str:
    return task.lower().replace("_", "-").replace("sst2", "sst-2").replace("stsb", "sts-b")


def read_yaml(path: Path) -> dict:
    """The `option: value` lines of a file. Raises UserError where it holds something else."""
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold `option: value` lines")
    return settings


def _parse(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(
            f"{text!r} is no option: write key=value, for example general.epochs=2 (--help lists all)"
        )
    return key.strip(), parse_yaml(value, f"the value of {text!r}")


def fill(target: Any, settings: dict, where: str = "", prefix: str = "") -> None:
    """Set options of a group by name. Raises UserError, which begins with `where`, for what it does not have."""
    for key, value in settings.items():
        group = _group(target, str(key))
        if group and isinstance(value, dict):
            fill(group, value, where, f"{prefix}{key}.")
        else:
            _set(target, str(key), value, where, prefix)


def _group(options: Any, name: str) -> Any:
    """The group of options of that name, or None."""
    groups = [entry.name for entry in fields(options) if is_dataclass(entry.type)] if options else []
    return getattr(options, name) if name in groups else None


def _set(options: Any, key: str, value: Any, where: str = "", prefix: str = "") -> None:
    target, parts = options, key.split(".")
    for part in parts[:-1]:
        target = _group(target, part)
    entry = next((f for f in fields(target) if f.name == parts[-1]), None) if target else None
    if entry is None or is_dataclass(entry.type):
        names = [name for name, _, _ in describe()]
        close = difflib.get_close_matches(prefix + key, names, 3, 0.5)
        close += [n for n in names if n.split(".")[-1] == parts[-1] and n not in close][:3]
        hint = f"; did you mean {' or '.join(close)}?" if close else "; --help lists all"
        raise UserError(f"{where}unknown option {prefix + key!r}{hint}")
    setattr(target, parts[-1], _convert(value, entry.type, where + prefix + key))


def _convert(value: Any, kind: Any, name: str) -> Any:
    kind = typing.get_origin(kind) or kind
    if kind is Any:
        return value
    if kind is str and (
        value is None or isinstance(value, (int, float, str)) and not isinstance(value, bool)
    ):
        return "" if value is None else str(value)
    if kind is list:
        values = value if isinstance(value, list) else str(value or "").split(",")
        return [str(v) for v in values if v != ""]
    if kind is bool and isinstance(value, bool):
        return value
    if kind is dict and (not value or isinstance(value, dict)):
        return {key: _numbers(key, values, name) for key, values in (value or {}).items()} or None
    if kind in (int, float) and not isinstance(value, bool):
        try:  # YAML reads 1e-4 as text
            number = float(value)
            if math.isfinite(number) and (kind is float or number == int(number)):
                return kind(number)
        except (TypeError, ValueError, OverflowError):
            pass
    raise UserError(
        f"{name}={value!r} is not {'true or false' if kind is bool else 'of type ' + kind.__name__}"
    )


def _numbers(key: str, values: Any, name: str) -> list[float | int]:
    """The values of a grid's line, as numbers: whole ones but for the learning rate."""
    kinds = {"learning_rate": float, "batch_size": int, "epochs": int}
    if key not in kinds or not isinstance(values, list) or not values:
        raise UserError(f"{name}: {key}: must be one of {', '.join(kinds)} with a list of values to try")
    numbers = [_convert(value, kinds[key], f"{name}: {key}") for value in values]
    if min(numbers) <= 0:
        raise UserError(f"{name}: {key}: {min(numbers)} must be above 0")
    return numbers


def _check(o: Options) -> None:
    """Limits that hold whatever the data; all that are broken are told at once."""
    wrong = []

    def need(holds: bool, message: str) -> None:
        if not holds:
            wrong.append(message)

    a = o.architecture
    need(min(a.layers, a.width, a.heads, a.feed_forward) > 0, "architecture: every size must be above 0")
    need(a.heads < 1 or a.width % a.heads == 0,
         f"architecture.width={a.width} must be a multiple of architecture.heads={a.heads}")  # fmt: skip
    for name in ("architecture", "tuning"):
        dropout = getattr(o, name).dropout
        need(0 <= dropout < 1, f"{name}.dropout={dropout} must be from 0 to below 1")
    for name in ("tuning", "general", "masked_lm", "intermediate", "prediction", "finetuning"):
        wrong += _wrong_of_training(getattr(o, name), name)
    for name in ("general", "intermediate"):
        s = getattr(o, name)
        named = s.layer_map in ("uniform", "last", "first")
        need(named or isinstance(s.layer_map, list) and all(isinstance(layer, int) for layer in s.layer_map),
             f"{name}.layer_map={s.layer_map!r} must be uniform, last, first or a list of layers")  # fmt: skip
        need(
            s.projection in ("per_layer", "shared"),
            f"{name}.projection={s.projection!r}: per_layer or shared",
        )
    need(
        o.masked_lm.mlm_probability != 0,
        "masked_lm.mlm_probability=0 masks nothing: it must be above 0",
    )
    for name in ("masked_lm", "augmentation"):
        need(getattr(o, name).seed >= 0, f"{name}.seed={getattr(o, name).seed} must not be negative")
    g = o.augmentation
    need(0 <= g.p <= 1, f"augmentation.p={g.p} must be from 0 to 1")
    for name in ("variants", "candidates", "masks_per_pass", "min_distance"):
        need(getattr(g, name) > 0, f"augmentation.{name}={getattr(g, name)} must be above 0")
    need(
        not (g.repredict and g.masks_per_pass > 1),
        "augmentation.repredict=true finds one word at a time: it needs augmentation.masks_per_pass=1",
    )
    need(
        g.long_texts in ("keep", "refuse"), f"augmentation.long_texts={g.long_texts!r} must be keep or refuse"
    )
    p = o.prediction
    need(p.temperature > 0, f"prediction.temperature={p.temperature} must be above 0")
    need(p.targets in ("auto", "teacher", "gold"), f"prediction.targets={p.targets!r}: auto, teacher or gold")
    j = o.job
    need(j.nproc > 0, f"job.nproc={j.nproc} must be above 0")
    need(j.zero in (0, 1, 2, 3), f"job.zero={j.zero} must be 0, 1, 2 or 3")
    need(
        j.precision in ("auto", "bf16", "fp16", "fp32"),
        f"job.precision={j.precision!r}: auto, bf16, fp16, fp32",
    )
    need(
        j.micro_batch == "auto" or isinstance(j.micro_batch, int) and j.micro_batch >= 0,
        f"job.micro_batch={j.micro_batch}: a whole number, 0 for all, or auto",
    )
    need(j.precision != "fp16" or j.zero == 0, "job.precision=fp16 needs job.zero=0; bf16 goes with all")
    need(
        not j.skip_bad_batches or j.zero == 0,
        f"job.skip_bad_batches=true needs job.zero=0, not {j.zero}",
    )
    need(
        j.monitor in ("", "tensorboard", "wandb", "csv"),
        f"job.monitor={j.monitor!r}: tensorboard, wandb or csv",
    )
    need(
        j.monitor not in ("tensorboard", "wandb") or _is_installed(j.monitor),
        f"job.monitor={j.monitor} needs the package {j.monitor}: {sys.executable} -m pip install {j.monitor}",
    )
    need(j.log_every > 0, f"job.log_every={j.log_every} must be above 0")
    need(o.seed >= 0, f"seed={o.seed} must not be negative")
    need(j.cache_gb >= 0, f"job.cache_gb={j.cache_gb} must not be negative")
    need(j.keep > 0, f"job.keep={j.keep} must be above 0")
    if wrong:
        raise UserError("; ".join(wrong))
    check_run(o.run)


def check_training(s: Training, name: str) -> None:
    """Limits of the options that every training stage has. Raises UserError."""
    if wrong := _wrong_of_training(s, name):
        raise UserError("; ".join(wrong))


def _wrong_of_training(s: Training, name: str) -> list[str]:
    limits = [
        (s.epochs > 0, f"epochs={s.epochs} must be above 0"),
        (s.batch_size > 0, f"batch_size={s.batch_size} must be above 0"),
        (0 < s.learning_rate < 1, f"learning_rate={s.learning_rate} must be between 0 and 1"),
        (0 <= s.warmup < 1, f"warmup={s.warmup} must be from 0 to below 1"),
        (s.max_length >= 8, f"max_length={s.max_length} must be at least 8"),
        (s.weight_decay >= 0, f"weight_decay={s.weight_decay} must not be negative"),
        (s.clip > 0, f"clip={s.clip} must be above 0"),
        (s.schedule in ("linear", "constant"), f"schedule={s.schedule!r} must be linear or constant"),
    ]
    if isinstance(s, Pretraining):
        share = s.mlm_probability
        limits.append((0 <= share < 1, f"mlm_probability={share} must be from 0 to below 1"))
    return [f"{name}.{message}" for holds, message in limits if not holds]


def _is_installed(package: str) -> bool:
    """Whether Python finds it; a mere directory of that name, such as wandb leaves, is none."""
    found = importlib.util.find_spec(package)
    return bool(found and found.origin)


def check_run(name: str) -> None:
    """A run's name cannot lead out of runs/. Raises UserError."""
    if name.startswith(".") or not all(c.isalnum() or c in "._- " for c in name):
        raise UserError(
            f"run={name!r}: letters, digits, '.', '_', '-' and spaces only, so that it stays under runs/"
        )
