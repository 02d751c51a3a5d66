"""What a run asks for: a corpus only where text is read."""

import json

import pytest

from checkpoints.errors import UserError
from pipeline.config.inputs import augment_stages, general_stages, task_stages
from pipeline.config.run_options import load
from pipeline.deploy.hub import pin
from tests.conftest import make_encoder, make_task


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_task(tmp_path / "data")
    make_encoder(tmp_path / "teacher")
    return {
        "task": "mine", "data": "data", "text_columns": "text", "augment": "true", "label_column": "label",
        "teacher": "teacher", "student": "teacher", "augmentation.vectors": "none",
    }  # fmt: skip


def declared(stages, arguments, run):
    return {stage.name: stage for stage in stages(load("tinybert4", arguments)).declare(run)}


@pytest.mark.parametrize("stages", [task_stages, augment_stages])
def test_text_is_asked_for_only_where_a_head_is_fitted(arguments, tmp_path, stages):
    """With a student and a masked LM, nobody needs the hub's Wikipedia."""
    run = tmp_path / "run"
    with pytest.raises(UserError, match="wikimedia/wikipedia"):
        declared(stages, arguments, run)
    config = tmp_path / "teacher" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"architectures": ["ElectraForPreTraining"]}))  # a discriminator
    with pytest.raises(UserError, match="wikimedia/wikipedia"):
        declared(stages, arguments, run)
    config.write_text(json.dumps(settings | {"architectures": ["BertForMaskedLM"]}))
    made = declared(stages, arguments, run)
    assert list(made["masked_lm"].inputs) == ["model"] and not any(
        "corpus" in stage.inputs for stage in made.values()
    )


def test_the_text_of_augmentation_does_not_choose_the_tokens_of_a_student_of_layers(arguments, tmp_path):
    (tmp_path / "text.txt").write_text("a good film\n")
    arguments |= {"student": "teacher-layers", "corpus": "text.txt", "architecture.vocabulary": "50"}
    made = declared(task_stages, arguments, tmp_path / "run")
    assert "corpus" in made["masked_lm"].inputs and "corpus" not in made["vocabulary"].inputs


def test_allow_bin_holds_in_every_stage_that_loads_a_given_model(arguments, tmp_path):
    arguments |= {"allow_bin": "true", "augmentation.masked_lm": "teacher", "corpus": "text.txt"}
    (tmp_path / "text.txt").write_text("a good film\n")
    made = declared(task_stages, arguments, tmp_path / "run")
    models = {"teacher", "student", "model"}
    loads = [
        name
        for name, stage in made.items()
        if any(isinstance(stage.inputs.get(model), dict) for model in models)
    ]
    assert {"check", "teacher", "masked_lm", "intermediate"} <= {*loads}
    assert all(made[name].options.get("allow_bin") for name in loads)


def test_compact_begins_as_the_packaged_student_and_general_distill_makes_one_of_its_sizes(
    arguments, tmp_path
):
    given = {name: arguments[name] for name in ("task", "data", "text_columns", "label_column")}
    options = load("small", given | {"preset": "compact", "teacher": "teacher"})
    made = {stage.name: stage for stage in task_stages(options).declare(tmp_path / "run")}
    assert made["vocabulary"].inputs["student"]["path"].endswith("general_student") and "general" not in made
    for preset in ("compact", "layers"):
        options = load("small", {"preset": preset, "teacher": "teacher"})
        made = {stage.name: stage for stage in general_stages(options).declare(tmp_path / "run")}
        assert list(made["check"].options["stages"]) == ["general"]
        assert made["general"].options["architecture"]["width"] == options.architecture.width
    with pytest.raises(UserError, match="'run:x' is not used: general-distill makes a student; leave it out"):
        general_stages(load("small", {"teacher": "teacher", "student": "run:x"}))


def test_projections_are_carried_over_only_from_where_there_are_some(arguments, tmp_path):
    arguments |= {"augment": "false", "intermediate.projection_init": "general"}
    with pytest.raises(
        UserError, match="'general' needs a projections.safetensors, .*teacher has none; leave"
    ):
        declared(task_stages, arguments, tmp_path / "run")
    (tmp_path / "teacher" / "projections.safetensors").touch()
    assert "intermediate" in declared(task_stages, arguments, tmp_path / "run")


@pytest.mark.parametrize("name", ["answers.xlsx", "model.safetensors"])
def test_a_teacher_that_is_a_file_and_not_a_table_is_refused(arguments, tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=rf"'{name}' is a file, but not a table: give .* the directory of a model"
    ):
        declared(task_stages, arguments | {"teacher": name, "answers.encoder": "teacher"}, tmp_path / "run")


def test_a_general_student_is_not_made_of_a_file(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"teacher: '.*' is a file, and a general student learns from a model"
    ):
        general_stages(load("small", {"teacher": str(file)}))


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_name_of_the_hub_is_looked_up_in_its_cache_where_the_hub_is_out_of_reach(
    tmp_path, monkeypatch, kind
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi", object)  # it can ask nothing, as without a network
    revision = tmp_path / f"{kind}s--owner--name" / "refs" / "main"
    revision.parent.mkdir(parents=True)
    revision.write_text("f" * 40)
    assert pin("owner/name", kind, "", tmp_path / "run") == {"hub": "owner/name", "revision": "f" * 40}
    with pytest.raises(UserError, match="'owner/other'.*out of reach"):
        pin("owner/other", kind, "give it", tmp_path / "run")
