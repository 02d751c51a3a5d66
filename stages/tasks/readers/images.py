"""Images with classes: scikit-learn's handwritten digits, and folders of the user's own, train/CLASS/a.png."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.kinds import Kind
from stages.tasks.kinds.classes import ImageClasses
from stages.tasks.kinds.sequences import BLANK, Sequences
from stages.tasks.labelled_rows import Row, notes_of_classes, parted
from stages.tasks.split_files import EITHER, ROLES
from stages.tasks.text import hashed, slug
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

TASKS = ("digits",)
LABELS = tuple("0123456789")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
NOT_READ = ("thumbs.db", "desktop.ini")
"""What Windows writes beside images."""


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the digits or of a folder of images by class, None for others."""
    if task := request.packaged(TASKS):
        return TaskSource(task, "images", task=task, metric=request.metric)
    data = Path(request.data)
    files = _splits(data) if request.data and data.is_dir() else {}
    if not any(map(has_images, _directories(files.get("train")))):
        return None
    check_roles(data, files)
    request.refuse_columns(f"{data} is a folder of images by class and has no columns")
    metrics.select(request.metric, metrics.CLASSIFICATION, metrics.CLASSIFICATION)
    named = {role: str(path.resolve()) for role, path in files.items()}
    return TaskSource(slug(request.task or data.name), "images", metric=request.metric, files=named)


ROLE_OF = dict.fromkeys(EITHER, "") | {word: role for role, words in ROLES.items() for word in words}


def roles_of(data: Path) -> dict[str, Path]:
    """Role -> the directory in `data` that is named after it. A second directory of a role has the key role + "/"."""
    found: dict[str, Path] = {}
    named = [path for path in _directories(data) if path.name.lower() in ROLE_OF]
    for path in sorted(named, key=lambda path: path.name.lower() in EITHER):
        role = ROLE_OF[path.name.lower()] or ("test" if "dev" in found else "dev")
        found[role + "/" if role in found else role] = path
    return found


def check_roles(data: Path, files: dict[str, Path]) -> None:
    """Raise a UserError where two directories of `data` are of one role, or one is of a role without train."""
    for role, path in files.items():
        if role not in ROLES:
            what = f"holds both {files[role[:-1]].name} and {path.name}; keep one" if role[:-1] in files else (
                f"holds {path.name}, but no train; name the directory of the training images train"
            )  # fmt: skip
            raise UserError(f"{data} {what}", argument="data")


def _splits(data: Path) -> dict[str, Path]:
    """Role -> its directory of classes. Without a directory for a role, `data` itself is train's, if no table is.

    A directory for a role without train stands under a name that `check_roles` refuses.
    """
    found = roles_of(data)
    if "train" in found:
        return found
    tables = any(path.stem.lower() in ROLE_OF for path in data.iterdir() if path.is_file())
    if tables or sum(map(has_images, _directories(data))) < 2:
        return {}  # such as a directory of tables, and one of plots
    return {"train": data} | {"none/": next(iter(found.values()))} if found else {"train": data}


def _directories(path: Path | None) -> list[Path]:
    inside = sorted(path.iterdir()) if path else []
    return [of for of in inside if of.is_dir() and not of.name.startswith((".", "__"))]


def has_images(directory: Path) -> bool:
    """Whether a directory holds an image."""
    return any(map(_is_image, directory.iterdir()))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the user's folder, or the digits."""
    return _folder(source) if source.files else _digits(source)


def _folder(source: TaskSource) -> Task:
    """Read the names of the images of a folder; equal files are in one split only."""
    classes = [path.name for path in _directories(Path(source.files["train"]))]
    rows: dict[str, list[Row]] = {}
    notes: list[str] = []
    for role, directory in source.files.items():
        rows[role] = []
        others = [
            path.name for path in sorted(Path(directory).iterdir()) if path.is_file() and _is_other(path)
        ]
        for of in _directories(Path(directory)):
            if of.name not in classes:
                raise UserError(
                    f"{of}: train has no class {of.name!r}; add such images to train, or remove it"
                )
            for path in sorted(of.rglob("*")):
                if any(part.startswith((".", "__")) for part in path.relative_to(of).parts[:-1]):
                    continue
                if _is_image(path):
                    key = key_of(path.read_bytes())
                    rows[role].append(Row(0, (key,), of.name, path, value=path))
                elif path.is_file() and _is_other(path):
                    others.append(path.name)
        note = f"{role}: {Path(directory).name}, {len(rows[role]):,} images"
        notes.append(
            note + (f"; {len(others):,} other files not read: {', '.join(others[:5])}" if others else "")
        )
        if not rows[role]:
            raise UserError(f"{directory} has no images in directories of classes; add some, or remove it")
    return image_task(source, rows, notes, classes)


def _is_other(path: Path) -> bool:
    """Whether a file that is not read is worth a note."""
    return not path.name.startswith(".") and path.name.lower() not in NOT_READ


def key_of(content: bytes) -> str:
    """What is equal for equal images."""
    return hashlib.sha256(content).hexdigest()


def image_task(
    source: TaskSource, rows: dict[str, list[Row]], notes: list[str], classes: Sequence[str]
) -> Task:
    """The task of images and the names of their classes, or with `source.metric` of `metrics.SEQUENCES` their strings.

    Without dev some of train is held out; equal images are in one split only.

    Args:
        rows: role -> rows, whose text is `key_of` the image, and whose value is the image.
        classes: in the order of the model's outputs; of strings the symbols.

    Raises:
        UserError: a split is empty, there are fewer than two classes, or one of them has no image in train.
    """
    train, strings = Path(source.files.get("train", source.hub)), source.metric in metrics.SEQUENCES

    def parts(row: Row) -> Sequence[str]:
        return row.label if strings else [row.label]

    if empty := [role for role, of in rows.items() if not of]:
        raise UserError(f"{source.files.get(empty[0], train)}: no images; give a file with some")
    there = {part for row in rows["train"] for part in parts(row)}
    absent = [name for name in classes if name not in there]
    if absent or len(classes) < 2:
        what = f"no image of {absent[0]!r}" if absent else f"the single class {classes[0]!r}"
        raise UserError(f"{train} has {what} to train on; give images of two classes or more, some of each")
    rows = parted(rows, train, "images", notes)
    splits, numbers = {}, {name: number for number, name in enumerate(classes)}
    for role, of in rows.items():
        for row in of:
            if unknown := [part for part in parts(row) if part not in numbers]:
                raise UserError(
                    f"{name_of(row)}: train has no {'symbol' if strings else 'class'} {unknown[0]!r}; add such images to "
                    "train, or remove it"
                )
        labels = [row.label if strings else numbers[row.label] for row in of]
        splits[role] = Split([name_of(row) for row in of], None, labels, images=[row.value for row in of])
    counts = {role: Counter(part for row in of for part in parts(row)) for role, of in rows.items()}
    notes = [*notes, *notes_of_classes(classes, counts, "symbols" if strings else "classes", "image")]
    if strings:
        kind: Kind = Sequences((BLANK, *classes))
        chosen = metrics.select(source.metric, metrics.SEQUENCES, metrics.SEQUENCES)
    else:
        kind, chosen = ImageClasses(tuple(classes)), metrics.select(source.metric)
    return Task(source.name, kind, splits, *chosen, notes=tuple(notes))


def name_of(row: Row) -> str:
    """The name of a row's image: its file's, or a row of one."""
    return f"{row.path}, row {row.line}" if row.line else str(row.path)


def _digits(source: TaskSource) -> Task:
    """Read the 1,797 digits of 8 x 8 pixels (UCI's test part, by 13 writers), split by a hash of the pixels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rows: dict[str, list[tuple[tuple[str], int]]] = {role: [] for role in ROLES}
    images: dict[str, list[Any]] = {role: [] for role in ROLES}
    for number, (values, label) in enumerate(zip(pixels, labels, strict=True)):
        grey = (values.reshape(8, 8, 1) * (255 / 16)).round().astype("uint8")
        role = split_of(grey.tobytes())
        rows[role].append(((f"digits/{number}",), int(label)))
        images[role].append(grey.repeat(3, axis=2))
    splits = {role: Split.of(of, images=images[role]) for role, of in rows.items()}
    return Task(source.name, ImageClasses(LABELS), splits, *metrics.select(source.metric))


def split_of(pixels: bytes) -> str:
    """Return the split of an image by its pixels alone: 30 of 100 test, 15 dev, the rest train."""
    percent = hashed(pixels) % 100
    return "test" if percent < 30 else "dev" if percent < 45 else "train"
