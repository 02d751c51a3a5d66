"""A recipe of images and captions through the real command: made, killed, resumed, shown, exported, asked."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from tests.integration.conftest import ROOT

RECIPE = {
    "seeds": [1],
    "baseline": "alone",
    "main": "dcd",
    "tuning": {"epochs": 1, "batch_size": 16, "learning_rate": 3.0e-3},
    "base": {
        "student": {"init": "teacher-layers", "layers": 1},
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 1.0e-2},
        "method": "hard_candidates",
    },
    "students": {"alone": {"losses": ["gold_labels"]}, "dcd": {"losses": ["weighed_candidates"]}},
}
GIVEN = ("name=captions.yaml", "teacher=packaged-two-streams", "task=digit-scenes", "data=", "text_columns=",
         "label_column=", "reuse=false", "rows=48")  # fmt: skip


@pytest.mark.slow
def test_a_matcher_is_distilled_killed_resumed_shown_exported_and_asked(place):
    (place.path / "captions.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    status, output = place.run("recipe", *GIVEN, "run=captions")
    assert status == 0, output
    place.resumes("captions-seed1", ("dcd",), *GIVEN, command="recipe")
    found = json.loads((place.path / "runs/captions-seed1/results.json").read_text())
    assert found["dcd"]["flops"] == found["teacher"]["flops"] / 2
    for command in (("report", "run=captions-seed1"), ("pareto", "task=digit-scenes")):
        status, output = place.run(*command, tiny=False)
        assert status == 0, output
    script = [sys.executable, str(ROOT / "docs/recipes/fusion_time.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    timed, refused = (
        subprocess.run(
            [*script, f"runs/{run}"], cwd=place.path, env=environment, capture_output=True, text=True
        )
        for run in ("captions-seed1", "none")
    )
    found = {
        name: float(x) for name, x in re.findall(r"^(\S+) +[12] +[\d.]+ µs +([\d.]+)x$", timed.stdout, re.M)
    }
    assert found.keys() == {"teacher", "alone", "dcd"} and found["dcd"] > found["teacher"] == 1, timed
    assert refused.returncode == 2 and "runs/none is not the directory of a finished run" in refused.stderr
    status, output = place.run("export", "run=captions-seed1", "to=matcher", "onnx=false", tiny=False)
    assert status == 0 and "two_streams" not in output, output
    Image.new("RGB", (16, 16)).save(place.path / "scene.png")
    status, output = place.run(
        "predict", "model=matcher", "text=scene.png", "text_b=a one above a two", tiny=False
    )
    assert status == 0 and output.splitlines()[-1].startswith("1\t0."), output


WRONG = {
    "base.method={hard_candidates: {false: 16}}": "false: 16 must be a whole number from 1 to 15",
    "students.dcd.losses=[weighed_candidates: {weights: u}]": "weights: 'u' must be published or sharp or own or none",
    "base.student={kind: bilstm, layers: 1, width: 8, init: random}":
        "student.kind: 'bilstm' does not read images and captions",
    "teacher=packaged-convnet": "cannot be loaded",
}  # fmt: skip


def test_what_does_not_fit_is_told_before_anything_is_trained(place):
    (place.path / "captions.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    for change, words in WRONG.items():
        status, output = place.run("recipe", *GIVEN, "run=wrong-captions", change)
        assert status == 2 and words in " ".join(output.split()) and "Traceback" not in output, (
            change,
            output,
        )
