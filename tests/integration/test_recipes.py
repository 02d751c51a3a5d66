"""A recipe through the real command, on a tiny teacher."""

import json
import re

import pytest

RECIPE = """\
# make recipe NAME=mine
about: two ways
seeds: [1, 2]
baseline: plain
base:
  student: {layers: 2, width: 8, feed_forward: 16, heads: 2}
  training: {epochs: 2, batch_size: 8, max_length: 32}
stages:
  layers: {losses: [hidden_states, attention_maps, relations: {of: values}, gram]}
students:
  plain: {losses: [gold_labels]}
  both:
    student: {init: layers}
    losses: [gold_labels: {weight: {linear: [0, 1]}}, continuation: {phi: {stairs: [0.1, 1, 4]}}]
"""


@pytest.fixture(scope="module")
def recipe(place):
    (place.path / "mine.yaml").write_text(RECIPE)
    return "name=mine.yaml"


@pytest.fixture(scope="module")
def made(place, recipe):
    """The output of the recipe's runs."""
    status, output = place.run("recipe", recipe, "reuse=false")
    assert status == 0, output
    return output


def test_a_recipe_makes_its_students_over_its_seeds_and_says_what_is_gained(place, recipe, made):
    assert "no significant gain" in made
    for seed in (1, 2):
        run = place.path / f"runs/mine-seed{seed}"
        assert set(json.loads((run / "results.json").read_text())) == {"teacher", "plain", "both"}
    assert re.search(r"\| \*\*both\*\* +\|", (place.path / "runs/mine.md").read_text())
    assert (place.path / "runs/mine.png").read_bytes()[1:4] == b"PNG"
    status, output = place.run("recipe", recipe)
    assert status == 0 and "starts" not in output, output
    assert place.run("recipe", recipe, "run=changed", "seeds=1")[0] == 0
    # A command for another seed adds to the summary, and does not replace it by its own seed's.
    assert place.run("recipe", recipe, "run=changed", "seeds=2")[0] == 0
    summary = place.path / "runs/changed.md"
    assert "(10 rows), seeds 1, 2, mean" in summary.read_text()
    assert "paired t-test over 2 seeds" in summary.read_text()
    status, output = place.run("recipe", recipe, "run=changed", "seeds=1", "students.both.training.epochs=1")
    started = {line.split("]")[0].strip("[") for line in output.splitlines() if "starts" in line}
    assert status == 0 and started == {"check", "both", "evaluate"}, output
    assert "(10 rows), seed 1; the best constant" in summary.read_text()  # seed 2 has other settings

    # Whatever shows a finished run shows this one, by the recipe's own words.
    status, output = place.run("report", "run=mine-seed1", tiny=False)
    page = (place.path / "runs/mine-seed1/report.html").read_text()
    assert status == 0 and "both" in page and "pipeline recipe " in page and "name=mine.yaml" in page, output
    status, output = place.run("predict", "run=mine-seed1", "text=a fine film", tiny=False)
    assert status == 0 and "a fine film" in output, output
    status, output = place.run("pareto", "task=tiny", tiny=False)
    assert status == 0 and "mine: both" in output, output


def test_a_scheduled_student_killed_and_resumed_is_bitwise_the_same(place, made, recipe):
    place.resumes("mine-seed1", ("both",), recipe, "seeds=1", "reuse=false", command="recipe")


def test_what_does_not_fit_is_told_before_anything_is_trained(place, recipe):
    status, output = place.run("recipe", recipe, "run=wrong", "students.both.losses=[soft_label]")
    assert status == 2 and "error: check: both.losses: 'soft_label' is unknown" in output.replace(
        "\n", " "
    ), output
    status, output = place.run("recipe", recipe, "run=wrong", "base.layer_map=[1, 19]")
    assert status == 2 and "from 1 to 4" in output and "[teacher]" not in output, output
    status, output = place.run("recipe", "name=nothing", tiny=False)
    assert status == 2 and "unknown recipe 'nothing'" in output, output
    status, output = place.run("recipes", tiny=False)
    assert status == 0 and "continuation-kd" in output, output
