"""Students of a corpus through the real command: made, killed and resumed, on one rank and two."""

import json
import re
import shutil

import pytest

from tests.conftest import make_corpus

RECIPE = """\
# make recipe NAME=pretrained
about: a student that goes through three stages of text
seeds: [1]
masked_lm: {epochs: 1, batch_size: 8, max_length: 32}
base:
  training: {epochs: 1, batch_size: 8, max_length: 32}
  losses: [gold_labels]
stages:
  text-general:
    data: corpus
    student: {layers: 2, width: 8, feed_forward: 16, heads: 2, dropout: 0.0}
    losses: [hidden_states, attention_scores]
    training: {mlm_probability: 0, epochs: 2}
  text-bundle:
    data: many.txt
    student: {init: text-general}
    losses: [masked_words, masked_soft_labels, attention_maps: {distance: kl}, hidden_states: {only: [2]}]
  text-continued:
    data: many.txt
    student: {init: text-bundle}
    losses: [masked_words, masked_soft_labels: {weight: {linear: [1, 0]}}]
students:
  tuned: {student: {init: text-continued}}
"""
COMMAND = ("recipe", "name=pretrained.yaml", "reuse=false")


@pytest.fixture(scope="module")
def run(place):
    """The run of the recipe."""
    make_corpus(place.path / "many.txt", 60)
    (place.path / "pretrained.yaml").write_text(RECIPE)
    status, output = place.run(*COMMAND)
    assert status == 0 and "of the masked tokens of held-out documents" in output, output
    return place.path / "runs/pretrained-seed1"


def test_the_students_are_made_and_masked_accuracy_is_kept(run):
    assert set(json.loads((run / "results.json").read_text())) == {"teacher", "tuned"}
    for stage in ("masked_lm-many-txt", "text-general", "text-bundle", "text-continued"):
        scores = json.loads((run / stage / "finished.json").read_text())["scores"]
        assert ("accuracy" in scores) == (stage != "text-general"), stage
        table = run.with_name("pretrained.md").read_text()
        assert bool(re.search(rf"\| {stage} +\|", table)) == ("accuracy" in scores)


def test_killed_in_a_stage_of_the_corpus_it_ends_in_the_same_weights(place, run):
    """The masks after the kill are those that would have been."""
    place.resumes(run.name, ("text-continued",), *COMMAND[1:], command="recipe")


def test_one_rank_and_two_have_the_same_losses(place, run):
    alone = place.metrics(run.name)["text-bundle"]
    shutil.rmtree(run / "text-bundle")
    status, output = place.run(*COMMAND, "job.nproc=2")
    assert status == 0 and "[text-bundle] starts" in output, output
    together = place.metrics(run.name)["text-bundle"]
    assert len(alone) == len(together) > 10 and alone[0]["masked_words"] > 0
    for one, two in zip(alone, together, strict=True):
        assert one == pytest.approx(two, rel=1e-4)
