"""Images with classes: scikit-learn's handwritten digits."""

from __future__ import annotations

import hashlib
from typing import Any

from stages.tasks import metrics
from stages.tasks.kinds.images import ImageClasses
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

TASKS = ("digits",)
LABELS = tuple("0123456789")


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the digits, None for other names.

    Raises:
        UserError: the request has options that only fit the user's own files.
    """
    task = request.packaged(TASKS)
    return TaskSource(task, "images", task=task, metric=request.metric) if task else None


def load(source: TaskSource, revision: str | None) -> Task:
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
