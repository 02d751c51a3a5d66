"""Images as people have them: `datasets`' image sets, `labels.csv`, MNIST's files; read, or refused in one line."""

import gzip
import struct
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from checkpoints.errors import UserError
from stages.tasks.image_rows import opened
from stages.tasks.readers import idx
from stages.tasks.task import TaskSource, find_task, load_task


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8))


def image_set(count: int, first: int = 0, **more) -> datasets.Dataset:
    """Pictures of cats and dogs by turns, as `datasets` has them."""
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["dog", "cat"])}
    )
    rows = {"picture": [picture(first + i) for i in range(count)], "kind": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(rows | more, features=features)


def read(data: Path, **request):
    return load_task(TaskSource.of(find_task("pets", str(data), **request).entry))


def same_pixels(task, role: str, first: int) -> bool:
    pixels = [opened(image, "a") for image in task.splits[role].images]
    return all((of == np.asarray(picture(first + i))).all() for i, of in enumerate(pixels))


@pytest.mark.parametrize("how", ["saved", "parquet"])
def test_an_image_set_of_datasets_is_read_with_the_names_of_its_classes(tmp_path, how):
    parts = {"train": image_set(6), "validation": image_set(2, 6), "test": image_set(2, 8, kind=[-1, -1])}
    if how == "saved":
        datasets.DatasetDict(parts).save_to_disk(tmp_path / "pets")
    else:
        for name, part in parts.items():
            (tmp_path / "pets/data").mkdir(parents=True, exist_ok=True)
            part.to_parquet(tmp_path / f"pets/data/{name}-00000-of-00001.parquet")
    task = read(tmp_path / "pets", label_column="kind")
    assert task.labels == ("cat", "dog") and task.splits["train"].labels == [1, 0] * 3
    assert same_pixels(task, "train", 0) and same_pixels(task, "dev", 6)
    assert "the test images are not used: they have no labels" in task.notes and "test" not in task.splits
    assert len({*task.splits["train"].text_a}) == 6


def test_of_one_file_some_are_held_out_and_unfit_rows_are_told_or_left_out(tmp_path):
    given = (
        image_set(12, kind=[0, 1] * 5 + [-1, 0])
        .cast_column("picture", datasets.Image(decode=False))
        .to_list()
    )
    given[11]["picture"] = {"bytes": None, "path": "/etc/passwd"}
    features = image_set(1).features
    datasets.Dataset.from_list(given, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        UserError,
        match=r"a\.parquet, line 11: the label is empty \(and 1 more row does not fit: line 12\)",
    ):
        read(tmp_path / "a.parquet", label_column="kind")
    task = read(tmp_path / "a.parquet", label_column="kind", unfit_rows="leave_out")
    assert len(task.splits["train"]) + len(task.splits["dev"]) == 10
    assert any(
        "2 rows left out (1: the label is empty; 1: 'picture' holds no image, but a path)" in n
        for n in task.notes
    )


@pytest.mark.parametrize(
    "request_, words",
    [
        ({}, "no label column 'label'; name it: the columns of .* are 'picture', 'kind'"),
        ({"label_column": "picture"}, "no label column 'picture'"),
        (
            {"label_column": "kind", "metric": "pearson"},
            "'pearson' does not fit this task; choose one of accuracy",
        ),
        ({"label_column": "kind", "delimiter": "tab"}, "'.*' is not read as a table of texts and labels"),
    ],
)
def test_what_does_not_fit_an_image_set_is_told_while_planning(tmp_path, request_, words):
    image_set(4).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=words):
        find_task("pets", str(tmp_path / "a.parquet"), **request_)


def test_text_columns_choose_one_of_two_columns_of_images(tmp_path):
    both = image_set(8).add_column("other", [{"bytes": None, "path": None}] * 8)
    both.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="2 columns of images, not one"):
        read(tmp_path / "a.parquet", label_column="kind")
    assert (
        len(read(tmp_path / "a.parquet", text_columns=("picture",), label_column="kind").splits["dev"]) == 2
    )
    assert find_task("pets", str(tmp_path / "a.parquet"), ("kind",), "other").reader == "files"
    (tmp_path / "train.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 9)
    (tmp_path / "labels.csv").write_text("name\ngood\nbad\n")
    assert find_task("mine", str(tmp_path), ("text",), "label").reader == "files"


def test_a_set_of_the_hub_is_read_by_its_known_columns(monkeypatch):
    asked = []

    def load_dataset(name, config, revision):
        asked.append((name, config, revision))
        return {"train": image_set(8).rename_columns({"picture": "img", "kind": "label"}),
                "test": image_set(2, 8).rename_columns({"picture": "img", "kind": "label"})}  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task(TaskSource.of(find_task("CIFAR-10").entry), "abc")
    assert asked == [("uoft-cs/cifar10", None, "abc")] and {*task.splits} == {"train", "dev", "test"}
    assert same_pixels(task, "test", 8) and task.splits["test"].text_a[0] == "uoft-cs/cifar10/test, row 1"

    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match=r"'ylecun/mnist' cannot be loaded \(no route\); give the Parquet files"
    ):
        load_task(find_task("mnist"))


def labelled(root: Path, table: str, count: int = 8) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i + 100 * len(root.name)).save(root / f"{i}.png")
    (root / "labels.csv").write_text(table)
    return root


CLASSES = "file,kind\n" + "".join(f"{i}.png,{'cat' if i % 3 else 'dog'}\n" for i in range(8))


def test_labels_csv_beside_images_is_read_in_one_directory_or_one_a_split(tmp_path):
    task = read(labelled(tmp_path / "one", CLASSES))
    assert task.labels == ("cat", "dog") and len(task.splits["train"]) + len(task.splits["dev"]) == 8
    task = read(labelled(tmp_path / "three" / "Train", "by,kind,name\n" + "".join(f"me,{i % 2},{i}.png\n" for i in range(8))).parent,
                text_columns=("name",), label_column="kind")  # fmt: skip
    assert task.labels == ("0", "1")
    for name, image, label in zip(
        *(getattr(task.splits["train"], n) for n in ("text_a", "images", "labels")), strict=True
    ):
        assert name == str(image) and label == int(image.stem) % 2


@pytest.mark.parametrize("none", ["nan", " ", "-1", "N/A"])
def test_a_label_that_says_that_there_is_none_is_no_class(tmp_path, none):
    table = "file,kind\n" + "".join(f"{i}.png,{i % 3}\n" for i in range(8))
    labelled(tmp_path / "train", table)
    labelled(tmp_path / "test", "file,kind\n" + "".join(f"{i}.png,{none}\n" for i in range(8)))
    task = read(tmp_path)
    assert {*task.splits} == {"train", "dev"} and task.labels == ("0", "1", "2")
    assert "the test images are not used: they have no labels" in task.notes
    labelled(tmp_path / "train", table.replace("5.png,2", f"5.png,{none}"))
    with pytest.raises(UserError, match="line 7: the label .*; correct the row or remove it"):
        read(tmp_path)


def test_labels_with_a_gap_are_whole_numbers_and_plain_bytes_are_told(tmp_path):
    rows = image_set(8).remove_columns("kind").add_column("label", [0.0, 1.0] * 4)
    rows.to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").labels == ("0", "1")
    datasets.Dataset.from_dict({"image": [b"\x89PNG"] * 8, "label": [0, 1] * 4}).to_parquet(
        tmp_path / "b.parquet"
    )
    with pytest.raises(UserError, match='images as structs of "bytes" and "path"'):
        read(tmp_path / "b.parquet", text_columns=("image",), label_column="label")


def test_a_labels_csv_that_names_classes_is_not_read_beside_their_directories(tmp_path):
    for i in range(16):
        (tmp_path / f"n0{i % 2}").mkdir(exist_ok=True)
        picture(i).save(tmp_path / f"n0{i % 2}/{i}.png")
    (tmp_path / "labels.csv").write_text("id,name\nn00,cat\nn01,dog\n")
    task = read(tmp_path)
    assert task.labels == ("n00", "n01")
    assert any("1 other files not read: labels.csv" in note for note in task.notes)
    (tmp_path / "labels.csv").write_text(
        "file,name\nn00/0.png,cat\nn01/1.png,dog\nn00/2.png,cat\nn01/3.png,dog\n"
    )
    assert read(tmp_path).labels == ("cat", "dog")


def test_tables_of_texts_are_not_opened_to_look_for_images(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "stages.tasks.readers.image_tables.open_table", lambda _: pytest.fail("it was opened")
    )
    (tmp_path / "a.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 9)
    assert find_task("mine", str(tmp_path / "a.csv"), ("text",), "label").reader == "files"


def test_labels_are_strings_where_the_metric_is_one_of_strings(tmp_path):
    rows = [f"{i}.png,{text}" for i, text in enumerate(["ab", "b", "aa", "c", "abc", "ca", "ba", "01"])]
    data = labelled(tmp_path / "strips", "name,text\n" + "\n".join(rows))
    task = read(data, metric="character_accuracy")
    assert task.kind.name == "sequences" and task.selection == "character_accuracy"
    written = dict(line.split(",") for line in rows)
    for split in task.splits.values():
        assert split.labels == [written[Path(name).name] for name in split.text_a]
    many = [f"{i}.png,text {i}" for i in range(30)]
    data = labelled(tmp_path / "many", "name,text\n" + "\n".join(many), 30)
    with pytest.raises(
        UserError, match="30 different labels of 30 images: .* metric=character_accuracy if they are strings"
    ):
        read(data)


@pytest.mark.parametrize(
    "table, words",
    [
        (CLASSES.replace("3.png", "33.png"), r"labels\.csv, line 5: there is no file '.*/33\.png'"),
        (CLASSES.replace("3.png", "../3.png"), "line 5: '../3.png' does not name a file in this directory"),
        (
            CLASSES.replace("3.png", "/etc/passwd"),
            "line 5: '/etc/passwd' does not name a file in this directory",
        ),
        (CLASSES.replace("3.png", "x" * 300), "line 5: there is no file"),
        (CLASSES.replace("3.png", "2.png"), "line 5: '2.png' is there twice"),
        (CLASSES.replace("3.png,dog", "3.png,"), "line 5: the label is empty"),
        ("file\n0.png\n", "no label column ''"),
        ("file,kind\n0.png,cat\n1.png,cat\n2.png,cat\n", "the single class 'cat'"),
        ("file,kind\n", "no images; give a file with some"),
        ("", r"labels\.csv is empty; write a line 'file,label', and a line an image"),
        (
            ",file,kind\n0,0.png,cat\n",
            r"the first column of .*labels\.csv has no name; give the column of file names",
        ),
    ],
)
def test_a_labels_csv_that_cannot_be_used_is_told(tmp_path, table, words):
    with pytest.raises(UserError, match=words):
        read(labelled(tmp_path, table))


def test_a_split_without_its_labels_or_with_other_classes_is_told(tmp_path):
    labelled(tmp_path / "train", CLASSES)
    labelled(tmp_path / "test", CLASSES.replace("cat", "cow"))
    with pytest.raises(UserError, match=r"test/1\.png: train has no class 'cow'"):
        read(tmp_path)
    labelled(tmp_path / "test", CLASSES)
    labelled(tmp_path / "train", "file,kind\n")
    with pytest.raises(UserError, match=r"train: no images; give a file with some"):
        read(tmp_path)
    labelled(tmp_path / "train", CLASSES)
    (tmp_path / "test/labels.csv").unlink()
    with pytest.raises(UserError, match=r"test has no labels\.csv, but .*train has one"):
        read(tmp_path)


def write_idx(path: Path, values: np.ndarray, cut: int = 0) -> None:
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    content = content[: len(content) - cut]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist(
    root: Path, names: tuple[str, str] = ("train-{}-ubyte.gz", "t10k-{}-ubyte"), cut: int = 0
) -> np.ndarray:
    """Twenty images of two a class, and ten."""
    greys = np.random.default_rng(0).integers(0, 256, (30, 6, 4), np.uint8)
    for name, of, numbers in ((names[0], greys[:20], np.arange(20)), (names[1], greys[20:], np.arange(10))):
        write_idx(root / name.format("images-idx3"), of, cut)
        write_idx(root / name.format("labels-idx1"), (numbers % 10).astype(np.uint8))
    return greys


@pytest.mark.parametrize(
    "names",
    [
        ("train-{}-ubyte.gz", "t10k-{}-ubyte"),
        ("emnist-digits-train-{}-ubyte", "emnist-digits-test-{}-ubyte.gz"),
    ],
)
def test_mnists_files_are_read_plain_or_packed(tmp_path, names):
    greys = mnist(tmp_path, names)
    task = read(tmp_path)
    assert task.labels == tuple("0123456789") and task.splits["test"].labels == list(range(10))
    assert len(task.splits["train"]) + len(task.splits["dev"]) == 20
    if names[0].startswith("emnist-"):  # whose images lie transposed
        greys = greys.swapaxes(1, 2)
    for of, grey in zip(task.splits["test"].images, greys[20:], strict=True):
        assert (opened(of, "a") == grey[..., None].repeat(3, 2)).all()
    name, label = task.splits["train"].text_a[0], task.splits["train"].labels[0]
    assert (int(name.rpartition(" ")[2]) - 1) % 10 == label


def test_fashion_mnist_is_found_or_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "FASHION", tmp_path / "there")
    with pytest.raises(
        UserError, match=r"which is not there; install Debian's package \(apt install dataset-fashion-mnist\)"
    ):
        find_task("Fashion_MNIST")
    mnist(tmp_path / "there")
    task = load_task(TaskSource.of(find_task("fashion-mnist").entry))
    assert task.labels[:2] == ("T-shirt/top", "Trouser") and task.splits["test"].labels == list(range(10))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda root: mnist(root, cut=1), "holds 239 bytes of 10 x 6 x 4 that it announces"),
        (lambda root: (root / "t10k-labels-idx1-ubyte").unlink(), "has no test-labels-idx1-ubyte; add it"),
        (lambda root: (root / "train-images.idx3-ubyte").write_bytes(b""), "holds both train-images-idx3-ubyte.gz and"),
        (lambda root: write_idx(root / "t10k-labels-idx1-ubyte", np.zeros(9, np.uint8)), "10 images and .* 9 labels"),
        (lambda root: write_idx(root / "t10k-labels-idx1-ubyte", np.zeros((2, 5), np.uint8)), "as one of bytes with 1 axes"),
        (lambda root: (root / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b\x08"), "cannot be read as an IDX file"),
        (lambda root: (root / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0"), "cannot be read as an IDX file"),
    ],
)  # fmt: skip
def test_mnists_files_that_cannot_be_used_are_told(tmp_path, spoil, words):
    mnist(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=words) as found:
        read(tmp_path)
    assert "\n" not in str(found.value)
