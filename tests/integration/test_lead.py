"""LEAD through the command: dual encoders that teach and learn, killed, resumed, evaluated, asked."""

import json
import re

import pytest

from tests.integration.test_ranking import asked
from tests.stages.tasks.test_ranking import table

FROM = {"student": {"init": "warm"}, "reads": ["late"]}
DRAWN = {"score_distributions": {"layers": "random", "pairs": 2, "every": 2}}
RECIPE = {
    "seeds": [1],
    "tuning": {"epochs": 1},
    "base": {
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 32},
        "student": {"init": "teacher-layers", "layers": 2},
        "method": {"lead": {"vectors": "mean", "scale": 20.0}},
        "losses": ["in_batch_negatives"],
    },
    "stages": {
        "warm": {"training": {"epochs": 4}},
        "late": {"student": {"layers": 4}, "method": {"lead": {"vectors": "tokens", "scale": 5.0}}},
        "along": FROM | {
            "method": {"lead": {"train_teacher": True}},
            "losses": ["in_batch_negatives", {"in_batch_negatives": {"of": "teacher"}}, "score_distributions",
                       {"score_distributions": {"reverse": True}}],
        },
    },
    "students": {
        "of-cross-encoder": {"student": {"init": "warm"}, "reads": ["teacher"],
                             "method": {"lead": {"wrong": 2}}, "losses": ["in_batch_negatives", "candidate_scores"]},
        "lead": FROM | {"losses": ["in_batch_negatives", "score_distributions", DRAWN], "training": {"epochs": 2}},
    },
}  # fmt: skip
GIVEN = ("name=lead.yaml", "task=passages", "data=passages", "metric=map", "text_columns=question,sentence",
         "label_column=label", "reuse=false")  # fmt: skip


@pytest.fixture(scope="module")
def made(place):
    (place.path / "passages").mkdir()
    for name, count, seed in (("train", 24, 1), ("dev", 8, 2), ("test", 10, 3)):
        table(place.path / "passages" / f"{name}.tsv", asked(count, seed))
    (place.path / "lead.yaml").write_text(json.dumps(RECIPE))
    status, output = place.run("recipe", *GIVEN, "run=lead")
    assert status == 0, output
    return place.path / "runs/lead-seed1"


def test_it_learns_to_rank_and_is_asked(place, made):
    results = json.loads((made / "results.json").read_text())
    constant = json.loads((made / "evaluate/finished.json").read_text())["scores"]["constant"]
    assert results["lead"]["metric"] > constant + 0.1
    summary = (place.path / "runs/lead.md").read_text()
    assert re.search(
        r"^- lead: MRR@10 of 30 in test 0\.\d+, nDCG@10 .*recall@10 of 30 in test 0\.\d+$", summary, re.M
    )
    lines = [json.loads(line) for line in (made / "lead/metrics.jsonl").read_text().splitlines()]
    assert {"in_batch_negatives", "last_layer", "random_layers"} <= lines[0].keys()
    lines = [json.loads(line) for line in (made / "along/metrics.jsonl").read_text().splitlines()]
    assert {"in_batch_negatives_of_teacher", "last_layer_reversed"} <= lines[0].keys()
    assert not any("teacher" in path.name for path in (made / "along/model").iterdir())
    status, output = place.run("predict", "run=lead-seed1", "text=a film ?", "text_b=a good film", tiny=False)
    assert status == 0, output


@pytest.mark.slow
def test_killed_it_draws_the_same_layers_and_ends_in_the_same_weights(place, made):
    place.kill_during("killed-lead-seed1", "lead", *GIVEN, "run=killed-lead", command="recipe")
    status, output = place.run("recipe", *GIVEN, "run=killed-lead")
    assert status == 0 and "[lead] resumes" in output, output
    assert place.weights("killed-lead-seed1") == place.weights("lead-seed1")


@pytest.mark.parametrize(
    "change, words",
    [
        ("students.lead.reads=[]", "lead.reads: a loss reads the teacher, and there is none; name an earlier student"),
        ("students.lead.reads=[teacher]", "lead.losses: a cross-encoder has no vectors of layers to compare; take candidate_"),
        ("students.lead.losses=[gold_labels]", "lead.losses: 'gold_labels' does not read a dual encoder; take"),
        ("base.method={lead: {vectors: max}}", "lead.vectors: 'max' must be cls or mean or tokens"),
        ("base.method={lead: {scale: 0}}", "lead.scale: 0 must be a number above 0"),
        ("base.method={lead: {wrong: 0}}", "lead.wrong: 0 must be a whole number from 1 to 100"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line_before_anything_is_trained(place, made, change, words):
    status, output = place.run("recipe", *GIVEN, "run=wrong-lead", change)
    said = " ".join(output.split())
    assert status == 2 and re.search(words, said) and "Traceback" not in output, output
    assert "[teacher] starts" not in output
