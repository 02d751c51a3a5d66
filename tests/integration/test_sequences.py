"""A recipe of strips of symbols through the real command: teachers that read labels, killed, resumed, exported, asked."""

import csv
import json
import os
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from stages.tasks.readers.strips import composed
from tests.integration.conftest import ROOT

ORACLE = {"student": {"kind": "strip_oracle"}, "losses": ["gold_labels", "image_frames"]}
RECIPE = {
    "seeds": [1],
    "baseline": "alone",
    "main": "taught",
    "base": {
        "student": {"kind": "strip_ctc", "layers": 1, "width": 6},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 1.0e-2},
        "method": "oracle_teacher",
    },
    "stages": {"oracle": ORACLE},
    "students": {
        "alone": {"losses": ["gold_labels"]},
        "taught": {"losses": ["gold_labels", "soft_labels"], "reads": ["oracle"]},
    },
}
GIVEN = ("name=strips.yaml", "teacher=packaged-strip-reader", "task=digit-strings", "data=", "text_columns=",
         "label_column=", "reuse=false", "rows=24", "tuning.epochs=1")  # fmt: skip


@pytest.fixture(scope="module")
def strips(place):
    (place.path / "strips.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    status, output = place.run("recipe", *GIVEN, "run=strips")
    assert status == 0 and "24 images x 1 epoch," in output, output
    return place.path / "runs/strips-seed1"


def test_the_evidence_is_reported_and_strings_are_written(place, strips):
    found = json.loads((strips / "taught/finished.json").read_text())["scores"]["found"]
    assert found.keys() == {
        whose + what
        for whose in ("", "teacher's ")
        for what in ("error", "error with other images", "symbols in place")
    }
    assert "teacher's" not in (strips / "alone/finished.json").read_text()
    rows = list(csv.DictReader((strips / "test_predictions.csv").open()))
    assert [row["label"] for row in rows] == composed("test")[1]
    assert "- oracle: error" in (place.path / "runs/strips.md").read_text()
    for command in (("report", "run=strips-seed1"), ("pareto", "task=digit-strings")):
        status, output = place.run(*command, tiny=False)
        assert status == 0, output


@pytest.mark.slow
def test_an_oracle_and_its_student_killed_and_resumed_are_bitwise_the_same(place, strips):
    place.resumes("strips-seed1", ("oracle", "taught"), *GIVEN, command="recipe")
    assert place.weights("strips-seed1").keys() == {"teacher", "oracle", "alone", "taught"}


def test_an_export_reads_a_strip_as_the_run_did(place, strips):
    status, output = place.run("export", "run=strips-seed1", "to=exported-strips", "onnx=false", tiny=False)
    assert status == 0 and "AutoModelForCTC" in output, output
    card = (place.path / "exported-strips/README.md").read_text()
    assert "pipeline_tag: image-to-text" in card and "a distilled reader of strings" in card
    Image.fromarray(composed("test")[0][0]).save(place.path / "strip.png")
    code = card.split("```python")[1].split("```")[0].replace("path/to/this/directory", "exported-strips")
    example = subprocess.run(
        [sys.executable, "-c", code], cwd=place.path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    with (strips / "test_predictions.csv").open() as file:
        said = next(csv.DictReader(file))["taught"]
    assert example.stdout.strip() == said
    status, output = place.run("predict", "model=exported-strips", "text=strip.png", tiny=False)
    assert status == 0, output
    assert output.splitlines()[-1].split("\t")[:-2] == [said] * bool(said)  # an empty string has no cell


@pytest.mark.parametrize(
    "change, words",
    [
        ("base.student.kind=vit", "'vit' does not read images; a student of them is of kind strip_ctc or strip_oracle"),
        ("stages.oracle.student.settings.mask=1", "settings.mask: 1 must be a number from 0 to below 1"),
        ("students.alone.losses=[image_frames]", "a strip_ctc has no head that reads the image alone"),
        ("students.taught.reads=[]", "the losses read a teacher, and none is named"),
        ("students.alone.mixup=0.8", "mixup: 0.8 mixes images and their classes, and the task has sequences; leave"),
        ("students.taught.reads=[oracle, alone]", "[oracle, alone] must name one teacher, or none"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_anything_is_trained(place, strips, change, words):
    status, output = place.run("recipe", *GIVEN, "run=wrong-strips", change)
    assert status == 2 and words in " ".join(output.split()), output
