import pytest

from checkpoints.errors import UserError
from pipeline.config.options import PRESETS, describe, load


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


@pytest.mark.parametrize(
    "override, words",
    [
        ("genral.epochs=2", "general.epochs"),
        ("epochs=2", "did you mean"),
        ("architecture=3", "unknown option"),
        ("general.epochs=two", "general.epochs='two'"),
        ("general.epochs=0", "above 0"),
        ("general.epochs=1.5", "int"),
        ("baselines=maybe", "true or false"),
        ("architecture.width=50", "multiple of architecture.heads"),
        ("run=../elsewhere", "stays under runs/"),
        ("job.zero=5", "job.zero=5"),
        ("prediction.grid={warmth: [1]}", "warmth"),
        ("noequals", "key=value"),
        ("general.layer_map=sideways", "uniform, last, first"),
        ("a=[", "not readable"),
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
    rows = describe()
    assert len(rows) > 40 and all(text and len(text) < 100 for _, _, text in rows)
    assert len({name for name, _, _ in rows}) == len(rows)
