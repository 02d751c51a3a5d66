"""Images with captions: scenes of two or three of scikit-learn's handwritten digits, and who stands where."""

from __future__ import annotations

import random
from itertools import combinations, permutations
from typing import Any

from stages.tasks import metrics
from stages.tasks.kinds.image_texts import ImageTexts
from stages.tasks.readers import images
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

TASKS = ("digit-scenes",)
SCENES = {"train": 1200, "dev": 40, "test": 200}
NAMES = ("a zero", "a one", "a two", "a three", "a four", "a five", "a six", "a seven", "an eight", "a nine")
DIAGONALS = ((0, 3), (1, 2))
PLACES = [cells for n in (2, 3) for cells in combinations(range(4), n) if cells not in DIAGONALS]
"""Cells of a scene, numbered row by row, that are filled: two neighbours, or three."""


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the scenes, None for other names."""
    task = request.packaged(TASKS, ImageTexts.selectable)
    return TaskSource(task, "scenes", task=task, metric=request.metric) if task else None


def load(source: TaskSource, revision: str | None) -> Task:
    """Draw the scenes, always the same. Those of a split are of the digits of that split alone.

    A row of train is an image; its label is all captions that are true of it. A row of dev and test is an image and a
    caption, which is true (1) or not (0). One true caption is drawn for each image; each image is paired with every
    caption that was drawn.
    """
    of_digits = images.load(TaskSource("digits", "images"), None).splits
    splits = {}
    for role, count in SCENES.items():
        draw = random.Random(role)
        scenes = [_scene(draw, of_digits[role]) for _ in range(count)]
        names = [f"scenes/{role}/{number}" for number in range(count)]
        own = [draw.choice(captions) for _, captions in scenes]
        if role == "train":
            labels: list[Any] = [tuple(captions) for _, captions in scenes]
            splits[role] = Split(names, own, labels, images=[image for image, _ in scenes])
            continue
        pairs = [
            (name, *scene, text) for name, scene in zip(names, scenes, strict=True) for text in sorted({*own})
        ]
        columns = [list(column) for column in zip(*pairs, strict=True)]
        labels = [int(text in captions) for _, _, captions, text in pairs]
        splits[role] = Split(columns[0], columns[3], labels, images=columns[1])
    chosen = metrics.select(source.metric, ImageTexts.reported, ImageTexts.selectable)
    return Task(source.name, ImageTexts(), splits, *chosen)


def _scene(draw: random.Random, digits: Split) -> tuple[Any, list[str]]:
    """An image (16, 16, 3) of two by two cells, and the captions that are true of it."""
    import numpy as np

    image, names = np.zeros((16, 16, 3), np.uint8), {}
    for cell in draw.choice(PLACES):
        number, (row, column) = draw.randrange(len(digits)), divmod(cell, 2)
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = (digits.images or [])[number]
        names[cell] = NAMES[digits.labels[number]]
    captions = {
        f"{names[one]} {'left of' if one // 2 == other // 2 else 'above'} {names[other]}"
        if one < other
        else f"{names[one]} {'right of' if one // 2 == other // 2 else 'below'} {names[other]}"
        for one, other in permutations(names, 2)
        if tuple(sorted((one, other))) not in DIAGONALS
    }
    return image, sorted(captions)
