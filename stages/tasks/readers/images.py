"""Images with classes: scikit-learn's handwritten digits, and folders of the user's own, train/CLASS/a.png."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.kinds.images import ImageClasses
from stages.tasks.readers.files import Row, drop_repeats, hold_out
from stages.tasks.split_files import EITHER, ROLES
from stages.tasks.text import slug
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

TASKS = ("digits",)
LABELS = tuple("0123456789")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
NOT_READ = ("thumbs.db", "desktop.ini")
"""What Windows writes beside images."""


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the digits or of a folder of images by class, None for others.

    Raises:
        UserError: the request has options that do not fit, or the folder has two directories for one role.
    """
    if task := request.packaged(TASKS):
        return TaskSource(task, "images", task=task, metric=request.metric)
    data = Path(request.data)
    files = _splits(data) if request.data and data.is_dir() else {}
    if not any(map(_has_images, _directories(files.get("train")))):
        return None
    for role, path in files.items():
        if role not in ROLES:
            what = f"holds both {files[role[:-1]].name} and {path.name}; keep one" if role[:-1] in files else (
                f"holds {path.name}, but no train; name the directory of the training images train"
            )  # fmt: skip
            raise UserError(f"{data} {what}", argument="data")
    if request.text_columns or request.label_column:
        raise UserError(
            f"{data} is a folder of images by class and has no columns; leave text_columns and label_column out",
            argument="data",
        )
    metrics.select(request.metric, metrics.CLASSIFICATION, metrics.CLASSIFICATION)
    named = {role: str(path.resolve()) for role, path in files.items()}
    return TaskSource(slug(request.task or data.name), "images", metric=request.metric, files=named)


def _splits(data: Path) -> dict[str, Path]:
    """Role -> its directory of classes. Without a directory for a role, `data` itself is train's, if no table is.

    A further directory for a role, or one for a role without train, stands under the role and a slash: `find` refuses it.
    """
    found: dict[str, Path] = {}
    roles = dict.fromkeys(EITHER, "") | {word: role for role, words in ROLES.items() for word in words}
    named = [path for path in _directories(data) if path.name.lower() in roles]
    for path in sorted(named, key=lambda path: path.name.lower() in EITHER):
        role = roles[path.name.lower()] or ("test" if "dev" in found else "dev")
        found[role + "/" if role in found else role] = path
    if "train" in found:
        return found
    tables = any(path.stem.lower() in roles for path in data.iterdir() if path.is_file())
    if tables or sum(map(_has_images, _directories(data))) < 2:
        return {}  # such as a directory of tables, and one of plots
    return {"train": data} | ({"none/": named[0]} if named else {})


def _directories(path: Path | None) -> list[Path]:
    inside = sorted(path.iterdir()) if path else []
    return [of for of in inside if of.is_dir() and not of.name.startswith((".", "__"))]


def _has_images(directory: Path) -> bool:
    return any(map(_is_image, directory.iterdir()))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the user's folder, or the digits.

    Raises:
        UserError: there are fewer than two classes, or dev or test has one that train lacks.
    """
    return _folder(source) if source.files else _digits(source)


def _folder(source: TaskSource) -> Task:
    """Read the names of the images of a folder; equal files are in one split only."""
    classes = [path.name for path in _directories(Path(source.files["train"]))]
    pairs: dict[str, list[tuple[Row, int]]] = {}
    notes = []
    for role, directory in source.files.items():
        pairs[role] = []
        others: list[str] = []
        for of in _directories(Path(directory)):
            if of.name not in classes:
                raise UserError(
                    f"{of}: train has no class {of.name!r}; add such images to train, or remove it"
                )
            for path in sorted(of.rglob("*")):
                if any(part.startswith((".", "__")) for part in path.relative_to(of).parts[:-1]):
                    continue
                if _is_image(path):
                    key = hashlib.sha256(path.read_bytes()).hexdigest()
                    pairs[role].append((Row(0, (key,), of.name, path), classes.index(of.name)))
                elif path.is_file() and not path.name.startswith(".") and path.name.lower() not in NOT_READ:
                    others.append(path.name)
        note = f"{role}: {Path(directory).name}, {len(pairs[role]):,} images"
        notes.append(
            note + (f"; {len(others):,} other files not read: {', '.join(others[:5])}" if others else "")
        )
        if not pairs[role]:
            raise UserError(f"{directory} has no images in directories of classes; add some, or remove it")
    empty = set(range(len(classes))) - {value for _, value in pairs["train"]}
    if empty or len(classes) < 2:
        what = f"no image of {classes[min(empty)]!r}" if empty else f"the single class {classes[0]!r}"
        raise UserError(
            f"{source.files['train']} has {what}; give two directories of images or more, none empty"
        )
    if "dev" not in pairs:
        pairs, note = hold_out(pairs, Path(source.files["train"]), "images")
        notes.append(note)
    pairs = drop_repeats(pairs)
    splits = {
        role: Split([str(row.path) for row, _ in of], None, [value for _, value in of], images=[row.path for row, _ in of])
        for role, of in pairs.items()
    }  # fmt: skip
    return Task(
        source.name, ImageClasses(tuple(classes)), splits, *metrics.select(source.metric), notes=tuple(notes)
    )


def _digits(source: TaskSource) -> Task:
    """Read the 1,797 digits of 8 x 8 pixels (UCI's test part, by 13 writers), split by a hash of the pixels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    columns: dict[str, tuple[list[str], list[int], list[Any]]] = {
        role: ([], [], []) for role in ("train", "dev", "test")
    }
    for number, (values, label) in enumerate(zip(pixels, labels, strict=True)):
        grey = (values.reshape(8, 8, 1) * (255 / 16)).round().astype("uint8")
        names, classes, images = columns[split_of(grey.tobytes())]
        names.append(f"digits/{number}")
        classes.append(int(label))
        images.append(grey.repeat(3, axis=2))
    splits = {
        role: Split(names, None, classes, images=images) for role, (names, classes, images) in columns.items()
    }
    return Task(source.name, ImageClasses(LABELS), splits, *metrics.select(source.metric))


def split_of(pixels: bytes) -> str:
    """Return the split of an image by its pixels alone: 30 of 100 test, 15 dev, the rest train."""
    percent = int(hashlib.sha256(pixels).hexdigest(), 16) % 100
    return "test" if percent < 30 else "dev" if percent < 45 else "train"
