"""The two-stage pipeline as a list of stages: general distillation, then task distillation."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from pipeline.config.run_options import Options
from stages.training.options import StageToCheck, Training

Entry = dict[str, Any]
"""Something given, as `stage.json` holds it: where it is, and what identifies its contents."""


@dataclass
class StageSpec:
    """A stage before it is planned.

    Attributes:
        name: its name and its directory's name.
        stage_type: the module under `stages`.
        options: what decides its result.
        inputs: name -> an earlier stage's name, or a given input's `Entry`.
    """

    name: str
    stage_type: str
    options: dict[str, Any]
    inputs: Mapping[str, str | Entry] = field(default_factory=dict)


@dataclass
class Given:
    """A run's inputs, as entries for its stages.

    Attributes:
        corpora: by name; "corpus" is the option's, the others a recipe's.
        masked_lm_has_head: whether augmentation's masked LM needs no text to fit its head.
        tasks: by input name, other tasks that a recipe's students learn first.
        stop_words: those of a language other than English.
        unlabelled: GLUE's unlabelled test rows.
    """

    teacher: Entry
    task: Entry | None = None
    corpora: dict[str, Entry] = field(default_factory=dict)
    tasks: dict[str, Entry] = field(default_factory=dict)
    student: Entry | None = None
    masked_lm: Entry | None = None
    masked_lm_has_head: bool = False
    vectors: Entry | None = None
    stop_words: Entry | None = None
    synonyms: Entry | None = None
    unlabelled: Entry | None = None


@dataclass
class RunSpec:
    """A run before it is planned.

    Attributes:
        name: the name of its directory under runs/.
        declare: declares the stages, given that directory.
    """

    name: str
    declare: Callable[[Path], list[StageSpec]]


def general(options: Options, given: Given) -> StageSpec:
    """The general student."""
    training = chosen(options.general, init="random")
    settings = {"training": training, "architecture": architecture(options)}
    inputs = _present(teacher=given.teacher, corpus=given.corpora["corpus"]) | _own_vocabulary(options)
    return StageSpec("general", "general", _common(options) | settings, inputs)


def vocabulary(options: Options, given: Given) -> list[StageSpec]:
    """The student's own vocabulary, if it is to have one."""
    if not options.architecture.vocabulary:
        return []
    settings = {
        "allow_bin": options.allow_bin, "vocabulary": options.architecture.vocabulary,
        "corpus_length": options.general.max_length, "corpus_tokens": options.general.tokens,
        "task_length": options.intermediate.max_length,
    }  # fmt: skip
    inputs = _present(teacher=given.teacher, task=given.task, student=given.student)
    if not given.student and options.student != "teacher-layers":  # whose corpus is augmentation's alone
        inputs |= _present(corpus=given.corpora.get("corpus"))
    return [StageSpec("vocabulary", "vocabulary", settings, inputs)]


def architecture(options: Options) -> dict[str, Any]:
    """The sizes of the student, as stages read them. One that begins as layers of the teacher has their sizes."""
    sizes = chosen(options.architecture, vocabulary=0)
    if (options.student or options.general.init) == "teacher-layers":
        return {name: sizes[name] for name in ("layers", "dropout", "vocabulary") if name in sizes}
    return sizes


def _own_vocabulary(options: Options) -> dict[str, str | Entry]:
    return {"vocabulary": "vocabulary"} if options.architecture.vocabulary else {}


def masked_lm(options: Options, given: Given, name: str = "masked_lm", corpus: str = "corpus") -> StageSpec:
    """The masked language model; its head is trained on `corpus` if it has none."""
    text = None if given.masked_lm_has_head else given.corpora.get(corpus)
    training = asdict(options.masked_lm)
    settings = _common(options) | {"seed": training.pop("seed")} | {"training": training}
    inputs = _present(model=given.masked_lm or given.teacher, corpus=text)
    return StageSpec(name, "masked_lm", settings, inputs)


def augmentation(options: Options, given: Given) -> list[StageSpec]:
    """The masked language model, and the augmented rows."""
    settings = chosen(options.augmentation, entities="keep")
    varied = _common(options) | {"seed": settings.pop("seed")}
    for name in ("masked_lm", "vectors", "language", "synonyms", "nltk_download"):
        del settings[name]  # inputs, known by their contents
    inputs = _present(
        masked_lm="masked_lm", task=given.task, vectors=given.vectors,
        stop_words=given.stop_words, synonyms=given.synonyms,
    )  # fmt: skip
    augment = StageSpec("augment", "augment", varied | {"augmentation": settings}, inputs)
    return [masked_lm(options, given), augment]


def teacher(options: Options, given: Given) -> StageSpec:
    """The teacher, tuned on the task."""
    settings = {
        "training": asdict(options.tuning),
        "teacher_labels": options.teacher_labels,
        "accept_teacher": options.accept_teacher,
    }
    inputs = _present(model=given.teacher, task=given.task)
    return StageSpec("teacher", "teacher", _common(options) | settings, inputs)


def folds(options: Options, task: Entry, tuned: StageSpec) -> list[StageSpec]:
    """Encoders tuned as `tuned`, each without one fold of the answers, and what they say to that fold."""
    count, stages = options.answers.folds, []
    if count == 1:
        raise UserError("1 fold leaves nothing to tune on; take 2 to 20, or 0", argument="answers.folds")
    for fold in range(count):
        lacking = task | {"identity": task["identity"] | {"fold": [fold, count]}}
        inputs = {**tuned.inputs, "task": lacking}
        stages.append(StageSpec(f"fold-{fold + 1}", "teacher", tuned.options, inputs))
    settings = _common(options) | {"folds": count, "max_length": options.tuning.max_length}
    inputs = {"task": task, **{stage.name: stage.name for stage in stages}}
    return [*stages, StageSpec("out_of_fold", "out_of_fold", settings, inputs)]


def evaluation(models: dict[str, str], student: str, lengths: dict[str, int], inputs: dict) -> StageSpec:
    """The evaluation of some models; `student` is the one that the run is about."""
    settings = {"models": list(models), "max_length": lengths, "student": student}
    return StageSpec("evaluate", "evaluate", settings, models | inputs)


def check(
    options: Options,
    given: Given,
    only_general: bool = False,
    plans: dict[str, StageToCheck] | None = None,
    from_general: bool = True,
) -> StageSpec:
    """The stage that checks the models, data and lengths of each training stage before any work.

    Args:
        only_general: whether there is no task.
        plans: for a recipe, own stage -> what is checked.
        from_general: whether a student begins as the general student.
    """
    groups: dict[str, Training] = {"general": options.general} if from_general and not options.student else {}
    if plans:
        groups |= {"tuning": options.tuning}
    elif not only_general:
        groups |= {
            "tuning": options.tuning,
            "intermediate": options.intermediate,
            "prediction": options.prediction,
        }
        groups |= {"finetuning": options.finetuning} if options.baselines else {}
    stages = {}
    for name, group in groups.items():
        varied = options.augment and name in ("intermediate", "prediction")
        stages[name] = StageToCheck.of(
            "teacher" if name == "tuning" else "student",
            "corpus" if name == "general" else "task",
            group,
            reads_teacher=name in ("general", "intermediate"),
            variants=options.augmentation.variants if varied else 0,
        )
    stages |= plans or {}
    settings = {
        "stages": {name: asdict(stage) for name, stage in stages.items()},
        "architecture": architecture(options),
        "teacher_labels": options.teacher_labels,
        "accept_teacher": options.accept_teacher,
    }
    if options.allow_bin:
        settings["allow_bin"] = True
    if options.by_answers and options.answers.weight != "one":
        settings["weight"] = options.answers.weight
    if options.by_answers and options.answers.folds:
        settings["folds"] = options.answers.folds
    if options.augment and options.augmentation.entities == "swap":
        settings["swaps_entities"] = True
    inputs = _present(teacher=given.teacher, task=given.task, student=given.student)
    inputs |= given.corpora | given.tasks
    return StageSpec("check", "check", settings, inputs)


def two_stage(options: Options, given: Given) -> list[StageSpec]:
    """Every stage from the given teacher to the evaluated student, in order."""
    common, sizes, task = _common(options), architecture(options), given.task
    own_vocabulary = _own_vocabulary(options)
    tuned, doubts = teacher(options, given), _doubts(options)
    judge: dict[str, str] = {}
    # What needs the text alone comes first, for it may find it bad.
    stages = [check(options, given), *vocabulary(options, given)]
    if options.augment:
        stages += augmentation(options, given)
    if options.by_answers and options.answers.folds and task:
        stages += folds(options, task, tuned)
        judge = {"out_of_fold": "out_of_fold"}
        tuned = replace(tuned, options=tuned.options | doubts, inputs={**tuned.inputs, **judge})
    stages.append(tuned)
    inputs = _present(teacher="teacher", task=task)
    if given.student:
        inputs["student"] = own_vocabulary.get("vocabulary", given.student)
    elif options.student != "teacher-layers":
        stages.append(general(options, given))
        inputs["student"] = "general"

    augmented = {"augmented": "augment"} if options.augment else {}
    begun = {} if "student" in inputs else {"architecture": sizes}
    stages.append(
        StageSpec(
            "intermediate",
            "intermediate",
            common | {"training": chosen(options.intermediate, projection_init="random")} | begun,
            inputs | augmented | ({} if "student" in inputs else own_vocabulary),
        )
    )

    differs = options.intermediate.max_length != options.prediction.max_length
    predicting = _present(teacher="teacher", student="intermediate", task=task)
    learned = common | {"training": asdict(options.prediction), "record_differs": differs}
    stages += _grid(StageSpec("prediction", "prediction", learned | doubts, predicting | augmented | judge))

    models = {"teacher": "teacher", "distilled": "prediction"}
    if options.baselines:
        settings = common | {"training": asdict(options.finetuning)}
        random = _present(teacher=given.teacher, task=task) | own_vocabulary
        if given.student:
            random["shape"] = inputs["student"]
        from_random = StageSpec("finetuned", "finetune", settings | {"architecture": sizes}, random)
        if "student" in inputs:
            own = _present(student=inputs["student"], task=task)
            as_student = StageSpec("finetuned_general", "finetune", settings, own)
        else:
            as_student = replace(
                from_random, name="finetuned_layers", options=from_random.options | {"from_layers": True}
            )
        baselines = {"random": [from_random], "general": [as_student], "layers": [as_student]}
        for baseline in baselines.get(str(options.baselines), [from_random, as_student]):
            stages += _grid(baseline)
            models[baseline.name] = baseline.name
    groups = {"teacher": options.tuning, "distilled": options.prediction}
    lengths = {name: groups.get(name, options.finetuning).max_length for name in models}
    shown = _present(task=task, unlabelled=given.unlabelled)
    if options.by_answers:
        shown |= judge or {"record": "intermediate"} | augmented
    evaluated = evaluation(models, "distilled", lengths, shown)
    if options.by_answers and not judge:
        evaluated.options["record_length"] = options.intermediate.max_length
    return [*stages, evaluated]


def _present(**inputs: str | Entry | None) -> dict[str, str | Entry]:
    """The inputs that there are."""
    return {name: entry for name, entry in inputs.items() if entry is not None}


def _doubts(options: Options) -> dict[str, Any]:
    """What is done about noisy answers."""
    if not options.by_answers:
        return {}
    weight = {} if options.answers.weight == "one" else {"weight": options.answers.weight}
    return {"leave_out": options.answers.leave_out} | weight


def chosen(group: Any, **before: Any) -> dict[str, Any]:
    """A group's options, without those that have the value `before` there was a choice: what they make is the same."""
    return {
        name: value for name, value in asdict(group).items() if name not in before or value != before[name]
    }


def _common(options: Options) -> dict[str, Any]:
    return {"seed": options.seed, "allow_bin": options.allow_bin}


def _grid(stage: StageSpec) -> list[StageSpec]:
    """A stage with a grid as one stage for each combination, and the selection among them."""
    training = dict(stage.options["training"])
    grid = training.pop("grid", None)
    if not grid:
        return [StageSpec(stage.name, stage.stage_type, stage.options | {"training": training}, stage.inputs)]
    points = []
    for values in product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        name = stage.name + "".join(f"-{key}={value:g}" for key, value in point.items())
        points.append(
            StageSpec(name, stage.stage_type, stage.options | {"training": training | point}, stage.inputs)
        )
    chosen = StageSpec(
        stage.name, "select", {"candidates": [p.name for p in points]}, {p.name: p.name for p in points}
    )
    return [*points, chosen]
