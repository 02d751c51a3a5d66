"""Images in MNIST's IDX files (LeCun, yann.lecun.com/exdb/mnist): `train-images-idx3-ubyte`, gzip or not, and its like.

`fashion-mnist` is found where Debian's package puts it; `data` is a directory of such files (MNIST, KMNIST, EMNIST).
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.labelled_rows import Row
from stages.tasks.readers.images import image_task, key_of
from stages.tasks.text import slug
from stages.tasks.types import TaskRequest, TaskSource

if TYPE_CHECKING:
    from stages.tasks.types import Task

TASKS = ("fashion-mnist",)
FASHION = Path("/usr/share/datasets/fashion-mnist")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
EMNIST = "emnist-"
"""How the names of EMNIST's files begin, whose images lie transposed against MNIST's."""
NAME = re.compile(r"(?:.*-)?(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?", re.IGNORECASE)


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of Fashion-MNIST or of a directory of IDX files, None for others."""
    fashion = request.task.lower().replace("_", "-") in TASKS
    data = Path(request.data) if request.data else FASHION if fashion else None
    if data == FASHION and not data.is_dir():
        raise UserError(
            f"'fashion-mnist' is read from {FASHION}, which is not there; install Debian's package "
            "(apt install dataset-fashion-mnist), or give a directory of its files as data",
            argument="task",
        )
    files = _files(data) if data and data.is_dir() else {}
    if not data or not files:
        return None
    request.refuse_columns(f"{data} holds images in IDX files, which have no columns")
    metrics.select(request.metric, metrics.CLASSIFICATION, metrics.CLASSIFICATION)
    return TaskSource(
        slug(request.task or data.name),
        "idx",
        files=files,
        task="fashion-mnist" if fashion else "",
        metric=request.metric,
    )


def _files(data: Path) -> dict[str, str]:
    """Role -> its file of images, and "ROLE.labels" -> that of their labels."""
    files: dict[str, str] = {}
    for path in sorted(data.iterdir()):
        if match := NAME.fullmatch(path.name):
            role = "train" if match[1].lower() == "train" else "test"
            key = role if match[2].lower() == "images" else f"{role}.labels"
            if key in files:
                raise UserError(
                    f"{data} holds both {Path(files[key]).name} and {path.name}; keep one", argument="data"
                )
            files[key] = str(path.resolve())
    for role in {"train", *(key.partition(".")[0] for key in files)} if files else ():
        if missing := {role, f"{role}.labels"} - files.keys():
            what = "labels" if missing == {f"{role}.labels"} else "images"
            raise UserError(
                f"{data} has no {role}-{what}-idx{1 if what == 'labels' else 3}-ubyte; add it",
                argument="data",
            )
    return files


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the images and their labels."""
    import numpy as np

    rows: dict[str, list[Row]] = {}
    notes = []
    for role, name in source.files.items():
        if role.endswith(".labels"):
            continue
        path, of_labels = Path(name), Path(source.files[f"{role}.labels"])
        greys, numbers = _read(path, 3), _read(of_labels, 1)
        if len(greys) != len(numbers):
            raise UserError(
                f"{path} has {len(greys):,} images and {of_labels.name} {len(numbers):,} labels; give files of one set"
            )
        turned = path.name.lower().startswith(EMNIST)
        greys = greys.swapaxes(1, 2) if turned else greys
        notes.append(f"{role}: {path.name}, {len(greys):,} images{', transposed' if turned else ''}")
        rows[role] = []
        for i, (grey, number) in enumerate(zip(greys, numbers.tolist(), strict=True), start=1):
            image = np.broadcast_to(grey[..., None], (*grey.shape, 3))
            rows[role].append(Row(i, (key_of(grey.tobytes()),), str(number), path, value=image))
    classes = sorted({row.label for row in rows["train"]}, key=int)
    if source.task:
        if classes != [str(i) for i in range(len(CLOTHES))]:
            raise UserError(
                f"{source.files['train.labels']} has the classes {', '.join(classes):.100}; Fashion-MNIST has 0 to 9"
            )
        rows = {
            role: [row._replace(label=CLOTHES[int(row.label)]) for row in of] for role, of in rows.items()
        }
        classes = [*CLOTHES]
    return image_task(source, rows, notes, classes)


def _read(path: Path, axes: int) -> Any:
    """The bytes of an IDX file: two zeros, 8 for unsigned bytes, the number of axes; their lengths, big-endian; the values."""
    import numpy as np

    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
            zeros, kind, found = struct.unpack(">HBB", file.read(4))
            if (zeros, kind, found) != (0, 8, axes):
                raise ValueError(f"it does not begin as one of bytes with {axes} axes does")
            shape = struct.unpack(f">{axes}I", file.read(4 * axes))
            content = file.read()
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise UserError(f"{path} cannot be read as an IDX file ({error}); download it again") from error
    if not content or len(content) != math.prod(shape):
        raise UserError(
            f"{path} holds {len(content):,} bytes of {' x '.join(map(str, shape))} that it announces; download it again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
