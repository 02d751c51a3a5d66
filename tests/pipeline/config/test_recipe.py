"""Recipes as they are read, and what their runs come to. What they make is tested in integration/test_recipes.py."""

from types import SimpleNamespace

import pytest

from checkpoints.errors import UserError
from pipeline.config.recipe import RECIPES, known_recipes, read_recipe
from pipeline.config.schema import arguments
from pipeline.report.pareto import points_of
from pipeline.report.recipe_summary import _found as found_of
from pipeline.report.recipe_summary import _verdict as verdict
from pipeline.report.recipe_summary import grid_means, scores
from pipeline.report.tables import terminal_table


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_open_with_their_command_and_are_complete(path):
    assert path.read_text().startswith(("# make recipe NAME=", "# make sweep NAME="))
    recipe, o = read_recipe({"name": path.stem})
    assert set(recipe.students) >= set(recipe.shown) and recipe.main in recipe.shown
    assert known_recipes()[path.stem] and len(o.seeds) >= 3


def test_base_is_under_every_student_and_an_override_over_all(write):
    name = write(
        "base: {training: {epochs: 2, batch_size: 8}, losses: [gold_labels], student: {layers: 2}}\n"
        "stages: {first: {}}\n"
        "students: {second: {student: {init: first}, training: {epochs: 5}, losses: [soft_labels]}}\n"
    )
    given = ["base.training.batch_size=16", "task=x", "students.second.training.warmup=0.5"]
    recipe, o = read_recipe({"name": name} | arguments(given))
    assert o.task == "x" and recipe.shown == ["second"] and recipe.main == "second"
    first, second = recipe.students["first"], recipe.students["second"]
    assert first.training.epochs == 2 and second.training.epochs == 5
    assert second.training.batch_size == 16 and second.training.warmup == 0.5
    assert second.student.source == "first" and second.student.sizes == first.student.sizes
    assert first.losses == ["gold_labels"] and second.losses == ["soft_labels"]


def test_rows_are_those_of_the_recipes_own_task(write):
    name = write("rows: 40\ntask: a\nstudents: {one: {losses: [gold_labels]}}")
    for overrides, rows in (
        ([], 40), (["task=b"], 0), (["task=b", "data=x.csv"], 0), (["task=b", "rows=7"], 7), (["rows=0"], 0),
    ):  # fmt: skip
        assert read_recipe({"name": name} | arguments(overrides))[1].rows == rows
    for wrong in ("true", "-1", "2.5"):
        with pytest.raises(UserError, match="rows=.* must be (a valid integer|greater than or equal to 0)"):
            read_recipe({"name": name, "rows": wrong})


def test_a_recipe_wins_over_what_its_preset_sets_for_the_task(write, tmp_path):
    (tmp_path / "preset.yaml").write_text("tasks: {sts-b: {tuning.epochs: 4, tuning.batch_size: 16}}")
    name = write(
        f"extends: {tmp_path}/preset.yaml\ntask: sts-b\ntuning: {{epochs: 2}}\n"
        "tasks: {cola: {tuning.epochs: 5}}\nstudents: {one: {losses: [gold_labels]}}"
    )
    for task, epochs, batch in (("sts-b", 2, 16), ("stsb", 2, 16), ("cola", 5, 32)):
        tuning = read_recipe({"name": name, "task": task})[1].tuning
        assert (tuning.epochs, tuning.batch_size) == (epochs, batch)
    assert read_recipe({"name": name})[1].tuning.batch_size == 16


def test_a_grid_is_one_student_for_each_combination_that_means_something(write):
    name = write(
        "base: {student: {layers: 2}}\n"
        "grid:\n"
        "  what: {a: {losses: [soft_labels], without: [map]}, b: {losses: [hidden_states]}}\n"
        "  map: {first: {layer_map: first}, last: {layer_map: last}}\n"
        "  init: {random: {}, layers: {student: {init: teacher-layers}}}\n"
    )
    recipe, _ = read_recipe({"name": name})
    assert recipe.shown == [
        "a-random", "a-layers", "b-first-random", "b-first-layers", "b-last-random", "b-last-layers",
    ]  # fmt: skip
    assert recipe.grid_values["map"] == {
        "first": ["b-first-random", "b-first-layers"],
        "last": ["b-last-random", "b-last-layers"],
    }
    last = recipe.students["b-last-layers"]
    assert (last.student.layers, last.student.init) == (2, "teacher-layers")
    assert (last.losses, last.layer_map) == (["hidden_states"], "last")


def test_true_and_false_reach_losses_and_methods(tmp_path):
    """A text "false" would be taken for true."""
    path = tmp_path / "mine.yaml"
    path.write_text("students: {a: {losses: [x: {flag: false, of: [true]}], method: {y: {flag: false}}}}")
    student = read_recipe({"name": str(path)})[0].students["a"]
    assert student.losses == [{"x": {"flag": False, "of": [True]}}] and student.method == {
        "y": {"flag": False}
    }


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "students: {a: {losses: [gold_labels], rate: 1}}",
            "recipe mine: a: unknown option 'rate'",
        ),
        ("students: {a: {}}", r"a: losses=\[\] must be a list"),
        (
            "students: {a: {losses: [x], student: {init: b}}}",
            "init='b' must be one of random, teacher-layers, general",
        ),
        (
            "students: {a: {losses: [x], student: {width: 10, heads: 3}}}",
            "width=10 must be a multiple of heads=3",
        ),
        (
            "students: {a: {losses: [x], training: {epochs: -1}}}",
            "a: training.epochs=-1 must be greater than or equal to 0",
        ),
        (
            "students: {a: {losses: [x], training: {epoch: 1}}}",
            "unknown option 'training.epoch'; did you mean training.epochs",
        ),
        ("students: {teacher: {}}", "cannot be named 'teacher'"),
        ("students: {../a: {}}", r"cannot be named '\.\./a'"),
        ("students: {..: {losses: [x]}}", r"cannot be named '\.\.': choose another name"),
        ("students: {'': {losses: [x]}}", "cannot be named ''"),
        ("stages: {a: {losses: [x]}}\nstudents: {a: {losses: [y]}}", "two students are named a: choose"),
        ("students: {a: {losses: [x]}}\ngrid: {f: {a: {losses: [y]}}}", "two students are named a"),
        (
            "base: {losses: [x]}\ngrid: {f: {a: {}, a-b: {}}, g: {b-c: {}, c: {}}}",
            "two students of the grid are named a-b-c: rename a value",
        ),
        (
            "base: {losses: [x]}\ngrid: {what: {a: {without: map}, b: {}}, map: {c: {}, d: {}}}",
            r"grid.what.a.without='map' must be a list of factors of the grid, such as \[what\]; it has what, map",
        ),
        (
            "base: {losses: [x]}\ngrid: {what: {a: {without: [mpa]}, b: {}}, map: {c: {}, d: {}}}",
            r"grid.what.a.without=\['mpa'\] must be a list of factors of the grid",
        ),
        ("students: {a: {losses: [x]}}\nbaseline: b", "must be among a"),
        ("students: {a: {losses: [x]}}\nseeds: [one]", "seeds.0='one' must be a valid integer"),
        ("students: {a: {losses: [x]}}\ntsak: mrpc", "unknown option 'tsak'"),
        (
            "students: {a: {losses: [x]}}\naugment: true\nintermediate: {epochs: 2}",
            "recipe mine: augment, intermediate.epochs: not read by a recipe, .* leave it out",
        ),
        ("students: [a]", r"students=\['a'\] must be a valid dictionary"),
        ("grid: {a: 1}", "grid.a=1 must be a valid dictionary"),
        ("epochs: 2", "is not a recipe"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_told_in_a_line(write, text, words):
    with pytest.raises(UserError, match=words) as error:
        read_recipe({"name": write(text)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "option", ["augment=true", "baselines=true", "prediction.epochs=2", "finetuning.grid={}"]
)
def test_an_option_that_no_student_of_a_recipe_reads_is_refused(write, option):
    name, value = option.split("=")
    with pytest.raises(UserError, match=f"{name}: not read by a recipe"):
        read_recipe({"name": write("students: {a: {losses: [x]}}"), name: value})


def test_a_setting_of_a_recipes_students_is_suggested_by_its_path(write):
    students = "students: {a: {losses: [x], method: {grain: {density: 0.5}}}, b: {losses: [x]}}"
    for key, words in (
        ("density", "unknown option 'density'; did you mean students.a.method.grain.density\\?"),
        ("grain.density", "unknown option 'grain.density'; did you mean students.a.method.grain.density\\?"),
        ("sparsity", "unknown option 'sparsity'; --help lists all"),
    ):
        with pytest.raises(UserError, match=words):
            read_recipe({"name": write(students), key: "0.2"})


def test_an_unknown_recipe_is_told_with_those_there_are():
    with pytest.raises(UserError, match="unknown recipe 'tinybert': there are .*continuation-kd"):
        read_recipe({"name": "tinybert"})


class Run:
    """What the summary reads of a finished run."""

    def __init__(self, name: str, given: str = "packaged", **metrics: float):
        self.options = {"teacher": given}
        self.name, self.models, self.reference = name, list(metrics), "teacher"
        self.results = {m: SimpleNamespace(metric=v, flops=len(m)) for m, v in metrics.items()}


def test_gains_are_of_the_same_seed_and_levels_over_all_their_students(write):
    name = write("baseline: a\ngrid: {what: {a: {losses: [x]}, b: {losses: [y]}}}\nmain: b")
    recipe, _ = read_recipe({"name": name})
    runs = [Run("r", a=0.5, b=0.6), Run("r", a=0.7, b=0.8), Run("r", a=0.2, b=0.299)]
    assert scores(runs, "b") == [0.6, 0.8, 0.299]
    assert grid_means(recipe, runs)["what"] == pytest.approx({"a": 1.4 / 3, "b": 1.699 / 3})
    assert "b: +10.0 points over a, a significant gain" in verdict(recipe, runs)
    worse = [Run("r", a=0.5, b=0.6), Run("r", a=0.7, b=0.65), Run("r", a=0.2, b=0.3)]
    # Gains of 0.1, -0.05 and 0.1: their mean is significant if it is above 4.303 (t of two degrees) x 0.05.
    assert (
        "no significant gain (paired t-test over 3 seeds, p = 0.42; significant from 21.5 points on)"
        in verdict(recipe, worse)
    )
    assert "points on" not in verdict(recipe, runs)
    assert "one seed" in verdict(recipe, runs[:1])


def test_what_a_method_counted_is_written_as_whole_numbers():
    recipe = SimpleNamespace(students=["a", "b"])
    runs = [
        SimpleNamespace(stages=[SimpleNamespace(name=name, scores={"found": {"n-grams": count, "density": 0.5}}) for name in "ab"])
        for count in (214_998, 215_002)
    ]  # fmt: skip
    assert found_of(recipe, runs, terminal_table).splitlines()[-1].split() == [
        *("b", "215,000", "±", "3"), *("0.5000", "±", "0.0000")
    ]  # fmt: skip


def test_pareto_takes_seeds_together_and_marks_what_nothing_cheaper_surpasses():
    runs = [Run("x-seed1", teacher=0.9, aa=0.5, bbb=0.5), Run("x-seed2", teacher=0.9, aa=0.7, bbb=0.6)]
    points = points_of(runs)
    assert [(p.name, len(p.results), p.on_front) for p in points] == [
        ("x: aa", 2, True),
        ("x: bbb", 2, False),
        ("teacher", 2, True),
    ]


def test_pareto_keeps_teachers_of_different_kinds_apart():
    runs = [Run("x-seed1", teacher=0.9), Run("x-seed2", teacher=0.8), Run("y-seed1", "tiny", teacher=0.5)]
    points = {p.name: p.metric for p in points_of(runs)}
    assert points == {"teacher packaged": pytest.approx(0.85), "teacher tiny": 0.5}
