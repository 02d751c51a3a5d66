"""The rows of a task as a model reads them: tokens, pixels or a graph, from the cache that all runs share."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import BaseImageProcessor

from checkpoints import store
from checkpoints.fingerprint import fingerprint
from stages.tasks.batches import Batch
from stages.tasks.caption_rows import CaptionedImages, DrawnCaptions, ImageTextProcessor, PairRows
from stages.tasks.graph_rows import NodeRows
from stages.tasks.image_changes import ImageChanges, MixedImages
from stages.tasks.image_rows import ImageRows, write_pixels
from stages.tasks.kinds import ImageClasses, ImageTexts, Kind, Nodes, Sequences
from stages.tasks.strip_rows import StripRows
from stages.tasks.task import Task
from stages.tasks.task_rows import TaskRows
from stages.tasks.types import UNLABELLED
from stages.training.cached_rows import is_there, task_rows, train_rows
from stages.training.progress import Progress
from stages.training.stage import Stage, is_first_rank, wait_for

FORMAT = 2
PIXELS_FILE = "pixels.npy"


def rows_of(stage: Stage, task: Task, split: str, preprocessor: Any, max_length: int) -> TaskRows:
    """The rows of a split, as a model reads them.

    Args:
        preprocessor: the preprocessor of the model: `stages.distillation.models.load_preprocessor`.
        max_length: most tokens of a row.
    """
    if isinstance(task.kind, ImageTexts):
        return _image_texts(stage, task, split, preprocessor)
    if task.kind.reads_images:
        return _images(stage, task, [split], preprocessor)
    if isinstance(task.kind, Nodes):
        return NodeRows.of(preprocessor, task.splits[split])
    return task_rows(stage, task, split, preprocessor, max_length)


def rows_to_train(
    stage: Stage, task: Task, preprocessor: Any, max_length: int, with_unlabelled: bool = False
) -> TaskRows:
    """The rows a stage trains on; the other arguments are those of `rows_of`.

    Args:
        with_unlabelled: append the task's rows without labels; graphs, and images with captions, ignore it.
    """
    if isinstance(task.kind, ImageTexts):
        return _image_texts(stage, task, "train", preprocessor)
    if task.kind.reads_images:
        return _images(stage, task, ["train", *(["unlabelled"] if with_unlabelled else [])], preprocessor)
    if isinstance(task.kind, Nodes):
        return NodeRows.of(preprocessor, task.splits["train"], others=UNLABELLED)
    return train_rows(stage, task, preprocessor, max_length, with_unlabelled)


def changes_of(stage: Stage, task: Task, rows: TaskRows) -> Callable[[Batch, int], Batch] | None:
    """What changes a batch of training rows by (seed, epoch, row), as a job's `batch_transform`; None: nothing does."""
    if isinstance(task.kind, ImageTexts):
        return DrawnCaptions(stage.seed)
    strength = task.kind.augmentation if isinstance(task.kind, ImageClasses) else 0.0
    changes = ImageChanges(stage.seed, strength) if strength else None
    if isinstance(rows, ImageRows) and (mixing := stage.options.get("mixing")):
        return MixedImages(rows, changes, stage.seed, **mixing)
    return changes


def _images(stage: Stage, task: Task, splits: list[str], processor: BaseImageProcessor) -> ImageRows:
    """Images of some splits, with their classes."""
    labels = [label for name in splits for label in task.splits[name].labels]
    return image_rows(task.kind, _pixels(stage, task, splits, processor), labels, processor)


def _image_texts(
    stage: Stage, task: Task, split: str, processor: ImageTextProcessor
) -> PairRows | CaptionedImages:
    """Images to train on, with the captions of the split; of other splits pairs."""
    rows = task.splits[split]
    pixels = _pixels(stage, task, [split], processor.image)
    if split == "train":
        return CaptionedImages.of(rows, pixels, processor)
    return PairRows.of(rows, pixels, processor)


def _pixels(stage: Stage, task: Task, splits: list[str], processor: BaseImageProcessor) -> np.ndarray:
    """Resized images of some splits, made if they are not in the cache. Called on every rank; rank 0 makes them.

    An image that several rows have, under one name, is there once.
    """
    parts = [task.splits[name] for name in splits]
    known = {
        "task": stage.inputs["task"],
        "splits": splits,
        "processor": processor.to_dict(),
        "format": FORMAT,
    }
    target = stage.cache / f"images-{fingerprint(known)[:20]}"
    if not is_there(stage, target, "resized images are") and is_first_rank():
        images = {
            name: image for part in parts for name, image in zip(part.text_a, part.images or (), strict=True)
        }
        with (
            Progress(stage, len(images), "row", what="resizing") as progress,
            store.sealed(target, shared=True) as directory,
        ):
            write_pixels([*images.values()], [*images], processor, directory / PIXELS_FILE, progress.advance)
    wait_for([target / store.MANIFEST])
    return np.load(target / PIXELS_FILE, mmap_mode="r")


def image_rows(
    kind: Kind, pixels: np.ndarray, labels: Sequence[Any], processor: BaseImageProcessor
) -> ImageRows:
    """Rows of resized images, with their labels, as a kind of task has them."""
    if isinstance(kind, Sequences):
        return StripRows.of(pixels, labels, kind.labels, processor)
    return ImageRows(pixels, np.array(labels, np.int64), processor)
