"""Recipes: a YAML file that names students, what each learns, and with what they are compared.

    # make recipe NAME=continuation-kd
    about: a line for `make recipes`
    preset: small                    # any option of task-distill may stand beside: task, teacher, tuning ...
    seeds: [1, 2, 3]                 # a run for each: runs/<name>-seed1 ...
    base: {...}                      # what all students below share, setting by setting
    stages: {name: {...}}            # students that others begin from, themselves not evaluated
    students: {name: {...}}          # students that are evaluated
    grid: {factor: {level: {...}}}   # or: one student for each combination of levels
    rows: 5000                       # no more of its task's training rows are taken, drawn from the seed
    unlabelled: 0.7                  # this share of the training rows, drawn from the seed, hides its labels
    baseline: name                   # what the gains are over
    main: name                       # the student that report, predict and export speak of

A student's settings: `data` (task, its gold labels and tuned teacher; corpus, unlabelled text; or another corpus, as
corpus= names it), `student` (layers, width, feed_forward, heads, dropout, and `init`: random, teacher-layers with
`init_layers` a layer map, general, or the name of one that stands before it; `kind`, a module of
stages/distillation/students, none for the teacher's own; `embeddings`: random, or vectors, those of
augmentation.vectors), `with_unlabelled` (true: it learns from rows with hidden labels too), `losses` (lines `- name: {setting:
value}`), `layer_map`, `training` (the options every training stage has; on a corpus also `mlm_probability` and `tokens`).
A student of a corpus stands under `stages`. Its teacher is the given one; where pieces are masked, that one with a
masked-LM head (stage masked_lm), fitted to the same corpus where it has none. A level of a grid may hold `without: [factor]`
where another factor means nothing to it.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from pipeline.config import options as options_module
from pipeline.config.inputs import Named, given_corpus, given_task, given_teacher_and_task, given_vectors
from pipeline.config.options import Options, Pretraining, Training
from pipeline.config.two_stage import StageSpec, check, evaluation, general, masked_lm, teacher
from stages.tasks.text import parse_yaml

RECIPES = Path(__file__).parent / "recipes"
PARTS = (
    "about", "preset", "seeds", "rows", "unlabelled", "baseline", "main", "base", "stages", "students", "grid",
)  # fmt: skip
SETTINGS = ("data", "student", "losses", "layer_map", "training", "with_unlabelled")
SIZES = ("layers", "width", "feed_forward", "heads")
TAKEN = ("check", "teacher", "general", "evaluate", "task", "random", "teacher-layers")


@dataclass
class Recipe:
    """A recipe as read, its students written out.

    Attributes:
        options: those of task-distill, by name.
        students: name -> settings of every student, in the order in which they are made.
        shown: the names of those that are evaluated.
        grid_values: factor -> level -> names, of a grid.
        rows: the most training rows that are taken; 0: all.
        unlabelled: share of them whose labels are hidden.
    """

    name: str
    about: str
    preset: str
    seeds: list[int]
    baseline: str
    main: str
    options: dict[str, Any]
    students: dict[str, dict[str, Any]]
    shown: list[str]
    grid_values: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    rows: int = 0
    unlabelled: float = 0.0


def known_recipes() -> dict[str, str]:
    """Name -> its line, of the recipes that come with the project."""
    return {path.stem: str(_read(path).get("about", "")) for path in sorted(RECIPES.glob("*.yaml"))}


def read_recipe(name: str, overrides: list[str]) -> tuple[Recipe, list[str]]:
    """A recipe, and the overrides that are none of its parts (they are options).

    Args:
        name: of one that comes with the project, or the path of a .yaml file.
        overrides: `key=value`; `base.training.epochs=1` changes a part of the recipe.

    Raises:
        UserError: there is none of that name, or something in it is not as the docstring above says.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{Path(name).name}.yaml"
    if not name or not path.is_file():
        raise UserError(
            f"unknown recipe {name!r}: there are {', '.join(known_recipes())}, or give a .yaml file"
        )
    parts, rest = _read(path), []
    for text in overrides:
        keys = text.partition("=")[0].split(".")
        if keys[0] in PARTS:
            _override(parts, keys, parse_yaml(text.partition("=")[2], f"the value of {text!r}"), text)
        else:
            rest.append(text)
    where = f"recipe {path.stem}"
    base, stages = (
        _settings(parts.get("base"), f"{where}: base"),
        _named(parts.get("stages"), f"{where}: stages"),
    )
    students = _named(parts.get("students"), f"{where}: students")
    points, values = _grid_points(parts.get("grid") or {}, where)
    shown = [*students, *points]
    for given in (stages, students, points):
        bad = (n for n in given if not all(c.isalnum() or c in "._-" for c in n))
        if taken := [*bad, *(n for n in given if n in TAKEN or n.startswith("masked_lm"))]:
            raise UserError(f"{where}: a student cannot be named {', '.join(taken)}")
    merged = {n: _merged(base, settings) for n, settings in (stages | students | points).items()}
    main, baseline = str(parts.get("main") or (shown or [""])[-1]), str(parts.get("baseline") or "")
    if main not in shown or baseline not in (*shown, ""):
        raise UserError(
            f"{where}: main and baseline must be among {', '.join(shown) or 'students or a grid'}"
        )
    seeds = parts.get("seeds", [1])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(s, int) and s >= 0 for s in seeds):
        raise UserError(f"{where}: seeds={seeds!r} must be a list of whole numbers, such as [1, 2, 3]")
    rows, unlabelled = parts.get("rows", 0), parts.get("unlabelled", 0)
    overridden = {text.partition("=")[0] for text in overrides}
    if overridden & {"task", "data"} and "rows" not in overridden:
        rows = 0  # the recipe's number is for its own task
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        raise UserError(f"{where}: rows={rows!r} must be a whole number; 0 takes all")
    if not isinstance(unlabelled, (int, float)) or not 0 <= unlabelled < 1:
        raise UserError(f"{where}: unlabelled={unlabelled!r} must be a share, from 0 to below 1")
    if not unlabelled and any(settings.get("with_unlabelled") for settings in merged.values()):
        raise UserError(f"{where}: with_unlabelled needs unlabelled=SHARE: there are no such rows")
    options = {key: value for key, value in parts.items() if key not in PARTS}
    about, preset = str(parts.get("about", "")), str(parts.get("preset", "small"))
    recipe = Recipe(
        path.stem, about, preset, seeds, baseline, main, options, merged, shown, values, rows, unlabelled
    )
    return recipe, rest


def recipe_stages(recipe: Recipe) -> Callable[[Options, str, str], Named]:
    """What declares the recipe's stages, as those of `pipeline.config.inputs` do."""

    def stages(o: Options, preset: str, suffix: str) -> Named:
        task = given_task(o)
        if recipe.rows:
            task["identity"]["rows"] = [recipe.rows, o.seed]
        if recipe.unlabelled:
            task["identity"]["unlabelled"] = [recipe.unlabelled, o.seed]
        students = _complete(recipe, o)

        def declared(run: Path) -> list[StageSpec]:
            given = given_teacher_and_task(o, task, run)
            for s in students.values():
                if s["from"] == "general":
                    given["corpus"] = given_corpus(o.corpus, run)
                if s["data"] != "task":
                    given[_corpus(s)] = given_corpus(o.corpus if s["data"] == "corpus" else s["data"], run)
            return _declared(recipe, students, o, given)

        return (o.run or recipe.name) + suffix, declared

    return stages


def _declared(recipe: Recipe, students: dict, o: Options, given: dict) -> list[StageSpec]:
    from_general = any(s["from"] == "general" for s in students.values())
    made = [general(o, given)] if from_general else []
    plans = {}
    for name, s in students.items():
        options = {key: s[key] for key in ("training", "losses", "layer_map")}
        kind, data, training = "student", "task", s["training"]
        inputs = {"teacher": "teacher", "task": given["task"]}
        if s["data"] != "task":
            kind, data = "pretrain", _corpus(s)
            inputs = {"teacher": given["teacher"], "corpus": given[data]}
            if training["mlm_probability"]:
                inputs["teacher"] = fitted = f"masked_lm-{given[data]['name']}"
                if fitted not in plans:
                    made.append(masked_lm(o, given, fitted, data))
                    plans[fitted] = _plan("teacher", data, asdict(o.masked_lm))
        inputs |= {"student": s["from"]} if s["from"] else {}
        if s["embeddings"] == "vectors":
            inputs |= given_vectors(o)
            if "vectors" not in inputs:
                raise UserError(f"{name}: embeddings=vectors needs augmentation.vectors, which is none")
        options |= {"with_unlabelled": True} if s["with_unlabelled"] else {}
        plans[name] = _plan("both", data, training) | {"student": s["sizes"]}
        plans[name] |= {key: s[key] for key in ("losses", "layer_map", "with_unlabelled")}
        if not s["from"]:
            options["student"] = s["sizes"] | {key: s[key] for key in ("init", "init_layers")}
        made.append(StageSpec(name, kind, {"seed": o.seed, "allow_bin": o.allow_bin} | options, inputs))
    models = {"teacher": "teacher"} | {name: name for name in recipe.shown}
    lengths = {name: students[name]["training"]["max_length"] for name in recipe.shown}
    lengths["teacher"] = o.tuning.max_length
    first = check(o, given, plans=plans, from_general=from_general)
    return [
        first,
        teacher(o, given),
        *made,
        evaluation(models, recipe.main, lengths, {"task": given["task"]}),
    ]


def _corpus(student: dict[str, Any]) -> str:
    """What the corpus of a student is called among what is given."""
    return "corpus" if student["data"] == "corpus" else f"corpus {student['data']}"


def _plan(models: str, data: str, training: dict[str, Any]) -> dict[str, Any]:
    """What the stage `check` looks at."""
    plan = {"models": models, "data": data} | {key: training[key] for key in ("max_length", "epochs")}
    return plan | {key: training[key] for key in ("mlm_probability", "tokens") if key in training}


def _complete(recipe: Recipe, o: Options) -> dict[str, dict[str, Any]]:
    """The students with every setting: sizes, where they begin, training."""
    complete: dict[str, dict[str, Any]] = {}
    for name, settings in recipe.students.items():
        where = f"recipe {recipe.name}: {name}"
        given = dict(settings.get("student", {}))
        kind, embeddings = given.pop("kind", ""), given.pop("embeddings", "random")
        student = (
            {"init": "random", "init_layers": "uniform"}
            | asdict(o.architecture)
            | (dict.fromkeys(SIZES, 0) if kind else {})
            | given
        )
        init, which = student.pop("init"), student.pop("init_layers")
        if kind and init in ("general", "teacher-layers"):
            raise UserError(f"{where}: init={init} makes a student of the teacher's own kind, not a {kind}")
        if embeddings not in ("random", "vectors") or init != "random" and embeddings == "vectors":
            raise UserError(f"{where}: embeddings={embeddings!r} must be random, or with init=random vectors")
        source = init if init == "general" or init in complete else ""
        if not source and init not in ("random", "teacher-layers"):
            raise UserError(
                f"{where}: init={init!r} must be random, teacher-layers, general, or one of "
                f"{', '.join(complete) or 'the students before it (there is none)'}"
            )
        if init == "teacher-layers":
            student |= {"width": 0, "feed_forward": 0, "heads": 0}  # the teacher's
        elif source:
            student = asdict(o.architecture) if source == "general" else dict(complete[source]["sizes"])
            kind = student.pop("kind", "")
        sizes = options_module.Architecture()
        options_module.fill(sizes, student, f"{where}: student.")
        if sizes.width and sizes.heads and sizes.width % sizes.heads:
            raise UserError(f"{where}: width={sizes.width} must be a multiple of heads={sizes.heads}")
        data = str(settings.get("data", "task"))
        if data != "task" and name in recipe.shown:
            raise UserError(
                f"{where}: only students of the task are evaluated: one of a corpus stands under stages"
            )
        training = Training() if data == "task" else Pretraining()
        options_module.fill(training, settings.get("training", {}), f"{where}: training.")
        options_module.check_training(training, f"{where}: training")
        losses = settings.get("losses")
        if not isinstance(losses, list) or not losses:
            raise UserError(f"{where}: losses must be a list of lines `- name: {{setting: value}}`")
        complete[name] = {
            "data": data, "sizes": asdict(sizes) | ({"kind": str(kind)} if kind else {}),
            "from": source, "init": init, "init_layers": which, "embeddings": embeddings,
            "with_unlabelled": settings.get("with_unlabelled") is True,
            "losses": losses, "layer_map": settings.get("layer_map", "uniform"), "training": asdict(training),
        }  # fmt: skip
    return complete


def _grid_points(grid: Any, where: str) -> tuple[dict[str, dict], dict[str, dict[str, list[str]]]]:
    """One student for each combination of levels, and which of them stand at each level."""
    if not isinstance(grid, dict) or not all(isinstance(of, dict) and of for of in grid.values()):
        raise UserError(f"{where}: grid must be `factor: {{level: {{settings}}}}`")
    points, values = {}, {factor: {str(level): [] for level in of} for factor, of in grid.items()}
    for chosen in product(*(of.items() for of in grid.values())):
        pairs = dict(zip(grid, chosen, strict=True))
        without = {f for _, settings in chosen for f in (settings or {}).get("without", ())}
        counted = {factor: pair for factor, pair in pairs.items() if factor not in without}
        name = "-".join(str(level) for level, _ in counted.values())
        if not counted or name in points:
            continue
        settings: dict[str, Any] = {}
        for factor, (level, of) in counted.items():
            of = {key: value for key, value in (of or {}).items() if key != "without"}
            settings = _merged(settings, _settings(of, f"{where}: grid: {factor}: {level}"))
            values[factor][str(level)].append(name)
        points[name] = settings
    return points, values


def _settings(settings: Any, where: str) -> dict[str, Any]:
    settings = settings or {}
    if not isinstance(settings, dict) or settings.keys() - set(SETTINGS):
        raise UserError(f"{where}: {settings!r} must hold {', '.join(SETTINGS)}")
    for key in ("student", "training"):
        if not isinstance(settings.get(key, {}), dict):
            raise UserError(f"{where}: {key} must hold `setting: value` lines")
    return settings


def _named(students: Any, where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(students or {}, dict):
        raise UserError(f"{where} must hold `name: {{settings}}` lines")
    return {str(name): _settings(settings, f"{where}: {name}") for name, settings in (students or {}).items()}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings of `above` over those of `below`, group by group; a list takes the place of a list."""
    merged = copy.deepcopy(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _override(parts: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        parts = parts.setdefault(key, {}) if isinstance(parts, dict) else parts
    if not isinstance(parts, dict):
        raise UserError(f"{text}: the recipe has no such part")
    parts[keys[-1]] = value


def _read(path: Path) -> dict[str, Any]:
    parts = options_module.read_yaml(path)
    if not parts.keys() & {"students", "grid"}:
        raise UserError(f"{path} is no recipe: it must hold `students:` or `grid:`")
    return parts
