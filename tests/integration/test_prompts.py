"""Soft prompts, prompt transfer and PANDA through the real command: made, killed, resumed, shown, exported, asked."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file

from tests.integration.conftest import ROOT

RECIPE = {
    "seeds": [1],
    "baseline": "fresh",
    "main": "panda-other",
    "base": {
        "student": {"init": "encoder"},
        "method": "soft_prompt",
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 32},
        "losses": ["gold_labels"],
    },
    "stages": {"source": {"task": {"name": "other.yaml", "rows": 24}}},
    "students": {
        "fresh": {},
        "tuned": {"method": "plain"},
        "transfer-other": {"student": {"init": "source"}},
        "panda-other": {
            "method": "panda",
            "reads": ["transfer-other", "source", "fresh"],
            "losses": ["gold_labels", {"matched_logits": {"weight": "similarity"}}],
        },
    },
}
OTHER = {"text": "text", "label": "kind"}


@pytest.fixture(scope="module")
def prompts(place):
    rows = (place.path / "data/train.csv").read_text().splitlines()[1:]
    for name, part in (("train", rows), ("dev", rows[:12])):
        lines = [
            f"{text},{'long' if text.count(' ') > 7 else 'short'}"
            for text in (row.rpartition(",")[0] for row in part)
        ]
        (place.path / f"other-{name}.csv").write_text("\n".join(["text,kind", *lines]) + "\n")
    other = OTHER | {name: f"other-{name}.csv" for name in ("train", "dev")}
    (place.path / "other.yaml").write_text(yaml.safe_dump(other))
    (place.path / "prompts.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    status, output = place.run("recipe", "name=prompts.yaml", "run=prompts", "reuse=false")
    assert status == 0, output
    return output


def test_a_prompt_trains_alone_and_goes_on_from_another_task(place, prompts):
    run = place.path / "runs/prompts-seed1"
    weights = {
        name: load_file(run / name / "model/model.safetensors")
        for name in ("source", "fresh", "transfer-other", "panda-other")
    }
    given = load_file(place.path / "teacher/model.safetensors")
    for name, found in weights.items():
        for part, tensor in given.items():
            assert found[f"encoder.{part}"].equal(tensor), (name, part)
    prompt = {name: found["encoder.prompt.table.weight"] for name, found in weights.items()}
    begun = (prompt["transfer-other"] - prompt["source"]).abs().max()
    assert 0 < begun < (prompt["fresh"] - prompt["source"]).abs().max()
    assert weights["source"]["classifier.weight"].shape == weights["fresh"]["classifier.weight"].shape
    task = json.loads((run / "source/stage.json").read_text())["inputs"]
    assert (
        task["task"]["identity"]["rows"] == [24, 1] and "stage" not in task["teacher"]
    )  # known by no target
    found = json.loads((run / "panda-other/finished.json").read_text())["scores"]["found"]
    assert found.keys() == {"similarity", "cosine of mean prompt tokens"} and -1 <= found["similarity"] <= 1
    assert set(json.loads((run / "results.json").read_text())) == {"teacher", *RECIPE["students"]}
    assert "- panda-other: similarity " in (place.path / "runs/prompts.md").read_text()


def test_a_student_with_a_prompt_is_exported_and_asked_as_any_other(place, prompts):
    status, output = place.run("export", "run=prompts-seed1", "to=exported-prompts", tiny=False)
    assert status == 0 and "import stages.distillation.students" in output and "ONNX fp32" in output, output
    answers = [
        place.run("predict", of, "text=a good film of great warm actor", tiny=False)
        for of in ("run=prompts-seed1", "model=exported-prompts")
    ]
    assert answers[0] == answers[1] and answers[0][0] == 0, answers
    for command in (("report", "run=prompts-seed1"), ("pareto", "task=tiny")):
        status, output = place.run(*command, tiny=False)
        assert status == 0, output


def test_the_gains_of_all_pairs_of_tasks_are_shown(place, prompts):
    script = [sys.executable, str(ROOT / "docs/recipes/prompt_transfer.py"), "prompts"]
    output = subprocess.run(script, cwd=place.path, capture_output=True, text=True, check=True).stdout
    results = json.loads((place.path / "runs/prompts-seed1/results.json").read_text())
    gain = 100 * (results["transfer-other"]["metric"] - results["fresh"]["metric"])
    assert f"prompts: transfer {gain:+.1f} points over sources, {gain:+.1f} with the best (other)" in output
    assert re.search(r"^\| prompts +\| other +\|", output, re.M) and "1 pairs are too few" in output


@pytest.mark.slow
def test_source_and_student_killed_and_resumed_are_bitwise_the_same(place, prompts):
    given = ("name=prompts.yaml", "reuse=false")
    place.resumes("prompts-seed1", ("source", "panda-other"), *given, command="recipe")


@pytest.mark.parametrize(
    "change, words",
    [
        ("stages.source.losses=[soft_labels]", r"source.losses: \['soft_labels'\] read a teacher, and there is none"),
        ("stages.source.student.init=teacher-layers", "source: init=teacher-layers: .* take encoder"),
        ("stages.source.task.name=nothing", "'nothing' is unknown"),
        ("students.panda-other.reads=[transfer-other]", "panda-other.method.panda.reads: .* must be three earlier students"),
        ("students.panda-other.method={assistants: {}}", "panda-other.reads: 'source' learned another task"),
        ("students.panda-other.reads=[transfer-other,source,tuned]", "panda-other.reads: 'tuned' has no prompt"),
        ("students.panda-other.losses=[gold_labels]", "panda-other.losses: a transferred prompt teaches by its logits"),
        ("students.fresh.task={name: other.yaml}", "fresh: task.name='other.yaml': .* put it under stages"),
    ],
)  # fmt: skip
def test_mistakes_about_prompts_are_told_in_a_line(place, prompts, change, words):
    status, output = place.run("recipe", "name=prompts.yaml", "run=wrong-prompts", change)
    assert status != 0 and re.search(words, " ".join(output.split())) and "Traceback" not in output, output
    assert "[teacher] starts" not in output
