"""A recipe of images through the real command: made, killed, resumed, shown, exported, asked."""

import json

import numpy as np
import pytest
from PIL import Image

VIT = {"kind": "vit", "layers": 1, "width": 8, "feed_forward": 16, "heads": 2, "settings": {"patch": 4}}
RECIPE = {
    "seeds": [1],
    "image_augmentation": 0.5,
    "baseline": "usual",
    "main": "token",
    "base": {"training": {"epochs": 2, "batch_size": 16, "learning_rate": 1.0e-2}},
    "students": {
        "usual": {"student": VIT, "losses": ["gold_labels", "soft_labels"]},
        "branches": {
            "student": {"kind": "resnet", "layers": 1, "width": 4},
            "method": {"auxiliary_branches": {"branches": 1}},
            "losses": [{"each_head": {"losses": ["gold_labels", "soft_labels"]}}, "peers", "adversary"],
        },
        "token": {
            "student": VIT | {"kind": "deit"},
            "method": "token_agreement",
            "losses": [{"distillation_token": {"kind": "soft"}}],
            "mixup": 0.8,
            "cutmix": 1.0,
        },
    },
}
GIVEN = ("name=images.yaml", "teacher=packaged-convnet", "task=digits", "data=", "text_columns=", "label_column=",
         "reuse=false", "rows=60")  # fmt: skip


@pytest.fixture(scope="module")
def images(place):
    (place.path / "images.yaml").write_text(json.dumps(RECIPE))
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


def test_branches_are_measured_and_left_behind(place, images):
    from transformers import AutoModelForImageClassification

    model, information = AutoModelForImageClassification.from_pretrained(
        images / "branches/model", output_loading_info=True
    )
    assert type(model).__name__ == "ResNetForImageClassification" and not any(information.values())
    found = json.loads((images / "branches/finished.json").read_text())["scores"]["found"]
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters < found["parameters with branches"] < 3 * parameters
    reached = json.loads((images / "evaluate/model/results.json").read_text())["branches"]["metric"]
    assert found["accuracy of the main branch on test"] == reached
    lines = (images / "branches/metrics.jsonl").read_text().splitlines()
    assert any({"adversary", "discriminator", "peers"} <= json.loads(line).keys() for line in lines)


@pytest.mark.slow
def test_a_student_of_images_killed_and_resumed_is_bitwise_the_same(place, images):
    place.resumes("images-seed1", ("teacher", "branches", "token"), *GIVEN, command="recipe")
    assert place.weights("images-seed1").keys() >= {"teacher", "usual", "branches", "token"}


def test_an_export_answers_in_stock_transformers_as_predict_does(place, images):
    from transformers import pipeline

    status, output = place.run("export", "run=images-seed1", "to=exported-images", "onnx=fp16", tiny=False)
    assert status == 2 and "ONNX is for models of text, and this one reads images" in " ".join(output.split())
    status, output = place.run("export", "run=images-seed1", "to=exported-images", tiny=False)
    assert status == 0 and "no ONNX files: those are for models of text, and this one reads images" in output
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).save(
        place.path / "a.png"
    )
    status, output = place.run("predict", "model=exported-images", "text=a.png", tiny=False)
    assert status == 0, output
    label, score, _ = output.splitlines()[-1].split("\t")
    exported = str(place.path / "exported-images")
    best = pipeline("image-classification", model=exported)(str(place.path / "a.png"))[0]
    assert best["label"] == label and best["score"] == pytest.approx(float(score), abs=1e-4)


def test_a_broken_image_of_dev_is_told_before_anything_is_trained(place, images):
    for role, count in (("train", 8), ("dev", 4)):
        directory = place.path / "pets" / role
        directory.mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([count, i]).integers(0, 256, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).save(directory / f"{i}.png")
        rows = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(count))
        (directory / "labels.csv").write_text(f"file,label\n{rows}")
    broken = place.path / "pets/dev/3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    status, output = place.run("recipe", *GIVEN, "task=pets", "data=pets", "run=pets")
    assert status == 2 and "pets/dev/3.png cannot be read as an image (" in " ".join(output.split()), output
    assert not (place.path / "runs/pets-seed1/teacher/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "command, change, words",
    [
        (
            "recipe",
            "students.usual.student.settings.patch=3",
            "settings.patch: 3 must be a whole number that divides the side of the images, 8 pixels",
        ),
        (
            "recipe",
            "students.usual.student.kind=",
            "'' does not read images; a student of them is of kind vit or deit or resnet",
        ),
        ("recipe", "students.usual.losses=[distillation_token]", "a vit has no distillation token"),
        (
            "recipe",
            "students.branches.student.heads=2",
            "heads: 2 for a resnet, whose sizes are layers, width",
        ),
        ("recipe", "students.branches.student.settings={patch: 2}", "a resnet has none; leave them out"),
        ("recipe", "students.token.method=auxiliary_branches", "token.method: a deit gets no branches"),
        ("recipe", "teacher=teacher", "has no image processor that can be loaded"),
        ("recipe", "image_augmentation=2", "image_augmentation"),
        ("recipe", "students.token.mixup=-1", "mixup"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(place, images, command, change, words):
    status, output = place.run(command, *GIVEN, "run=wrong-images", change)
    assert status == 2 and words in " ".join(output.split()), output
