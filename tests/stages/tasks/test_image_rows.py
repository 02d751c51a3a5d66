"""Images as rows: read, resized, normalised as a stock processor does, changed at random, and answered."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from checkpoints.errors import UserError
from stages.distillation.losses import DistillationToken, GoldLabels
from stages.distillation.outputs import ModelOutputs
from stages.tasks.image_changes import NUMBERS, ImageChanges, MixedImages
from stages.tasks.image_rows import ImageRows, opened, resized, side
from stages.tasks.task import TaskSource, find_task, load_task

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=MEAN, image_std=STD)
NOTHING = torch.full((NUMBERS, 1), 0.5)
NOTHING[7] = 0.99
"""Numbers under which an image stays as it is: the middle of each range, and no rectangle."""


def rows_of(count: int = 6) -> ImageRows:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), np.uint8)
    return ImageRows(pixels, np.arange(count) % 3, PROCESSOR)


def batch_of(rows: ImageRows, *indices: int):
    return rows.collate(np.array(indices), np.ones(len(indices), np.float32))


def test_the_digits_are_split_by_their_pixels_and_never_twice():
    task = load_task(find_task("digits"))
    seen = [image.tobytes() for split in task.splits.values() for image in split.images]
    assert len(seen) == 1797 and len(task.splits["test"]) == 513
    assert [split.labels[0] for split in task.splits.values()] == [
        int(load_task(find_task("digits")).splits[name].labels[0]) for name in task.splits
    ]
    of_split = [{image.tobytes() for image in split.images} for split in task.splits.values()]
    assert not of_split[0] & of_split[1] and not of_split[0] & of_split[2] and not of_split[1] & of_split[2]
    assert all(len({*split.labels}) == 10 for split in task.splits.values())


def test_rows_of_the_recipe_are_drawn_with_their_images():
    source = TaskSource.of(find_task("digits").entry)
    whole, some = load_task(source).splits["train"], load_task(replace(source, rows=(20, 1))).splits["train"]
    assert len(some) == 20
    for name, image, label in zip(some.text_a, some.images, some.labels, strict=True):
        place = whole.text_a.index(name)
        assert (whole.images[place] == image).all() and whole.labels[place] == label


def test_a_batch_is_what_the_stock_processor_makes_of_the_files(tmp_path):
    photo = np.random.default_rng(1).integers(0, 256, (20, 13, 3), np.uint8)
    for name, mode in (("a.png", "RGB"), ("b.png", "L"), ("c.png", "RGBA"), ("d.png", "P")):
        Image.fromarray(photo).convert(mode).save(tmp_path / name)
    paths = sorted(tmp_path.iterdir())
    pixels = np.stack([resized(PROCESSOR, opened(path, path.name)) for path in paths])
    found = batch_of(ImageRows(pixels, np.zeros(4, np.int64), PROCESSOR), 0, 1, 2, 3).inputs["pixel_values"]
    images = [Image.open(path).convert("RGB") for path in paths]
    torch.testing.assert_close(found, PROCESSOR(images=images, return_tensors="pt")["pixel_values"])
    assert (opened(paths[0].read_bytes(), "a") == photo).all()


def test_a_file_that_is_no_image_and_a_processor_without_squares_are_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^row 3 cannot be read as an image \(.*\); give PNG, JPEG"):
        opened(tmp_path / "a.png", "row 3")
    with pytest.raises(UserError, match="row 3 cannot be read as an image"):
        opened(Path("missing.png"), "row 3")
    with pytest.raises(UserError, match=r"makes images of 8 x 6 pixels, but all must be squares"):
        side(ViTImageProcessorPil(size={"height": 8, "width": 6}))
    assert side(PROCESSOR) == 8


def test_changes_depend_on_seed_epoch_and_row_alone():
    rows, changes = rows_of(), ImageChanges(1, 0.8)

    def pixels(changes: ImageChanges, epoch: int, *indices: int) -> torch.Tensor:
        return changes(batch_of(rows, *indices), epoch).inputs["pixel_values"]

    together = pixels(changes, 3, 0, 1, 2, 3, 4, 5)
    assert torch.equal(together[[4, 1]], pixels(changes, 3, 4, 1))
    others = (pixels(changes, 4, 0, 1, 2, 3, 4, 5), pixels(ImageChanges(2, 0.8), 3, 0, 1, 2, 3, 4, 5))
    for other in (*others, batch_of(rows, 0, 1, 2, 3, 4, 5).inputs["pixel_values"]):
        assert (together - other).flatten(1).abs().amax(1).min() > 0.1  # no row is as it was


def test_changes_move_and_erase_as_a_plain_loop_does():
    x = batch_of(rows_of(), 2).inputs["pixel_values"]
    changes = ImageChanges(1, 1.0)
    torch.testing.assert_close(changes.transformed(x, NOTHING), x)
    torch.testing.assert_close(ImageChanges(1, 0.0).transformed(x, torch.rand(NUMBERS, 1)), x)
    moved = NOTHING.clone()
    moved[3] = (1 + 0.625) / 2  # 0.625 of 0.2 of 8 pixels: one pixel
    expected = torch.stack([x[..., min(column + 1, 7)] for column in range(8)], -1)
    torch.testing.assert_close(changes.transformed(x, moved), expected)
    erased = NOTHING.clone()
    erased[7:] = torch.tensor([0.25, 1.0, 0.5, 0.25])[
        :, None
    ]  # grey 0, a third of the image, centre of the columns
    found, half = changes.transformed(x, erased), 0.33**0.5 / 2
    for row in range(8):
        for column in range(8):
            inside = abs((column + 0.5) / 8 - 0.5) < half and abs((row + 0.5) / 8 - 0.25) < half
            wanted = torch.zeros(1, 3) if inside else x[..., row, column]
            torch.testing.assert_close(found[..., row, column], wanted)


def folder(root: Path, *names: str) -> Path:
    """Images of other pixels each, of two sizes, grey or with colours."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (9, 7 + number % 2, 3)[: 2 + number % 2]
        Image.fromarray(np.random.default_rng(number).integers(0, 256, shape, np.uint8)).save(path)
    return root


def test_a_folder_of_images_by_class_is_read_with_its_odd_names(tmp_path):
    of_train = [f"Train/{name}/{i} A.PNG" for name in ("a Cat", "Dog") for i in range(6)]
    data = folder(tmp_path, *of_train, "val/Dog/x/y.png", "TEST/a Cat/z.jpg")
    (data / "Train/Dog/.hidden.png").write_bytes(b"")
    (data / "Train/Dog/Thumbs.db").write_bytes(b"")
    (data / "Train/Dog/notes.txt").write_text("of dogs")
    (data / "val/Dog/again.png").write_bytes((data / "Train/Dog/0 A.PNG").read_bytes())
    task = load_task(TaskSource.of(find_task("pets", str(data)).entry))
    assert task.labels == ("Dog", "a Cat")
    assert {role: len(split) for role, split in task.splits.items()} == {"train": 11, "dev": 2, "test": 1}
    assert any("1 other files not read: notes.txt" in note for note in task.notes)
    train = task.splits["train"]
    for path, name, label in zip(train.images, train.text_a, train.labels, strict=True):
        assert path.parent.name == task.labels[label] and str(path) == name
        assert resized(PROCESSOR, opened(path, name)).shape == (3, 8, 8)


def test_a_folder_without_splits_holds_a_part_out(tmp_path):
    data = folder(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(10)))
    task = load_task(find_task("pets", str(data)))
    assert len(task.splits["train"]) + len(task.splits["dev"]) == 20 and len(task.splits["dev"]) == 5
    assert any("held out, as there is no dev file" in note for note in task.notes)


@pytest.mark.parametrize(
    "names, words",
    [
        (["train/a/0.png"], "the single class 'a'"),
        (["train/a/0.png", "train/b/0.png", "dev/c/0.png"], "train has no class 'c'"),
        (["train/a/0.png", "train/b/0.png", "dev/a.png"], "has no images in directories of classes"),
        (
            ["train/a/0.png", "train/b/0.png", "val/a/1.png", "dev/a/1.png"],
            "holds both dev and val; keep one",
        ),
        (["a/0.png", "b/0.png", "test/1.png"], "holds test, but no train; name the directory"),
    ],
)
def test_a_folder_that_cannot_be_learned_is_told(tmp_path, names, words):
    with pytest.raises(UserError, match=words):
        load_task(find_task("pets", str(folder(tmp_path, *names))))


def test_a_class_that_loses_its_training_images_to_dev_or_test_is_told(tmp_path):
    names = [*(f"train/{of}/{i}.png" for of in "ab" for i in range(4)), "train/c/0.png", "dev/a/9.png"]
    data = folder(tmp_path, *names)
    (data / "dev/c").mkdir()
    (data / "dev/c/0.png").write_bytes((data / "train/c/0.png").read_bytes())
    notes = load_task(find_task("pets", str(data))).notes
    assert "3 classes in train: 'a' 4, 'b' 4, 'c' 0" in notes
    assert "warning: train has no image of 'c': it cannot be learned" in notes
    assert "warning: dev has no image of 'b': it is not measured there" in notes


def test_plots_beside_tables_are_no_task(tmp_path):
    data = folder(tmp_path, "plots/a.png", "figures/b.png")
    for name in ("train", "dev"):
        (data / f"{name}.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 9)
    assert find_task("mine", str(data), ("text",), "label").reader == "files"


def test_hidden_directories_are_not_read_and_eval_is_dev(tmp_path):
    names = [f"{split}/{of}/{i}.png" for i, split in enumerate(("train", "eval")) for of in "ab"]
    task = load_task(find_task("pets", str(folder(tmp_path, *names, "train/a/.ipynb_checkpoints/z.png"))))
    assert {role: len(split) for role, split in task.splits.items()} == {"train": 2, "dev": 2}


def test_16_bits_of_grey_are_scaled_and_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert opened(tmp_path / "deep.png", "deep.png").tolist() == [[[0] * 3, [1] * 3, [255] * 3]]
    for value in (-1, 65536):
        Image.fromarray(np.array([[0, value]], np.int32)).save(tmp_path / "deeper.tif")
        with pytest.raises(UserError, match="its pixels have more than 16 bits"):
            opened(tmp_path / "deeper.tif", "deeper.tif")
    for bits in (np.uint16, np.int32):
        Image.fromarray(np.array([[0, 143]], bits)).save(tmp_path / "low.tif")
        with pytest.raises(
            UserError, match="16-bit values are all below 256, so it would be black: save 8 bits"
        ):
            opened(tmp_path / "low.tif", "low.tif")


def test_a_damaged_image_of_any_format_is_told_and_no_image_starts_ghostscript(tmp_path, monkeypatch):
    dds = b"DDS " + (124).to_bytes(4, "little") + bytes(68) + (32).to_bytes(4, "little") + bytes(48)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("it was started"))
    for content in (dds, (tmp_path / "a.eps").read_bytes()):
        with pytest.raises(UserError, match="row 3 cannot be read as an image"):
            opened(content, "row 3")


def test_an_image_is_turned_as_its_camera_noted_and_inks_become_colours(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is on the right
    for name, values, wanted in (
        ("grey.png", np.array([[0, 65535, 257]], np.uint16), [[[0] * 3], [[255] * 3], [[1] * 3]]),
        ("colours.png", np.array([[[9, 8, 7], [6, 5, 4]]], np.uint8), [[[9, 8, 7]], [[6, 5, 4]]]),
    ):
        Image.fromarray(values).save(tmp_path / name, exif=exif)
        assert opened(tmp_path / name, name).tolist() == wanted
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(tmp_path / "inks.tif")
    assert opened(tmp_path / "inks.tif", "inks.tif").tolist() == [[[255, 0, 0]]]


def test_an_empty_and_a_huge_image_are_told_by_name(tmp_path, monkeypatch):
    folder(tmp_path, "a.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty\.png cannot be read as an image"):
        opened(tmp_path / "empty.png", "empty.png")
    with pytest.raises(UserError, match=r"^none\.png cannot be read as an image \(there is no such file\)$"):
        opened(tmp_path / "none.png", "none.png")
    monkeypatch.setattr("stages.tasks.image_rows.MOST_PIXELS", 62)
    with pytest.raises(UserError, match=r"^a\.png has 7 x 9 pixels; at most 62 in all are read"):
        opened(tmp_path / "a.png", "a.png")


def mixed(rows: ImageRows, *indices: int, epoch: int = 3, seed: int = 1, mixup=0.0, cutmix=0.0, changes=None):
    return MixedImages(rows, changes, seed, mixup, cutmix)(batch_of(rows, *indices), epoch)


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_depends_on_seed_epoch_and_row_alone_and_says_what_is_mixed(alphas):
    rows, changes = rows_of(30), ImageChanges(1, 0.5)
    whole = mixed(rows, *range(30), changes=changes, **alphas)
    alone = [mixed(rows, i, changes=changes, **alphas) for i in (7, 3)]
    assert torch.equal(
        whole.inputs["pixel_values"][[7, 3]], torch.cat([a.inputs["pixel_values"] for a in alone])
    )
    for of, parts in zip(whole.mixed, zip(*(a.mixed for a in alone), strict=True), strict=True):
        assert torch.equal(of[[7, 3]], torch.cat(parts))
    for other in (mixed(rows, *range(30), epoch=4, **alphas), mixed(rows, *range(30), seed=2, **alphas)):
        assert not torch.equal(whole.mixed[1], other.mixed[1])
    assert torch.equal(whole.labels, batch_of(rows, *range(30)).labels)


def test_a_mixed_image_is_made_of_two_by_the_ratio_that_its_classes_have():
    """White images of class 0 and black ones of class 1: the mean of the pixels tells the ratio, and a cut has no greys."""
    grey = ViTImageProcessorPil(size={"height": 8, "width": 8}, do_normalize=False)
    pixels = np.zeros((40, 3, 8, 8), np.uint8)
    pixels[:20] = 255
    rows = ImageRows(pixels, np.arange(40) // 20, grey)
    seen = {}
    for name, alphas in {
        "mixup": {"mixup": 0.8},
        "cutmix": {"cutmix": 1.0},
        "both": {"mixup": 0.8, "cutmix": 1.0},
    }.items():
        batch = mixed(rows, *range(40), **alphas)
        others, own = batch.mixed
        assert {*others.tolist()} == {0, 1} and (own >= 0).all() and (own <= 1).all() and own.std() > 0.1
        white = own * (batch.labels == 0) + (1 - own) * (others == 0)
        torch.testing.assert_close(batch.inputs["pixel_values"].mean((1, 2, 3)), white)
        values = batch.inputs["pixel_values"]
        seen[name] = ((values - values.round()).abs() > 1e-3).flatten(1).any(1).sum()
    assert seen["cutmix"] == 0 < seen["both"] < seen["mixup"]


def test_unlabelled_images_are_mixed_with_labelled_ones_and_stay_unlabelled():
    rows = rows_of(9)
    rows = replace(rows, labels=np.array([0, 1, -1, -1, -1, -1, -1, -1, -1]))
    batch = mixed(rows, *range(9), mixup=0.8)
    assert batch.labels.tolist() == rows.labels.tolist() and {*batch.mixed[0].tolist()} <= {0, 1}


def test_gold_losses_of_mixed_images_are_those_of_both_classes_by_their_ratio():
    rows, logits = rows_of(6), torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    batch = mixed(rows, *range(6), mixup=1.0)
    others, own = batch.mixed
    targets = torch.zeros(6, 3)
    for i in range(6):
        targets[i, batch.labels[i]] += own[i]
        targets[i, others[i]] += 1 - own[i]
    expected = -(targets * logits.log_softmax(-1)).sum()
    heads = {"cls_logits": logits, "distillation_logits": logits}
    token = DistillationToken().terms(ModelOutputs(named=heads), ModelOutputs(logits_BC=logits), batch)
    gold = GoldLabels().terms(ModelOutputs(logits_BC=logits), None, batch)
    for term in (gold["gold_labels"], token["class_token"]):
        torch.testing.assert_close(term.sum, expected)
    assert batch.to("cpu").mixed[1] is not None
