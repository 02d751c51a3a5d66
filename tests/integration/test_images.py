"""A recipe of images through the real command: made, killed, resumed, shown, exported, asked."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

TOKEN = {"student": {"kind": "deit"}, "method": "distillation_token"}
RECIPE = {
    "seeds": [1],
    "image_augmentation": 0.5,
    "baseline": "usual",
    "base": {
        "student": {
            "kind": "vit",
            "layers": 1,
            "width": 8,
            "feed_forward": 16,
            "heads": 2,
            "settings": {"patch": 4},
        },
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 1.0e-2},
    },
    "students": {
        "usual": {"losses": ["gold_labels", "soft_labels"]},
        "token": TOKEN | {"losses": [{"distillation_token": {"kind": "soft"}}]},
    },
}
GIVEN = ("name=images.yaml", "teacher=packaged-convnet", "task=digits", "data=", "text_columns=", "label_column=",
         "reuse=false", "rows=60")  # fmt: skip


@pytest.fixture(scope="module")
def images(place):
    (place.path / "images.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    status, output = place.run("recipe", *GIVEN, "run=images")
    assert status == 0 and "60 images x 2 epochs" in output, output
    return place.path / "runs/images-seed1"


def test_the_evidence_is_reported_and_the_run_is_shown(place, images):
    found = json.loads((images / "token/finished.json").read_text())["scores"]["found"]
    assert (
        0 <= found["distillation head = teacher"] <= 1
        and -1 <= found["cosine of the tokens, last layer"] <= 1
    )
    assert "- token: class head = teacher" in (place.path / "runs/images.md").read_text()
    for command in (("report", "run=images-seed1"), ("pareto", "task=digits")):
        status, output = place.run(*command, tiny=False)
        assert status == 0, output


@pytest.mark.slow
def test_a_student_of_images_killed_and_resumed_is_bitwise_the_same(place, images):
    for stage in ("teacher", "token"):
        place.kill_during("killed-images-seed1", stage, *GIVEN, "run=killed-images", command="recipe")
    status, output = place.run("recipe", *GIVEN, "run=killed-images")
    assert status == 0 and "[token] resumes" in output, output
    assert place.weights("killed-images-seed1") == place.weights("images-seed1")
    assert place.weights("images-seed1").keys() >= {"teacher", "usual", "token"}


def test_an_export_answers_in_stock_transformers_as_predict_does(place, images):
    from transformers import pipeline

    status, output = place.run("export", "run=images-seed1", "to=exported-images", "onnx=false", tiny=False)
    assert status == 0, output
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).save(
        place.path / "a.png"
    )
    status, output = place.run("predict", "model=exported-images", "text=a.png", tiny=False)
    assert status == 0, output
    label, score, _ = output.splitlines()[-1].split("\t")
    exported = str(place.path / "exported-images")
    best = pipeline("image-classification", model=exported)(str(place.path / "a.png"))[0]
    assert best["label"] == label and best["score"] == pytest.approx(float(score), abs=1e-4)


@pytest.mark.parametrize(
    "command, change, words",
    [
        (
            "recipe",
            "base.student.settings.patch=3",
            "settings.patch: 3 must be a whole number that divides the side of the images, 8 pixels",
        ),
        ("recipe", "base.student.kind=", "'' does not read images; a student of them is of kind vit or deit"),
        ("recipe", "students.usual.losses=[distillation_token]", "a vit has no distillation token"),
        ("recipe", "teacher=teacher", "has no image processor that can be loaded"),
        ("recipe", "image_augmentation=2", "image_augmentation"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(place, images, command, change, words):
    status, output = place.run(command, *GIVEN, "run=wrong-images", change)
    assert status == 2 and words in " ".join(output.split()), output
