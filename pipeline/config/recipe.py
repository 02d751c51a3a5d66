"""Recipes: a YAML file that names students, what each learns, and with what they are compared.

    # make recipe NAME=continuation-kd
    about: a line for `make recipes`
    extends: small                   # the preset; options of task-distill may follow (but UNUSED): task, seeds, tuning ...
    base: {...}                      # settings that all students below share
    stages: {name: {...}}            # students that others begin from; they are not evaluated
    students: {name: {...}}          # students that are evaluated
    grid: {factor: {value: {...}}}   # or: one student for each combination of values

`RecipeFile` has the other lines of a recipe, `StudentSpec` the settings of a student. A value of a grid may hold
`without: [factor]`: the student is then the same for all values of that factor. A student that learns from a corpus stands
under `stages`; its teacher is the given one, or for masked tokens that one with a masked-LM head (stage masked_lm).
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from checkpoints.errors import UserError
from pipeline.config.run_options import Options, as_preset, load, without_student
from pipeline.config.schema import CONFIG, describe, flattened, read_yaml, updated
from stages.tasks.text import parse_yaml
from stages.training.options import (
    Architecture,
    Fraction,
    LayerMap,
    Learning,
    LearningText,
    NotNegative,
    option,
)

RECIPES = Path(__file__).parent / "recipes"
SIZES = ("layers", "width", "feed_forward", "heads")
BEGINNINGS = ("random", "teacher-layers", "general", "encoder")
RESERVED = ("check", "teacher", "vocabulary", "evaluate", "task", *BEGINNINGS)
UNUSED = ("augment", "baselines", "max_length", "intermediate", "prediction", "finetuning", "answers")
"""Options and groups of options that no stage of a recipe reads."""


@dataclass
class StudentModel(Architecture):
    """The student's model: its sizes (by default the preset's), and the weights that it begins with."""

    vocabulary: NotNegative = option(0, "must be 0: a recipe's students have all of the teacher's tokens")
    init: str = option(
        "random",
        "random, teacher-layers, general, encoder (the given one, before tuning), or an earlier student",
    )
    init_layers: LayerMap = option("uniform", "the teacher's layers that init=teacher-layers copies")
    kind: str = option(
        "", "a kind of model (docs/recipes.md lists them), such as bilstm; if left out: the teacher's"
    )
    settings: dict[str, Any] = option({}, "settings of the student's kind other than sizes")
    embeddings: Literal["random", "vectors"] = option(
        "random", "word embeddings begin random, or as vectors: those of augmentation.vectors"
    )

    @property
    def source(self) -> str:
        """The model it begins as, a stage's or "encoder"; "" for random or teacher-layer weights."""
        return "" if self.init in ("random", "teacher-layers") else self.init

    @property
    def sizes(self) -> dict[str, Any]:
        """What stages build its config from: sizes, kind and settings."""
        names = [entry.name for entry in fields(Architecture) if entry.name != "vocabulary"]
        sizes = {name: getattr(self, name) for name in names}
        sizes |= {"kind": self.kind} if self.kind else {}
        return sizes | ({"settings": self.settings} if self.settings else {})


@dataclass
class OtherTask:
    """Another task than the recipe's, which a student learns from gold labels so that others begin from it."""

    name: str = option("", "a GLUE task, a packaged task, a task file, or a name of your own with `data`")
    data: str = option("", "directory or file of its rows")
    rows: NotNegative = option(0, "number of its training rows to use, drawn from the seed; 0: all")


@dataclass
class StudentSpec:
    """The settings of a recipe's student."""

    __pydantic_config__ = CONFIG

    data: str = option("task", "what it learns from: task; corpus (that of corpus=); or another corpus")
    losses: list[str | dict[str, Any]] = option([], "lines `- loss` or `- loss: {setting: value}`")
    layer_map: LayerMap = option("uniform", "the teacher layer of each student layer")
    with_unlabelled: bool = option(False, "also learn from the rows with hidden labels")
    mixup: Annotated[float, Ge(0), Le(100)] = option(
        0.0, "alpha of the Beta distribution of mixup's ratios, of images (DeiT: 0.8); 0: no mixup"
    )
    cutmix: Annotated[float, Ge(0), Le(100)] = option(
        0.0, "alpha of the Beta distribution of CutMix's ratios, of images (DeiT: 1.0); 0: no CutMix"
    )
    method: str | dict[str, Any] = option(
        "plain", "a method (stages/methods): `name` or `{name: {setting: value}}`"
    )
    seed_offset: NotNegative = option(
        0, "added to the run's seed, so that models of equal sizes begin differently"
    )
    reads: list[str] = option([], "earlier students that its method reads; teacher: the tuned teacher")
    task: OtherTask = field(default_factory=OtherTask)
    student: StudentModel = field(default_factory=StudentModel)
    training: Learning = field(default_factory=Learning)

    @property
    def learns_own_task(self) -> bool:
        """Whether it learns the task of the recipe."""
        return self.data == "task" and not self.task.name

    @property
    def mixing(self) -> dict[str, float] | None:
        """What images are mixed by; None: they are not."""
        return {"mixup": self.mixup, "cutmix": self.cutmix} if self.mixup or self.cutmix else None

    @property
    def corpus(self) -> str:
        """The name of its corpus among the run's inputs."""
        return "corpus" if self.data == "corpus" else f"corpus {self.data}"


@dataclass
class CorpusStudentSpec(StudentSpec):
    """The settings of a student that learns from a corpus."""

    training: LearningText = field(default_factory=LearningText)  # type: ignore[assignment]


@dataclass
class RecipeFile:
    """The lines of a recipe that are not options of task-distill."""

    __pydantic_config__ = CONFIG

    about: str = option("", "a line for the list of recipes")
    extends: str = option("small", "the preset")
    held_out: Fraction = option(
        0.0, "fraction of the training rows that no student learns from, drawn from the seed"
    )
    unlabelled: Fraction = option(
        0.0, "fraction of the remaining training rows whose labels are hidden, drawn from the seed"
    )
    image_augmentation: Annotated[float, Ge(0), Le(1)] = option(
        0.0, "strength of the random changes to training images; 0: none"
    )
    sentence_vectors: bool = option(
        False, "predict the score of a pair as the cosine of the sentence vectors of its two texts"
    )
    baseline: str = option("", "the student that gains are measured against")
    main: str = option("", "the student that report, predict and export are about; if left out: the last")
    base: dict[str, Any] = option({}, "settings that all students share")
    stages: dict[str, dict[str, Any] | None] = option(
        {}, "name -> settings of a student that is not evaluated"
    )
    students: dict[str, dict[str, Any] | None] = option({}, "name -> settings of a student that is evaluated")
    grid: dict[str, dict[str, dict[str, Any] | None]] = option({}, "factor -> value -> settings")


PARTS = tuple(entry.name for entry in fields(RecipeFile))


@dataclass
class Recipe:
    """A recipe as read.

    Attributes:
        lines: its non-option lines.
        main: the student that the run is about.
        students: name -> settings of every student, in the order in which they are made.
        shown: the names of those that are evaluated.
        grid_values: factor of the grid -> value -> students with that value.
    """

    name: str
    lines: RecipeFile
    main: str
    students: dict[str, StudentSpec]
    shown: list[str]
    grid_values: dict[str, dict[str, list[str]]]

    @property
    def baseline(self) -> str:
        """The student that gains are measured against; "" for none."""
        return self.lines.baseline


def known_recipes() -> dict[str, str]:
    """Name -> its line `about`, for each recipe that comes with the project."""
    paths = sorted(RECIPES.glob("*.yaml"), key=lambda path: path.stem)
    return {path.stem: str(read_yaml(path).get("about", "")) for path in paths}


def read_recipe(given: Mapping[str, str]) -> tuple[Recipe, Options]:
    """A recipe and the options of its runs.

    Args:
        given: `name`, of a recipe of the project or a .yaml file; options; parts of the recipe by their path, such as
            `base.training.epochs`.

    Raises:
        UserError: there is none of that name, or something in it or in the options is refused.
    """
    given = dict(given)
    name = given.pop("name", "")
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{Path(name).name}.yaml"
    if not name or not path.is_file():
        known = ", ".join(known_recipes())
        raise UserError(f"unknown recipe {name!r}: there are {known}, or give a .yaml file")
    where, lines = f"recipe {path.stem}: ", read_yaml(path)
    if not lines.keys() & {"students", "grid"}:
        raise UserError(f"{path} is not a recipe: it must hold `students:` or `grid:`")
    if given.keys() & {"task", "data"}:
        lines.pop("rows", None)  # the recipe's number is for its own task
    for key in [key for key in given if key.split(".")[0] in PARTS]:
        text = given.pop(key)
        _set_part(lines, key.split("."), parse_yaml(text, f"the value of {key}={text!r}"), key)
    options_known = {setting.name for setting in describe(Options)}
    for key in [key for key, _ in flattened(Options, given) if key not in options_known]:
        if paths := [path for path in _paths(lines, PARTS) if path.endswith(f".{key}")]:
            raise UserError(f"{where}unknown option {key!r}; did you mean {' or '.join(paths[:3])}?")
    parts = updated(RecipeFile(), {name: lines.pop(name) for name in PARTS if name in lines}, where)
    set_here = [name for name, _ in flattened(Options, lines | given)]
    if unused := [name for name in set_here if name.split(".")[0] in UNUSED]:
        raise UserError(
            f"{where}{', '.join(unused)}: not read by a recipe, whose students have settings of their own "
            "(such as base.training.epochs); leave it out"
        )
    options = _without_vocabulary(load(parts.extends, given, as_preset(where, lines)))
    points, grid_values = _grid_points(parts.grid, where)
    shown = [*parts.students, *points]
    for group in (parts.stages, parts.students, points):
        bad = [
            name
            for name in group
            if name[:1] in ("", ".") or not all(c.isalnum() or c in "._-" for c in name)
        ]
        if bad := [*bad, *(name for name in group if name in RESERVED or name.startswith("masked_lm"))]:
            named = ", ".join(map(repr, bad))
            raise UserError(f"{where}a student cannot be named {named}: choose another name")
    names = [*parts.stages, *shown]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{where}two students are named {', '.join(twice)}: choose another name for one of them"
        )
    main = parts.main or (shown or [""])[-1]
    if main not in shown or parts.baseline not in (*shown, ""):
        raise UserError(
            f"{where}main={main!r} and baseline={parts.baseline!r} must be among "
            f"{', '.join(shown) or 'students or a grid, of which there are none'}"
        )
    students: dict[str, StudentSpec] = {}
    for name, settings in (parts.stages | parts.students | points).items():
        settings = _merged(parts.base, settings or {})
        students[name] = _student(settings, students, options, f"{where}{name}: ")
        if students[name].data != "task" and name in shown:
            raise UserError(
                f"{where}{name}: data={students[name].data!r}: a student of a corpus is not evaluated; "
                "put it under stages"
            )
        if students[name].task.name and name in shown:
            raise UserError(
                f"{where}{name}: task.name={students[name].task.name!r}: a student of another task is not evaluated; "
                "put it under stages"
            )
    if not parts.unlabelled and any(student.with_unlabelled for student in students.values()):
        raise UserError(f"{where}with_unlabelled=true: no rows are unlabelled; give unlabelled=FRACTION")
    if options.student == "teacher-layers":
        options = without_student(options, "a student of a recipe says so itself (init: teacher-layers)")
    elif all(spec.student.source != "general" for spec in students.values()):
        # Given by the recipe itself, whose students begin otherwise here.
        if options.student == lines.get("student"):
            options = replace(options, student="")
        options = without_student(options, "no student of this recipe begins as one (init: general)")
    return Recipe(path.stem, parts, main, students, shown, grid_values), options


def _without_vocabulary(options: Options) -> Options:
    """The options without the vocabulary that a preset has for its student."""
    if options.architecture.vocabulary != load(options.preset, {}).architecture.vocabulary:
        raise UserError(
            f"{options.architecture.vocabulary}: a recipe's students have the teacher's; leave it out",
            argument="architecture.vocabulary",
        )
    return replace(options, architecture=replace(options.architecture, vocabulary=0))


def _student(settings: dict, before: dict[str, StudentSpec], options: Options, where: str) -> StudentSpec:
    """A student with every setting: its own, then those of the preset."""
    kind = StudentSpec if settings.get("data", "task") == "task" else CorpusStudentSpec
    spec = updated(kind(student=StudentModel(**asdict(options.architecture))), settings, where)
    model = spec.student
    if model.vocabulary:
        raise UserError(
            f"{where}vocabulary={model.vocabulary}: a recipe's students have the teacher's; leave it out"
        )
    if not spec.losses:
        raise UserError(f"{where}losses=[] must be a list of lines `- name: {{setting: value}}`")
    for name in spec.reads:
        if spec.method == "plain" or not spec.learns_own_task:
            raise UserError(
                f"{where}reads={spec.reads} is for a student of the task with a method; leave it out"
            )
        if name != "teacher" and (name not in before or before[name].data != "task"):
            known = ", ".join(["teacher", *(n for n in before if before[n].data == "task")])
            raise UserError(
                f"{where}reads={name!r} must be one of {known}, or an earlier student of the task"
            )
    if spec.task != OtherTask() and (spec.data != "task" or spec.with_unlabelled or not spec.task.name):
        raise UserError(
            f"{where}task={asdict(spec.task)} needs a name, and goes with neither data nor with_unlabelled; leave these out"
        )
    if spec.mixing and spec.data != "task":
        raise UserError(f"{where}mixup and cutmix mix images, and it learns from a corpus; leave them out")
    if spec.method != "plain" and spec.data != "task":
        raise UserError(f"{where}method={spec.method!r} is for students of the task; leave it out")
    if model.init not in (*BEGINNINGS, *before):
        known = ", ".join([*BEGINNINGS, *before])
        raise UserError(f"{where}init={model.init!r} must be one of {known}, or an earlier student")
    if model.kind and model.init in ("encoder", "general", "teacher-layers"):
        raise UserError(
            f"{where}init={model.init} makes a student of the teacher's own kind, not a {model.kind}"
        )
    if model.embeddings == "vectors" and model.init != "random":
        raise UserError(f"{where}embeddings=vectors needs init=random, not {model.init}")
    if spec.task.name and model.init == "teacher-layers":
        raise UserError(
            f"{where}init=teacher-layers: a student of another task knows no tuned teacher; take encoder"
        )
    unused = {"encoder": SIZES, "teacher-layers": SIZES[1:]}.get(model.init, ())
    if model.source in before or model.source == "general":
        general = StudentModel(**asdict(options.architecture))
        source = before[model.source].student if model.source in before else general
        if model.settings not in ({}, source.settings):
            raise UserError(
                f"{where}settings={model.settings} are not those of {model.init}, {source.settings}, which it begins as; "
                "leave them out"
            )
        spec.student = model = replace(source, init=model.init)
    elif model.kind:
        given = dict(flattened(kind, settings))
        unused = tuple(size for size in SIZES if f"student.{size}" not in given)
    zeros: dict[str, Any] = dict.fromkeys(unused, 0)  # 0: the teacher's, or the kind's own
    spec.student = model = replace(model, **zeros)
    if model.width and model.heads and model.width % model.heads:
        raise UserError(f"{where}width={model.width} must be a multiple of heads={model.heads}")
    return spec


def _grid_points(
    grid: dict[str, dict], where: str
) -> tuple[dict[str, dict], dict[str, dict[str, list[str]]]]:
    """One student for each combination of values, and the students of each value."""
    for factor, values in grid.items():
        for value, settings in values.items():
            left_out = (settings or {}).get("without", [])
            if not isinstance(left_out, list) or any(name not in grid for name in left_out):
                raise UserError(
                    f"{where}grid.{factor}.{value}.without={left_out!r} must be a list of factors of the grid, such as "
                    f"[{next(iter(grid))}]; it has {', '.join(grid)}"
                )
    points: dict[str, dict] = {}
    made_of: dict[str, list[tuple[str, str]]] = {}
    students: dict[str, dict[str, list[str]]] = {
        factor: {value: [] for value in values} for factor, values in grid.items()
    }
    for chosen in product(*(values.items() for values in grid.values())) if grid else ():
        without = {factor for _, settings in chosen for factor in (settings or {}).get("without", ())}
        pairs = {factor: pair for factor, pair in zip(grid, chosen, strict=True) if factor not in without}
        name = "-".join(value for value, _ in pairs.values())
        point = [(factor, value) for factor, (value, _) in pairs.items()]
        if made_of.setdefault(name, point) != point:
            raise UserError(
                f"{where}two students of the grid are named {name}: rename a value of one of them"
            )
        if not pairs or name in points:
            continue
        points[name] = {}
        for factor, (value, settings) in pairs.items():
            points[name] = _merged(points[name], settings or {})
            points[name].pop("without", None)
            students[factor][value].append(name)
    return points, students


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings of `above` over those of `below`, group by group; a list replaces a list."""
    merged = copy.deepcopy(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _paths(lines: dict[str, Any], keys: Iterable[str]) -> Iterator[str]:
    """The path of each value under some keys of a recipe."""
    for key in keys:
        value = lines.get(key)
        if isinstance(value, dict):
            yield from (f"{key}.{path}" for path in _paths(value, map(str, value)))
        elif key in lines:
            yield key


def _set_part(lines: dict[str, Any], keys: list[str], value: Any, name: str) -> None:
    for key in keys[:-1]:
        lines = lines.setdefault(key, {}) if isinstance(lines, dict) else lines
    if not isinstance(lines, dict):
        raise UserError(f"{name}: {lines!r:.60} has no key {keys[-1]!r}; set that part as a whole")
    lines[keys[-1]] = value
