"""The teacher of a task, and where its outputs come from: the model in every step, or the disk."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from checkpoints import store
from stages.distillation.models import load_classifier
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.task_heads import to_learned_scale
from stages.distillation.teachers import FrozenTeacher, class_order
from stages.tasks.batches import Batch
from stages.tasks.task import Task
from stages.tasks.token_rows import TokenRows
from stages.teaching.cached_teacher import TeacherCache, kept_bytes
from stages.training.stage import Stage, barrier, is_first_rank

KEPT = "kept-rows.json"
"""Of how many rows a stage keeps its teacher's layers, as it decided when it began, and their bytes; beside them."""
UNCLAIMED = "half of the free disk that no other run has claimed"


def task_teacher(stage: Stage, task: Task, spec: CaptureSpec, given: str = "teacher") -> FrozenTeacher:
    """The tuned teacher that is the stage's input `given`, its logits in the task's class order."""
    source = stage.model(given)
    teacher = load_classifier(source)
    to_learned_scale(teacher, task.kind.scale)
    order = class_order(teacher.config, task.labels, [])
    return FrozenTeacher(teacher, spec, stage.device, stage.precision, order)


def may_keep_layers(stage: Stage, epochs: int) -> bool:
    """Whether a stage of so many epochs keeps its teacher's layers, if the disk has room for them."""
    # A GPU runs the teacher sooner than it reads its layers from disk.
    return epochs > 1 and stage.job.cache_gb != 0 and stage.device.type == "cpu"


def teacher_outputs(
    stage: Stage, teacher: FrozenTeacher, rows: dict[str, TokenRows]
) -> dict[str, Callable[[Batch], ModelOutputs]]:
    """For each of the named rows what gives the teacher's outputs: the disk where that pays and fits, else the model."""
    live: dict[str, Callable[[Batch], ModelOutputs]] = dict.fromkeys(rows, teacher)
    if not may_keep_layers(stage, stage.training.epochs):
        return live
    caches = {name: TeacherCache(stage, name, of, teacher) for name, of in rows.items()}
    kept, limit = _rows_kept(stage, caches)
    share = sum(kept.values()) / sum(map(len, rows.values()))
    size = sum(cache.bytes_of(len(cache.rows)) for cache in caches.values()) / 1e9
    if share == 1:
        stage.log(f"the teacher runs once over all rows; its layers take {size:,.2f} GB of disk meanwhile")
    else:
        once = (
            f"once over {share:.0%} of the rows, over the others in every epoch" if share else "in every step"
        )
        stage.log(
            f"the teacher runs {once}: all its layers would take {size:,.1f} GB, more than {limit} (job.cache_gb)"
        )
    return {name: cache.fill(kept[name]) for name, cache in caches.items()} if share else live


def _rows_kept(stage: Stage, caches: dict[str, TeacherCache]) -> tuple[dict[str, int], str]:
    """Of how many rows of each cache the disk has room for the layers, and the limit. A resumed stage does as it began.

    Called on every rank.
    """
    begun = stage.directory / "teacher" / KEPT
    if is_first_rank() and not begun.exists():
        limit = stage.job.cache_gb
        if limit == "auto":
            free = shutil.disk_usage(stage.directory).free
            room = (free - _claimed(stage.directory.parent.parent)) / 2
        else:
            room = 1e9 * limit
        kept, size = {}, 0
        for name, cache in caches.items():
            kept[name] = cache.rows_that_fit(room - size)
            size += cache.bytes_of(kept[name])
        begun.parent.mkdir(exist_ok=True)
        words = UNCLAIMED if limit == "auto" else f"{limit:g} GB"
        store.write_json(begun, {"rows": kept, "bytes": size, "limit": words})
    barrier()
    known = store.read_json(begun)
    return known["rows"], known["limit"]


def _claimed(runs: Path) -> int:
    """The bytes of layers that stages under `runs` have still to write: those that run, and half-done ones."""
    found = 0
    for begun in runs.glob(f"*/*/teacher/{KEPT}"):
        with contextlib.suppress(FileNotFoundError):  # it was finished in this moment
            found += max(0, store.read_json(begun).get("bytes", 0) - kept_bytes(begun.parent))
    return found
