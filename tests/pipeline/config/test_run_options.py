import json
from pathlib import Path

import pytest
import yaml

from checkpoints.errors import UserError
from pipeline.config.inputs import given_student, given_task
from pipeline.config.run_options import PRESETS, TASK_STAGES, Options, load
from pipeline.config.schema import arguments, describe
from pipeline.config.two_stage import Given, two_stage


def test_presets_load_and_the_papers_settings_are_in_them():
    for path in PRESETS.glob("*.yaml"):
        assert path.read_text().startswith("# make "), "a preset opens with the command that runs it"
        load(path.stem, [])
    four = load("tinybert4", ["task=cola"])
    assert (four.architecture.layers, four.architecture.width, four.architecture.feed_forward) == (
        4,
        312,
        1200,
    )
    assert four.intermediate.epochs == 50 and four.prediction.max_length == 64
    assert load("tinybert4", ["task=MNLI"]).intermediate.epochs == 10
    assert load("tinybert4", ["task=rte"]).intermediate.epochs == 20
    six = load("tinybert6", [])
    assert (six.architecture.layers, six.architecture.width, six.architecture.feed_forward) == (6, 768, 3072)


def test_overrides_of_every_kind():
    o = load("small", [
        "general.learning_rate=1e-4", "intermediate.layer_map=[2, 4, 6]", "text_columns=a,b", "baselines=true",
        "prediction.grid={learning_rate: [1e-5, 3e-5]}", "general.epochs=2", "task=mrpc", "job.zero=2",
    ])  # fmt: skip
    assert o.general.learning_rate == 1e-4 and o.intermediate.layer_map == [2, 4, 6]
    assert o.text_columns == ["a", "b"] and o.baselines and o.job.zero == 2
    assert o.prediction.grid == {"learning_rate": [1e-5, 3e-5]}
    assert load("small", {"text_columns": ("a", "b"), "data": Path("c.csv")}).text_columns == ["a", "b"]


@pytest.mark.parametrize(
    "override, words",
    [
        ("genral.epochs=2", "general.epochs"),
        ("epochs=2", "did you mean"),
        ("architecture=3", "unknown option"),
        ("general.epochs=two", "general.epochs='two'"),
        ("general.epochs=0", "general.epochs=0 must be greater than 0"),
        ("general.epochs=1.5", "valid integer"),
        ("general.epochs=true", "valid integer"),
        ("general.learning_rate=.inf", "finite"),
        ("general.learning_rate=2", "less than 1"),
        ("baselines=maybe", "true or false"),
        ("baselines=middle", "baselines='middle' must be true or false or 'random', 'general' or 'layers'"),
        ("architecture.width=50", "multiple of architecture.heads"),
        ("run=../elsewhere", "stays under runs/"),
        ("job.zero=5", "job.zero=5"),
        ("prediction.grid={warmth: [1]}", "warmth"),
        ("noequals", "key=value"),
        ("general.layer_map=sideways", "must be 'uniform', 'last' or 'first' or a valid list"),
        ("job.micro_batch=-1", "must be 'auto' or greater than or equal to 0"),
        ("prediction.grid={learning_rate: []}", "must have at least 1 item"),
        ("--task", "--task VALUE"),
        ("seeds=one", "seeds.0='one' must be a valid integer"),
        ("text_columns=[", "not readable"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(override, words):
    with pytest.raises(UserError) as caught:
        load("small", [override])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("other", ["job.skip_bad_batches=true", "job.precision=fp16"])
def test_what_needs_zero_0_is_refused_before_anything_starts(other):
    with pytest.raises(UserError, match=f"{other} needs job.zero=0"):
        load("small", ["job.zero=2", other])


def test_the_preset_layers_has_no_general_student_and_its_own_passes():
    options = load("small", ["preset=layers", "task=sts-b"])
    assert (options.student, options.architecture.layers, options.architecture.vocabulary) == (
        "teacher-layers",
        2,
        9000,
    )
    assert (options.intermediate.epochs, options.prediction.epochs, options.tuning.epochs) == (4, 3, 4)


def test_an_unknown_preset_lists_the_known(tmp_path):
    with pytest.raises(UserError, match="small, tinybert4, tinybert6"):
        load("smal", [])
    with pytest.raises(UserError, match="unknown preset"):
        load("../../etc/passwd", [])
    mine = tmp_path / "mine.yaml"
    mine.write_text("general: {epochs: 7}\n")
    assert load(str(mine), []).general.epochs == 7
    mine.write_text("general: [broken\n")
    with pytest.raises(UserError, match="not readable YAML"):
        load(str(mine), [])
    mine.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="not readable YAML"):
        load(str(mine), [])


def test_every_option_explains_itself():
    rows = describe(Options)
    assert len(rows) > 40 and all(row.help and len(row.help) < 100 for row in rows)
    assert len({row.name for row in rows}) == len(rows)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(UserError) as caught:
        load("small", ["general.epochs=0", "job.zero=5", "augment=maybe", "tuning.schedule=cosine"])
    for words in (
        "general.epochs=0 must be greater than 0", "job.zero=5 must be less than or equal to 3",
        "augment='maybe' must be true or false", "tuning.schedule='cosine' must be 'linear' or 'constant'",
    ):  # fmt: skip
        assert words in str(caught.value)


def test_a_preset_may_extend_another(tmp_path):
    four, six = load("tinybert4", ["task=cola"]), load("tinybert6", ["task=cola"])
    assert six.architecture.layers == 6 and six.intermediate == four.intermediate
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: tinybert6\ngeneral.epochs: 1\ntasks: {cola: {intermediate: {epochs: 2}}}\n")
    o = load(str(mine), ["task=cola", "general.batch_size=8"])
    assert (o.general.epochs, o.general.batch_size, o.intermediate.epochs, o.architecture.layers) == (
        1,
        8,
        2,
        6,
    )
    mine.write_text(f"extends: {mine}\n")
    with pytest.raises(UserError, match="extends itself"):
        load(str(mine), [])


def test_max_length_is_that_of_all_task_stages_without_one_of_their_own(tmp_path):
    def lengths(given):
        options = load("small", given)
        return [getattr(options, stage).max_length for stage in TASK_STAGES]

    assert TASK_STAGES == ("tuning", "intermediate", "prediction", "finetuning")
    assert lengths({}) == [64] * 4 and lengths({"task": "mrpc"}) == [128] * 4
    assert lengths({"task": "mrpc", "max_length": "96"}) == [96] * 4
    assert lengths({"max_length": "96", "prediction.max_length": "48"}) == [96, 96, 48, 96]
    (tmp_path / "mine.yaml").write_text("extends: small\nmax_length: 200\ntuning: {max_length: 300}\n")
    assert lengths({"preset": str(tmp_path / "mine.yaml")}) == [300, 200, 200, 200]
    assert lengths({"preset": str(tmp_path / "mine.yaml"), "max_length": 0}) == [300, 200, 200, 200]
    with pytest.raises(UserError, match="^max_length"):
        load("small", {"max_length": "long"})


def test_texts_values_and_the_three_ways_to_write_an_option_are_the_same():
    given = arguments(
        ["general.epochs=2", "--seeds=1 2 3", "--run", "2024-01-01", "text_columns=a,b c", "--seed", "-1"]
    )
    assert given == {
        "general.epochs": "2", "seeds": "1 2 3", "run": "2024-01-01", "text_columns": "a,b c", "seed": "-1",
    }  # fmt: skip
    from_python = {
        "general": {"epochs": 2},
        "seeds": [1, 2, 3],
        "run": "2024-01-01",
        "text_columns": ["a", "b c"],
    }
    assert load("small", given | {"seed": "1"}) == load("small", from_python)


@pytest.mark.parametrize(
    "given",
    ["intermediate.layer_map=[true, 2]", "intermediate.layer_map=[no]", "seeds=[true]", "seeds=yes",
     "general.epochs=true", "prediction.grid={epochs: [true]}", "prediction.grid={learning_rate: yes}"],
)  # fmt: skip
def test_true_is_not_the_number_one(given):
    with pytest.raises(UserError, match=given.partition("=")[0].replace(".", "[.]")) as caught:
        load("small", [given])
    assert "\n" not in str(caught.value)
    name, _, value = given.partition("=")
    with pytest.raises(UserError):  # as from Python and from a preset
        load("small", {name: yaml.safe_load(value)})


def test_lists_of_names_may_hold_anything():
    def labels(text):
        return load("small", [f"labels={text}"]).labels

    assert (
        labels("yes,no") == ["yes", "no"]
        and labels("a, b c") == ["a", "b c"]
        and labels("1,01") == ["1", "01"]
    )
    assert labels('["a, b", "it\'s", "\\"c\\""]') == ["a, b", "it's", '"c"']
    assert labels("['a, b', c]") == ["a, b", "c"] and labels("a: b,c") == ["a: b", "c"]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["false"], []),
        (["random"], ["finetuned"]),
        (["general"], ["finetuned_general"]),
        (["true"], ["finetuned", "finetuned_general"]),
        (["layers", "student=teacher-layers"], ["finetuned_layers"]),
        (["true", "student=teacher-layers"], ["finetuned", "finetuned_layers"]),
    ],
)
def test_baselines_are_one_or_both(value, names):
    o = load("demo", [f"baselines={value[0]}", *value[1:]])
    stages = two_stage(o, Given(teacher={}, task={}, corpora={"corpus": {}}))
    assert [stage.name for stage in stages if stage.stage_type == "finetune"] == names
    assert set(names) <= set(stages[-1].options["models"])


def test_a_baseline_needs_what_it_begins_with():
    with pytest.raises(UserError, match="baselines=general needs a general student.*baselines=layers"):
        load("small", ["baselines=general", "student=teacher-layers"])
    with pytest.raises(UserError, match="baselines=layers needs student=teacher-layers.*baselines=general"):
        load("small", ["baselines=layers"])


def test_projections_of_the_general_stage_need_a_general_student():
    with pytest.raises(UserError, match="intermediate.projection_init=general needs a general student"):
        load("small", ["preset=layers", "intermediate.projection_init=general"])


def test_a_run_of_the_general_stage_alone_gives_its_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, stages in (("text", ["check", "general"]), ("half", ["check", "general", "evaluate"])):
        model = tmp_path / "runs" / run / "general" / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (tmp_path / "runs" / run / "options.json").write_text(json.dumps({"stages": stages}))
    given = given_student("run:text", Path("runs/task"))
    assert given["path"] == str(tmp_path / "runs/text/general/model")
    with pytest.raises(UserError, match="run 'half' has no student yet"):
        given_student("run:half", Path("runs/task"))


def test_check_refuses_a_swap_and_the_teacher_does_not_depend_on_it():
    given = Given(teacher={"path": "t"}, task={"path": "x"}, corpora={"corpus": {"path": "c"}})
    stages = {}
    for entities in ("keep", "swap"):
        o = load("small", ["task=x", "augment=true", f"augmentation.entities={entities}"])
        stages[entities] = {stage.name: stage for stage in two_stage(o, given)}
    assert stages["swap"]["check"].options["swaps_entities"] is True
    assert stages["swap"]["teacher"] == stages["keep"]["teacher"]
    assert stages["swap"]["augment"] != stages["keep"]["augment"]


def test_dev_decides_nothing_in_a_stage_without_dev_rows():
    with pytest.raises(
        UserError, match="general.patience=2 and general.evaluate_every=0 must be 0: .* no dev rows"
    ):
        load("small", ["general.patience=2"])
    with pytest.raises(UserError, match="masked_lm.patience=0 and masked_lm.evaluate_every=50 must be 0"):
        load("small", ["masked_lm.evaluate_every=50"])


def test_rows_limit_the_training_rows_of_any_task():
    few = load("small", ["task=rotten-tomatoes", "rows=40", "seed=3"])
    assert given_task(few)["identity"]["rows"] == [40, 3]
    assert "rows" not in given_task(load("small", ["task=rotten-tomatoes"]))["identity"]
