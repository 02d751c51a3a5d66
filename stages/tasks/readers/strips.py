"""Strings of handwritten digits: strips composed of scikit-learn's images of single digits."""

from __future__ import annotations

import random
from typing import Any

from stages.tasks import metrics
from stages.tasks.kinds.sequences import BLANK, Sequences
from stages.tasks.readers.images import split_of
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

TASKS = ("digit-strings",)
ROWS = {"train": 2000, "dev": 400, "test": 800}
DIGITS = (3, 6)
"""The least and the most digits of a string."""
SIDE, WIDTH = 8, 64
"""Pixels of a digit's side, and of a strip's width."""
NOISE = 90.0
"""Deviation of the normal noise that is added to each pixel, of 255. It makes reading hard: of clean strips a teacher that is
given the strings has no reason to copy them."""


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the strings, None for other names."""
    task = request.packaged(TASKS, metrics.SEQUENCES)
    return TaskSource(task, "strips", task=task, metric=request.metric) if task else None


def load(source: TaskSource, revision: str | None) -> Task:
    """Compose the strips. A digit's image is in strips of one split alone."""
    splits = {}
    for role, count in ROWS.items():
        images, strings, _ = composed(role)
        splits[role] = Split(
            [f"{source.name}/{role}/{i}" for i in range(count)], None, strings, images=images
        )
    kind = Sequences((BLANK, *"0123456789"))
    chosen = metrics.select(source.metric, metrics.SEQUENCES, metrics.SEQUENCES)
    return Task(source.name, kind, splits, *chosen)


def composed(role: str) -> tuple[list[Any], list[str], list[list[tuple[int, int]]]]:
    """Return the strips of a split, always the same: digits in a row, with gaps of random widths, under noise.

    Returns:
        (8, 64, 3) uint8 images; their strings; for each digit of each string its first column, and that after its last.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    greys = (pixels.reshape(-1, SIDE, SIDE) * (255 / 16)).round().astype("uint8")
    own = [i for i, grey in enumerate(greys) if split_of(grey.tobytes()) == role]
    drawn, noise = random.Random(role), np.random.default_rng([*role.encode()])
    images, strings, spans = [], [], []
    for _ in range(ROWS[role]):
        chosen = drawn.choices(own, k=drawn.randint(*DIGITS))
        gaps = sorted(drawn.randint(0, WIDTH - SIDE * len(chosen)) for _ in chosen)
        starts = [gap + SIDE * i for i, gap in enumerate(gaps)]
        strip = np.zeros((SIDE, WIDTH))
        for start, i in zip(starts, chosen, strict=True):
            strip[:, start : start + SIDE] = greys[i]
        noisy = (strip + noise.normal(0, NOISE, strip.shape)).clip(0, 255).round().astype(np.uint8)
        images.append(noisy[:, :, None].repeat(3, axis=2))
        strings.append("".join(str(classes[i]) for i in chosen))
        spans.append([(start, start + SIDE) for start in starts])
    return images, strings, spans
