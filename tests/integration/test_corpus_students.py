"""Students of a corpus through the real command: made, killed and resumed, on one rank and two."""

import json
import signal

import pytest
from transformers import AutoModelForMaskedLM

from tests.conftest import make_corpus, make_tokenizer
from tests.integration.conftest import workers_of

RECIPE = """\
# make recipe NAME=pretrained
about: a bundle and a continued student, tuned on the task
seeds: [1]
baseline: plain
masked_lm: {epochs: 1, batch_size: 8, max_length: 32}
base:
  student: {layers: 2, width: 8, feed_forward: 16, heads: 2, dropout: 0.0}
  training: {epochs: 1, batch_size: 8, max_length: 32}
  objectives: [gold_labels]
stages:
  text-general: {data: corpus, objectives: [hidden_states], training: {masked_share: 0}}
  text-bundle:
    data: many.txt
    objectives: [masked_words, masked_soft_labels, attention_maps: {distance: kl}, hidden_states: {only: [2]}]
    training: {epochs: 2}
  text-continued: {data: many.txt, student: {init: text-general}, objectives: [masked_words]}
students:
  plain: {student: {init: text-general}}
  continued: {student: {init: text-continued}}
  bundle: {student: {init: text-bundle}}
"""


@pytest.fixture(scope="module")
def recipe(place):
    make_corpus(place.path / "many.txt", 60)
    (place.path / "pretrained.yaml").write_text(RECIPE)
    return "name=pretrained.yaml"


def lines_of(place, run, stage):
    lines = (place.path / "runs" / run / stage / "metrics.jsonl").read_text().splitlines()
    kept = ("step", "masked_words", "masked_soft_labels", "maps", "hidden")
    return [{key: value for key, value in json.loads(line).items() if key in kept} for line in lines]


def test_killed_in_a_stage_of_the_corpus_it_ends_in_the_same_weights(place, recipe):
    status, output = place.run("recipe", recipe, "run=mlm", "reuse=false")
    assert status == 0 and "of the masked word pieces of held-out documents" in output, output
    run = place.path / "runs/mlm-seed1"
    assert set(json.loads((run / "results.json").read_text())) == {
        "teacher",
        "general",
        "continued",
        "bundle",
    }
    for stage, words in (("masked_lm-many-txt", True), ("text-bundle", True), ("text-general", False)):
        scores = json.loads((run / stage / "finished.json").read_text())["scores"]
        assert ("accuracy" in scores) == words, stage

    def there():
        return any(
            (place.path / "runs/mlm-killed-seed1/text-bundle/checkpoints").glob("step-*/manifest.json")
        )

    killed = ("recipe", recipe, "run=mlm-killed", "reuse=false")
    status, output = place.interrupt(there, signal.SIGKILL, *killed)
    assert status == -signal.SIGKILL, output
    while workers_of(place.path / "runs/mlm-killed-seed1"):
        pass
    status, output = place.run(*killed)
    assert status == 0 and "[text-bundle] goes on" in output and "resumed at step" in output, output
    assert place.weights("mlm-killed-seed1") == place.weights("mlm-seed1")
    assert lines_of(place, "mlm-killed-seed1", "text-bundle") == lines_of(place, "mlm-seed1", "text-bundle")


def test_one_rank_and_two_have_the_same_losses(place, recipe):
    """All pieces are masked, since which are depends on the rank; the teacher has a head, which is taken as it is."""
    model = AutoModelForMaskedLM.from_pretrained(place.path / "teacher")
    model.save_pretrained(place.path / "teacher-mlm")
    make_tokenizer(place.path / "teacher-mlm")
    same = (
        recipe, "teacher=teacher-mlm", "reuse=false", "stages.text-bundle.training.masked_share=0.999999",
    )  # fmt: skip
    losses = []
    for ranks in (1, 2):
        status, output = place.run("recipe", *same, f"run=mlm{ranks}", f"job.nproc={ranks}")
        assert status == 0 and "[text-bundle] starts" in output, output
        losses.append(lines_of(place, f"mlm{ranks}-seed1", "text-bundle"))
    assert len(losses[0]) == len(losses[1]) > 10
    for one, two in zip(*losses, strict=True):
        assert one == pytest.approx(two, rel=1e-4) and one["masked_words"] > 0
