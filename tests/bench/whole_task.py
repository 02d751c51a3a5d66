"""Work: a whole task, from its rows to the finished student: augmentation, ten intermediate and three prediction epochs.

Ours is the command `task-distill` in a process of its own, from an empty cache, with start-up, the stage `check`, dev and
`evaluate`. The reference augments all rows, but takes only every tenth step of training and counts it ten times: its
steps are alike, for it runs the teacher in each and keeps nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from data_aug.variants import Row, Settings, augment_rows
from stages.distillation.compatibility import forward_flops
from stages.tasks.batches import normalizers
from tests.bench.augmentation import Models, flops_of
from tests.bench.machine import Machine, seconds
from tests.bench.place import STUDENT, TEACHER, Place, write_task
from tests.bench.reference import Reference
from tests.bench.training import BATCH, same_loss
from tests.bench.work import Work

EPOCHS = {"intermediate": 10, "prediction": 3}
EVERY = 10
"""The reference takes every tenth of its training steps, and its time is counted ten times."""


def whole_task(place: Place, name: str, task: str, length: int, count: int, goal: float) -> Work:
    """The minutes of a task's rows, `count` of them, to a student.

    Args:
        place: where models and texts are.
        name: of the work.
        task: whose texts.
        length: that the reference pads to, and the longest row of ours.
        count: rows before augmentation.
        goal: of the ratio, ours to the reference's.
    """
    models = Models(place)
    minutes: dict[str, dict[str, float]] = {"reference": {}, "ours": {}}
    augmented: list[Row] = []

    def rows() -> list[Row]:
        return [(row[0], row[1] if len(row) > 1 else None) for row in place.texts(task, count, 0)]

    def reference(repeat: int) -> float:
        if repeat < 0:
            return 0.0  # nothing that starts is left out: there is nothing to warm up
        made: list[list[list[Row]]] = []
        models.vectors._known.clear()
        took = {
            "augmentation": seconds(
                lambda: made.append(augment_rows(rows(), models.plain, Settings(), seed=1)[0]), place.device
            )
        }
        augmented[:] = [row for variants in made[0] for row in variants]
        tensors = place.padded([tuple(t for t in row if t) for row in augmented], length)
        random = np.random.default_rng(0)
        for stage, epochs in EPOCHS.items():
            plain = Reference(place.plain_teacher, place.stock(place.student, "eager"), stage == "prediction")
            took[stage] = sum(_seconds_of_epoch(plain, tensors, random) for _ in range(epochs))
        minutes["reference"] = {part: value / 60 for part, value in took.items()}
        return sum(minutes["reference"].values())

    def ours(repeat: int) -> float:
        if repeat < 0:
            return 0.0
        root = place.path / name
        root.mkdir()
        write_task(root / "data", place.texts(task, count, 0))
        models.model.save_pretrained(root / "masked-lm")
        place.tokenizer.save_pretrained(root / "masked-lm")
        given = {
            "preset": "tinybert4", "task": "bench", "data": "data", "label_column": "label", "run": "whole",
            "text_columns": "a" if task == "sst-2" else "a,b", "teacher": place.teacher, "accept_teacher": "true",
            "student": place.student, "augmentation.masked_lm": "masked-lm", "corpus": "",
        } | {f"{stage}.epochs": epochs for stage, epochs in EPOCHS.items()}  # fmt: skip
        given |= {f"{stage}.max_length": length for stage in EPOCHS}
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pipeline", "task-distill", *(f"{key}={value}" for key, value in given.items())],
            cwd=root, env=os.environ | {"PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        whole = (time.perf_counter() - began) / 60
        parts = {stage: _minutes_of(root / "runs" / "whole" / stage) for stage in ("augment", *EPOCHS)}
        minutes["ours"] = {"augmentation": parts.pop("augment"), **parts}
        shutil.rmtree(root)
        return whole

    def more() -> list[tuple[str, str, float, float]]:
        return [
            (part, "minutes", value, minutes["ours"][part]) for part, value in minutes["reference"].items()
        ]

    def limit(machine: Machine) -> float:
        """The teacher once over each row; the student three times in each epoch, for the backward pass is two."""
        lengths = place.padded([tuple(t for t in row if t) for row in augmented], length)[1].sum(1).numpy()
        total = normalizers(lengths)
        tokens, mean = total["tokens"], total["pairs"] / total["tokens"]
        projections = (STUDENT.num_hidden_layers + 1) * STUDENT.hidden_size * TEACHER.hidden_size
        flops = flops_of(rows(), models) + forward_flops(TEACHER, tokens, mean)
        flops += sum(EPOCHS.values()) * 3 * forward_flops(STUDENT, tokens, mean)
        flops += EPOCHS["intermediate"] * 3 * 2 * projections * tokens
        return machine.seconds(flops, 0, place.precision) / 60

    def agrees() -> bool:
        return same_loss(place, False) and same_loss(place, True)

    return Work(name, "minutes", 1 / goal, reference, ours, limit, agrees, less_is_better=True, more=more)


def _seconds_of_epoch(plain: Reference, tensors: Sequence[Tensor], random: np.random.Generator) -> float:
    """Seconds of an epoch in random order, from every tenth of its steps."""
    rows = len(tensors[0])
    batches = np.array_split(random.permutation(rows), -(-rows // BATCH))
    taken = batches[random.integers(min(EVERY, len(batches))) :: EVERY]
    parts = [[tensor[batch] for tensor in tensors] for batch in taken]
    took = seconds(lambda: [plain.step(*part) for part in parts], parts[0][0].device)
    return took * len(batches) / len(taken)


def _minutes_of(stage: Path) -> float:
    return json.loads((stage / "finished.json").read_text())["seconds_of_last_start"] / 60
