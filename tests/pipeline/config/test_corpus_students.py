"""Recipes with students of a corpus: what they declare."""

import json
from dataclasses import replace

import pytest

from checkpoints.errors import UserError
from pipeline.config.recipe import read_recipe
from pipeline.config.recipe_stages import declared
from pipeline.config.two_stage import Given

GIVEN = Given(
    *({"name": name, "identity": {}} for name in ("teacher", "task")),
    {
        "corpus": {"name": "corpus", "identity": {}},
        "corpus packaged": {"name": "introductions", "identity": {}},
    },
)


def stages_of(name):
    recipe, o = read_recipe({"name": name})
    return {stage.name: stage for stage in declared(recipe, o, GIVEN)}


def test_the_compact_biomedical_recipe_declares_its_stages():
    stages = stages_of("compact-biomedical")
    kinds = [stage.stage_type for stage in stages.values()]
    assert [kinds.count(kind) for kind in ("masked_lm", "pretrain", "student", "evaluate")] == [1, 9, 9, 1]
    assert len(stages["evaluate"].options["models"]) == 10
    bundle, general = stages["text-compact-bundle"], stages["text-general-tiny"]
    assert (
        bundle.inputs["teacher"] == "masked_lm-corpus" and bundle.inputs["corpus"] == GIVEN.corpora["corpus"]
    )
    assert bundle.options["student"]["init_layers"] == [2, 4, 6]
    assert general.inputs["teacher"] == GIVEN.teacher  # the un-tuned one: nothing of the domain is in it
    assert general.inputs["corpus"]["name"] == "introductions"
    assert stages["text-continued-tiny"].inputs["student"] == "text-general-tiny"
    assert stages["continued-tiny"].inputs == {
        "teacher": "teacher", "task": GIVEN.task, "student": "text-continued-tiny",
    }  # fmt: skip
    plans = stages["check"].options["stages"]
    assert (
        plans["text-tiny-bundle"]["data"] == "corpus" and plans["text-tiny-bundle"]["mlm_probability"] == 0.15
    )
    assert plans["text-general-tiny"]["data"] == "corpus packaged" and "general" not in plans
    assert "corpus packaged" in stages["check"].inputs


def test_a_general_student_as_layers_is_not_for_recipes_whose_students_say_it_themselves():
    recipe, options = read_recipe({"name": "continuation-kd", "general.init": "teacher-layers"})
    with pytest.raises(UserError, match="let a student have init: teacher-layers"):
        declared(recipe, options, GIVEN)


def test_a_given_student_that_no_student_begins_as_is_refused_instead_of_ignored():
    with pytest.raises(UserError, match=r"'run:books' is not used: no student of this recipe begins as one"):
        read_recipe({"name": "grain", "student": "run:books"})
    with pytest.raises(UserError, match="'teacher-layers' is not used: a student of a recipe says so itself"):
        read_recipe({"name": "continuation-kd", "student": "teacher-layers"})


def test_the_recipes_own_student_is_left_out_where_its_students_begin_otherwise():
    _, options = read_recipe({"name": "disco", "base.student.init": "random"})
    assert options.student == ""


@pytest.mark.parametrize("preset", ["compact", "layers"])
def test_what_a_preset_has_for_a_given_student_is_not_for_recipes_that_take_none(preset):
    _, options = read_recipe({"name": "grain", "preset": preset})
    assert (options.student, options.architecture.vocabulary) == ("", 0)
    with pytest.raises(
        UserError, match="architecture.vocabulary: 99: a recipe's students have the teacher's"
    ):
        read_recipe({"name": "grain", "architecture.vocabulary": "99"})


@pytest.mark.parametrize("tokens", [80, 100])
def test_general_students_of_a_recipe_begin_as_the_given_one_with_all_tokens_of_the_teacher(tmp_path, tokens):
    recipe, options = read_recipe({"name": "disco", "student": "a-student"})
    given = replace(GIVEN, student={"path": str(tmp_path / "student")}, teacher={"path": str(tmp_path)})
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text(json.dumps({"vocab_size": tokens}))
    (tmp_path / "config.json").write_text('{"vocab_size": 100}')
    stages = {stage.name: stage for stage in declared(recipe, options, given)}
    assert "general" not in stages and ("vocabulary" in stages) == (tokens < 100)
    begins_as = "vocabulary" if tokens < 100 else given.student
    assert stages["pairs"].inputs["student"] == stages["mse-text"].inputs["student"] == begins_as
    if tokens < 100:
        assert stages["vocabulary"].options["vocabulary"] == 100
    assert {
        plan["student"] == {} for name, plan in stages["check"].options["stages"].items() if name != "tuning"
    } == {True}


def test_students_may_begin_from_another_seed_than_their_teacher():
    stages = stages_of("hire")
    assert stages["alone"].options["seed"] == stages["teacher"].options["seed"] + 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("students: {a: {data: corpus, losses: [masked_words]}}", "put it under stages"),
        ("students: {a: {training: {mlm_probability: 0.15}}}", "unknown option 'training.mlm_probability'"),
        (
            "stages: {a: {data: corpus, losses: [x], training: {mlm_probability: 1}}}\nstudents: {b: {}}",
            "mlm_probability=1 must be less than 1",
        ),
        ("stages: {masked_lm-x: {data: corpus}}\nstudents: {b: {}}", "cannot be named 'masked_lm-x'"),
    ],
)
def test_what_does_not_go_is_told(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        stages_of(str(path))
