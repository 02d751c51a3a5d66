"""What is made again, and what is kept."""

import shutil

import pytest

import pipeline.plan as planning
from checkpoints import store
from checkpoints.errors import UserError
from pipeline.config.run_options import load
from pipeline.config.two_stage import StageSpec
from pipeline.plan import check_inputs, plan, read_finished, write_stage_spec
from pipeline.report.run_record import _read_stage


def test_a_kind_that_learns_something_new_is_made_again_alone(tmp_path, monkeypatch):
    stages = [
        StageSpec("prediction", "prediction", {"seed": 1}, {"task": {"name": "tiny"}}),
        StageSpec("evaluate", "evaluate", {"models": []}, {"distilled": "prediction"}),
    ]
    o, run = load("small", ["job.precision=fp32"]), tmp_path / "run"
    monkeypatch.setattr(planning, "FORMATS", {})
    for step in plan(stages, run, o):
        write_stage_spec(step, {"prediction": run / "prediction" / "model"}, o)
        with store.sealed(step.directory / "model") as directory:
            (directory / "file").touch()
        store.write_json(step.directory / "finished.json", {"fingerprint": step.fingerprint})
    assert [step.action for step in plan(stages, run, o)] == ["skip", "skip"]
    monkeypatch.setattr(planning, "FORMATS", {"evaluate": planning.FORMAT + 1})
    kept, again = plan(stages, run, o)
    assert kept.action == "skip" and again.action == "run"
    assert again.cause == f"evaluate's format was {planning.FORMAT}, is {planning.FORMAT + 1}"


def test_a_stage_goes_on_from_a_checkpoint_or_a_shard_of_the_teachers_layers(tmp_path):
    stages = [StageSpec("intermediate", "intermediate", {"seed": 1}, {"task": {"name": "tiny"}})]
    o, run = load("small", ["job.precision=fp32", "job.compile=auto"]), tmp_path / "run"
    for made in ("checkpoints/step-00000001", "teacher/train/step-00000000"):
        (step,) = plan(stages, run, o)
        assert step.action == "run"
        write_stage_spec(step, {}, o)
        with store.sealed(step.directory / made) as directory:
            (directory / "file").touch()
        (step,) = plan(stages, run, o)
        assert step.action == "resume"
        spec = store.read_json(step.directory / "stage.json")
        store.write_json(step.directory / "stage.json", spec | {"job": spec["job"] | {"compile": "on"}})
        write_stage_spec(step, {}, o)
        assert store.read_json(step.directory / "stage.json")["job"]["compile"] == "on"  # what auto came to
        assert (step.directory / made).is_dir()
        store.remove(run)


def test_an_evaluation_goes_on_from_a_models_logits_unless_something_changed(tmp_path):
    def planned(models: list[str]):
        stages = [StageSpec("evaluate", "evaluate", {"models": models})]
        (step,) = plan(stages, tmp_path / "run", o)
        return step

    o = load("small", ["job.precision=fp32"])
    write_stage_spec(planned(["teacher"]), {}, o)
    with store.sealed(tmp_path / "run/evaluate/logits/teacher/dev") as directory:
        (directory / "file").touch()
    assert planned(["teacher"]).action == "resume"
    other = planned(["teacher", "distilled"])
    assert (other.action, other.discards) == ("run", True)


def test_a_half_done_stage_gives_way_to_the_same_one_that_another_run_has_finished(tmp_path):
    def planned(*given: str, seed: int = 1):
        stages = [StageSpec("general", "general", {"seed": seed})]
        (step,) = plan(stages, tmp_path / "run", load("small", ["job.precision=fp32", *given]))
        return step

    o, other = load("small", ["job.precision=fp32"]), tmp_path / "other" / "general"
    write_stage_spec(planned(), {}, o)
    for made in (tmp_path / "run/general/checkpoints/step-00000001", other / "model"):
        with store.sealed(made) as directory:
            (directory / "file").write_text("weights")
    assert planned().action == "resume"
    store.write_json(other / "finished.json", {"fingerprint": planned().fingerprint})
    assert planned("reuse=false").action == "resume"
    with pytest.raises(UserError, match="half done with other options"):
        planned(seed=2)
    (other / "model" / "file").write_text("weighty")  # as long, but damaged
    assert planned().action == "resume"
    (other / "model" / "file").write_text("weights")
    step = planned()
    assert (step.action, step.made, step.discards) == ("reuse", other, True)
    write_stage_spec(step, {}, o)
    assert not (step.directory / "checkpoints").exists()
    step = planned()
    assert (step.action, step.made, step.discards) == ("skip", other.resolve(), False)


def test_a_reused_stage_that_its_run_has_made_anew_is_not_taken_for_the_old_one(tmp_path):
    o = load("small", ["job.precision=fp32"])

    def planned(run: str, seed: int, reuse: str = "true"):
        options = load("small", ["job.precision=fp32", f"reuse={reuse}"])
        (step,) = plan([StageSpec("general", "general", {"seed": seed})], tmp_path / run, options)
        return step

    def make(step):
        write_stage_spec(step, {}, o)
        with store.sealed(step.directory / "model") as directory:
            (directory / "file").write_text("weights")
        store.write_json(step.directory / "finished.json", {"fingerprint": step.fingerprint})

    make(planned("a", seed=1))
    write_stage_spec(planned("b", seed=1), {}, o)
    assert planned("b", seed=1).action == "skip"
    step = planned("b", seed=1, reuse="false")
    assert (step.action, step.cause) == ("run", "reuse=false")
    make(planned("a", seed=2))
    step = planned("b", seed=1)
    assert (step.action, step.cause) == ("run", "the run that it was reused from no longer has it")
    assert read_finished(tmp_path / "b" / "general") == {}


def test_what_a_run_reports_stays_its_own_where_a_stage_that_it_reused_was_made_anew(tmp_path):
    own, other = tmp_path / "b" / "general", tmp_path / "a" / "general"
    for directory in (own, other):
        directory.mkdir(parents=True)
        (directory / "metrics.jsonl").write_text('{"step": 1}\n')
    spec = {"stage_type": "general", "options": {}, "inputs": {}}
    finished = {"fingerprint": "old", "from": "../../a/general", "scores": {"steps": 3}, "time": "today"}
    store.write_json(own / "stage.json", spec)
    store.write_json(own / "finished.json", finished)
    store.write_json(other / "finished.json", {"fingerprint": "old"})
    assert (_read_stage(own).reused, _read_stage(own).directory) == ("a", other.resolve())
    store.write_json(other / "finished.json", {"fingerprint": "new"})
    record = _read_stage(own)
    assert (record.scores, record.reused, record.directory) == ({"steps": 3}, "", own)


def test_an_input_that_another_run_has_replaced_since_the_plan_is_refused(tmp_path):
    o, made = load("small", ["job.precision=fp32"]), tmp_path / "a" / "general"
    stages = [
        StageSpec("general", "general", {"seed": 1}),
        StageSpec("intermediate", "intermediate", {}, {"student": "general"}),
    ]
    key = plan(stages, tmp_path / "b", o)[0].fingerprint
    with store.sealed(made / "model") as directory:
        (directory / "file").write_text("weights")
    store.write_json(made / "finished.json", {"fingerprint": key})
    steps = {step.stage.name: step for step in plan(stages, tmp_path / "b", o)}
    assert steps["general"].action == "reuse"
    check_inputs(steps["intermediate"], steps)
    store.write_json(made / "finished.json", {"fingerprint": "of other options"})
    with pytest.raises(UserError, match=r"a/general, which intermediate reads, was changed or removed since"):
        check_inputs(steps["intermediate"], steps)


def test_a_change_is_named_by_its_option_and_what_depends_on_it_by_the_stage(tmp_path):
    def stages(epochs: int = 2, layers: int = 3) -> list[StageSpec]:
        of_general = {"training": {"epochs": 1}, "architecture": {"layers": layers}}
        return [
            StageSpec("teacher", "teacher", {"training": {"epochs": epochs}}, {"task": {"name": "tiny"}}),
            StageSpec("general", "general", of_general),
            StageSpec("intermediate", "intermediate", {}, {"teacher": "teacher", "student": "general"}),
        ]

    o, run = load("small", ["job.precision=fp32"]), tmp_path / "run"
    for step in plan(stages(), run, o):
        write_stage_spec(step, {"teacher": run, "general": run}, o)
        with store.sealed(step.directory / "model") as directory:
            (directory / "file").touch()
        store.write_json(step.directory / "finished.json", {"fingerprint": step.fingerprint})
    assert [step.cause for step in plan(stages(), run, o)] == ["", "", ""]
    again = list(map(str, plan(stages(epochs=4), run, o)))  # as a command and the doctor show them
    assert again[:2] == ["pending again: tuning.epochs was 2, is 4", "finished"]
    changed = [step.cause for step in plan(stages(epochs=4), run, o)]
    assert changed == ["tuning.epochs was 2, is 4", "", "its input changed: teacher"]
    changed = [step.cause for step in plan(stages(layers=4), run, o)]
    assert changed == ["", "architecture.layers was 3, is 4", "its input changed: general"]
    shutil.rmtree(run / "intermediate" / "model")
    assert [step.cause for step in plan(stages(), run, o)][2] == "it is damaged, or another version made it"
    of_other = {"fingerprint": "that of another teacher's"}
    for name in ("finished.json", "stage.json"):
        path = run / "intermediate" / name
        store.write_json(path, store.read_json(path) | of_other)
    assert [step.cause for step in plan(stages(), run, o)][2] == "its input changed: teacher or general"
    (run / "teacher" / "finished.json").unlink()
    with store.sealed(run / "teacher" / "checkpoints" / "step-00000001") as directory:
        (directory / "file").touch()
    with pytest.raises(UserError, match=r"half done with other options \(tuning.epochs was 2, is 4\)"):
        plan(stages(epochs=4), run, o)


def test_the_option_of_a_recipes_own_student_keeps_its_whole_name(tmp_path):
    def stages(epochs: int) -> list[StageSpec]:
        return [StageSpec("kd", "student", {"training": {"epochs": epochs}}, {"task": {"name": "tiny"}})]

    o, run = load("small", ["job.precision=fp32"]), tmp_path / "run"
    (step,) = plan(stages(1), run, o)
    write_stage_spec(step, {}, o)
    store.write_json(step.directory / "finished.json", {"fingerprint": step.fingerprint})
    assert plan(stages(3), run, o)[0].cause == "kd.training.epochs was 1, is 3"
