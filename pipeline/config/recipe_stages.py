"""The stages of a recipe's run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from checkpoints.store import read_json
from pipeline.config.inputs import (
    given_corpus,
    given_other_task,
    given_student,
    given_task,
    given_teacher_and_task,
    given_vectors,
    refuse_answers,
)
from pipeline.config.recipe import Recipe
from pipeline.config.run_options import Options
from pipeline.config.two_stage import (
    Entry,
    Given,
    RunSpec,
    StageSpec,
    check,
    chosen,
    evaluation,
    general,
    masked_lm,
    teacher,
    vocabulary,
)
from pipeline.deploy.hub import config_file
from stages.training.options import Pretraining, StageToCheck


def recipe_stages(recipe: Recipe, options: Options) -> RunSpec:
    """One run of a recipe."""
    refuse_answers(options, "a recipe's students learn")
    task = given_task(options)
    for name in ("held_out", "unlabelled"):
        if number := getattr(recipe.lines, name):
            task["identity"][name] = [number, options.seed]
    for name in ("image_augmentation", "sentence_vectors"):
        if value := getattr(recipe.lines, name):
            task["identity"][name] = value

    def declare(run: Path) -> list[StageSpec]:
        given = given_teacher_and_task(options, task, run)
        for name, student in recipe.students.items():
            if other := student.task.name:
                rows = student.task.rows
                given.tasks[f"task {name}"] = given_other_task(
                    other, student.task.data, rows, options.seed, run
                )
            if student.student.source == "general" and not options.student:
                given.corpora["corpus"] = given_corpus(options.corpus, run)
            if student.data != "task":
                corpus = options.corpus if student.data == "corpus" else student.data
                given.corpora[student.corpus] = given_corpus(corpus, run)
        if options.student:
            given.student = given_student(options.student, run)
        return declared(recipe, options, given)

    return RunSpec(options.run or recipe.name, declare)


def declared(recipe: Recipe, options: Options, given: Given) -> list[StageSpec]:
    """The stages of one run."""
    from_general = any(student.student.source == "general" for student in recipe.students.values())
    if from_general and not given.student and options.general.init == "teacher-layers":
        raise UserError(
            "teacher-layers is not for recipes: let a student have init: teacher-layers",
            argument="general.init",
        )
    made: list[StageSpec] = []
    sources: dict[str, str | Entry] = {"encoder": given.teacher}
    as_given = {name for name in recipe.students if given.student and _root(recipe, name) == "general"}
    if given.student:
        options = _with_all_tokens(options, given)
        made = vocabulary(options, given)
        sources["general"] = "vocabulary" if made else given.student
    elif from_general:
        made = [general(options, given)]
    plans = {}
    for name, spec in recipe.students.items():
        settings: dict[str, Any] = {
            "training": chosen(spec.training, sentences=False),
            "losses": spec.losses,
            "layer_map": spec.layer_map,
        }
        stage_type, data = "student", "task"
        inputs: dict[str, Any] = {"teacher": "teacher", "task": given.task}
        if isinstance(spec.training, Pretraining):
            stage_type, data = "pretrain", spec.corpus
            inputs = {"teacher": given.teacher, "corpus": given.corpora[data]}
            if spec.training.mlm_probability:
                inputs["teacher"] = fitted = f"masked_lm-{given.corpora[data]['name']}"
                if fitted not in plans:
                    made.append(masked_lm(options, given, fitted, data))
                    plans[fitted] = StageToCheck.of("teacher", data, options.masked_lm)
        elif spec.task.name:
            data = f"task {name}"
            inputs = {"teacher": given.teacher, "task": given.tasks[data]}
        if source := spec.student.source:
            inputs["student"] = sources.get(source, source)
        if spec.student.embeddings == "vectors":
            vectors = given_vectors(options)
            if not vectors:
                raise UserError(f"{name}: embeddings=vectors needs augmentation.vectors, which is none")
            inputs["vectors"] = vectors
        inputs |= {f"reads {other}": other for other in spec.reads}
        settings |= {"with_unlabelled": True} if spec.with_unlabelled else {}
        settings |= {"mixing": spec.mixing} if spec.mixing else {}
        settings |= {"method": spec.method, "reads": spec.reads} if spec.method != "plain" else {}
        own: dict[str, Any] = {
            "student": {} if name in as_given else spec.student.sizes,
            "losses": spec.losses,
            "layer_map": spec.layer_map,
        }
        own |= {"method": spec.method, "reads": spec.reads, "mixing": spec.mixing}
        read = {n: recipe.students[n] for n in spec.reads if n != "teacher"}
        own["reads_others"] = [n for n, other in read.items() if not other.learns_own_task]
        own["methods_read"] = {n: other.method for n, other in read.items()}
        own["layers_read"] = {n: None if n in as_given else other.student.layers for n, other in read.items()}
        before = recipe.students.get(spec.student.source)
        while before and before.method == "plain":
            before = recipe.students.get(before.student.source)
        own["begins_as"] = before.method if before else "plain"
        plans[name] = StageToCheck.of(
            "student", data, spec.training, with_unlabelled=spec.with_unlabelled, **own
        )
        if not spec.student.source:
            begin = {"init": spec.student.init, "init_layers": spec.student.init_layers}
            settings["student"] = spec.student.sizes | begin
        settings |= {"seed": options.seed + spec.seed_offset, "allow_bin": options.allow_bin}
        made.append(StageSpec(name, stage_type, settings, inputs))
    models = {"teacher": "teacher"} | {name: name for name in recipe.shown}
    lengths = {name: recipe.students[name].training.max_length for name in recipe.shown}
    lengths["teacher"] = options.tuning.max_length
    return [
        check(options, given, plans=plans, from_general=from_general),
        teacher(options, given),
        *made,
        evaluation(models, recipe.main, lengths, {"task": given.task}),
    ]


def _with_all_tokens(options: Options, given: Given) -> Options:
    """The options under which a given student with a vocabulary of its own gets all of its teacher's tokens."""
    assert given.student
    ours, theirs = (
        read_json(config_file(model)).get("vocab_size", 0) for model in (given.student, given.teacher)
    )
    size = theirs if ours < theirs else 0
    return replace(options, architecture=replace(options.architecture, vocabulary=size))


def _root(recipe: Recipe, name: str) -> str:
    """What the first in a chain of students begins as."""
    while name in recipe.students:
        name = recipe.students[name].student.source
    return name
