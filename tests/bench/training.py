"""Works that train: the general stage, the two task stages, and a stage on two ranks.

Ours is the pipeline's own stage, run from a `stage.json` as a worker runs it, in the first epoch of a new run with a
cache of its own; its speed is what it writes into `metrics.jsonl`: all its steps, with reading, batching, recording of
the teacher's logits and logging, without loading models before and saving the student after. The reference reads
tensors that lie ready, padded. On a GPU the reference is `GPUReference`, and of both sides the first third of the steps,
in which kernels are loaded, does not count.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from stages.distillation.compatibility import forward_flops
from stages.distillation.distillation import Distillation
from stages.distillation.losses.prediction import SoftLabels
from stages.distillation.models import ModelSource, load_classifier
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.batches import Batch, normalizers
from stages.tasks.kinds import Classes
from stages.teaching.student import layer_losses
from stages.training.job import Job
from stages.training.options import Distilling, General, Prediction
from tests.bench.machine import Machine, seconds
from tests.bench.place import CLASSES, STUDENT, TEACHER, Place, Texts, metrics
from tests.bench.reference import GPUReference, Reference
from tests.bench.work import Work, close

BATCH = 32
OPTIONS = {"general": General, "intermediate": Distilling, "prediction": Prediction}
OPTIMIZER_BYTES = 32
"""Of a parameter in a step, in fp32: the gradient written and read, the weight and two moments read and written."""


def training(
    place: Place,
    name: str,
    kind: str,
    task: str,
    length: int,
    goal: float,
    plain_steps: int,
    our_steps: int,
    batch: int = BATCH,
    **job: str,
) -> Work:
    """A training stage, in rows a second.

    Args:
        place: where models and texts are.
        name: of the work.
        kind: of the stage.
        task: whose texts; "" is text whose rows all have the full length.
        length: that the reference pads to, and the longest row of ours.
        goal: of the ratio.
        plain_steps, our_steps: of a repeat.
        batch: rows of a step.
        job: options of the job that differ from the defaults.
    """
    gpu = place.device.type == "cuda"

    def texts(count: int, repeat: int) -> Texts:
        if task:
            return place.texts(task, count, repeat)
        return [(place.long_text(3 * count * length // 2),)]

    speeds: list[float] = []

    def reference(repeat: int, mended: bool = False) -> float:
        count = batch * (plain_steps if repeat >= 0 else 1)
        if task:
            tensors = place.padded(texts(count, repeat), length)
        else:
            ids = torch.randint(1000, 30000, (count, length), device=place.device)
            tensors = (ids, torch.ones_like(ids), torch.zeros_like(ids))
        plain: Reference
        if gpu:
            plain = GPUReference(place.gpu_teacher, place.stock(place.student, "sdpa"), kind == "prediction")
        else:
            student = place.stock(place.student, "eager")
            plain = Reference(place.plain_teacher, student, kind == "prediction", kind == "general", mended)
        batches = list(zip(*(tensor.split(batch) for tensor in tensors), strict=True))
        first = len(batches) // 3 if gpu else 0

        def steps(part: list) -> None:
            for one in part:
                plain.step(*one)

        steps(batches[:first])
        return batch * (len(batches) - first) / seconds(lambda: steps(batches[first:]), place.device)

    def ours(repeat: int) -> float:
        count = batch * (our_steps if repeat >= 0 else 2)
        options = OPTIONS[kind](epochs=1, batch_size=batch, max_length=length)
        if not task:
            options.tokens = count * length
        rows = texts(count, repeat)
        with place.stage(kind, options, rows, **job) as stage:
            if gpu:
                speeds.append(rows_per_second(place, stage))
                return speeds[-1]
            tokens_per_second = place.run(stage)[-1]["tokens_per_second"]
        speeds.append(
            tokens_per_second / (place.padded(rows, length)[1].sum().item() / count if task else length)
        )
        return speeds[-1]

    def more() -> list[tuple[str, str, float, float]]:
        if gpu:
            return []
        return [("optimised reference", "rows/s", reference(0, mended=True), statistics.median(speeds[1:]))]

    def limit(machine: Machine) -> float:
        lengths = np.full(batch, length)
        if task:
            lengths = place.padded(texts(50 * batch, 0), length)[1].sum(1).cpu().numpy()
        share = batch / len(lengths)
        total = {key: value * share for key, value in normalizers(lengths).items()}
        flops, bytes = step_cost(total, kind != "prediction", 4 if place.precision == "fp32" else 2)
        return batch / machine.seconds(flops, bytes, place.precision)

    agrees = partial(same_loss, place, kind == "prediction")
    return Work(name, "rows/s", goal, reference, ours, limit, agrees, more=more)


def rows_per_second(place: Place, stage: Path) -> float:
    """The speed of a stage's last two thirds of steps, which a GPU has finished when the clock is read."""
    stamps: list[tuple[int, float]] = []
    plain = Job.step

    def step(job: Job, rows: np.ndarray) -> float:
        first = job.steps // 3
        if job.state.step in (first, job.steps - 1):
            torch.cuda.synchronize()
            stamps.append((job.state.step, time.perf_counter()))
        return plain(job, rows)

    with mock.patch.object(Job, "step", step):
        place.run(stage)
    batch = json.loads((stage / "stage.json").read_text())["options"]["training"]["batch_size"]
    (first, began), (last, ended) = stamps
    return batch * (last - first) / (ended - began)


def step_cost(total: dict[str, float], learns_layers: bool, weight_bytes: int) -> tuple[float, float]:
    """Operations and bytes of a step that nothing avoids.

    The teacher's forward pass; the student's three times, for the backward pass is two; of the layers' losses the
    projections. Scores are counted once, in the forward passes; embeddings are looked up, not multiplied. Each
    weight of the teacher's layers is read once, and the optimiser goes over the student.

    Args:
        total: counts of the batch: rows, tokens, pairs of tokens.
        learns_layers: from a teacher; or else recorded predictions, without one.
        weight_bytes: of a number in the teacher's weights.
    """
    tokens, length = total["tokens"], total["pairs"] / total["tokens"]
    flops = 3 * forward_flops(STUDENT, tokens, length)
    parameters, bytes = _parameters(STUDENT), 0
    parameters += STUDENT.vocab_size * STUDENT.hidden_size
    if learns_layers:
        projections = (STUDENT.num_hidden_layers + 1) * STUDENT.hidden_size * TEACHER.hidden_size
        flops += forward_flops(TEACHER, tokens, length) + 3 * 2 * projections * tokens
        parameters += projections
        bytes = weight_bytes * _parameters(TEACHER)
    return flops, bytes + OPTIMIZER_BYTES * parameters


def _parameters(config) -> int:
    """Weights of a BERT's layers."""
    return (
        config.num_hidden_layers
        * config.hidden_size
        * (4 * config.hidden_size + 2 * config.intermediate_size)
    )


@cache
def same_loss(place: Place, predicts: bool) -> bool:
    """Whether both sides find the same loss for rows of one length, in fp32 and without dropout."""
    student = place.stock(place.student, "eager")
    plain = Reference(place.plain_teacher, student, predicts, mended=True)
    student.eval()
    ids = torch.randint(1000, 30000, (8, 24), generator=torch.Generator().manual_seed(0))
    types = (torch.arange(24) >= 12).long().expand_as(ids)
    batch = Batch(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types},
        None,
        torch.ones(8),
        torch.arange(8),
    ).to(place.device)
    with torch.no_grad():
        expected = plain.loss(batch.input_ids, batch.attention_mask, batch.inputs["token_type_ids"]).item()
    mine, theirs = (
        load_classifier(ModelSource(str(path)), Classes(CLASSES)) for path in (place.student, place.teacher)
    )
    pair = (mine.config, theirs.config)
    layers = layer_losses(Distilling(), *pair)
    model = Distillation(mine, [SoftLabels()] if predicts else layers).to(place.device).eval()
    if predicts:
        expected *= len(CLASSES)  # the published mean is over classes, too
    else:
        model.losses[0].projections.load_state_dict(plain.projections.state_dict())
    total = normalizers(np.full(8, 24))
    with torch.no_grad():
        terms = model(batch, FrozenTeacher(theirs, model.teacher_capture, place.device)(batch))
    return close(sum(t.weight * t.sum.item() / total[t.normalizer] for t in terms.values()), expected)


def ranks(place: Place, steps: int = 8) -> Work:
    """The intermediate stage at MRPC's lengths by the pipeline's own launcher: two ranks against one, a core each.

    The first two steps of a process are left out. Both sides see the same batches; they agree if the first of them
    has the same loss.
    """
    first_loss = {}

    def run(count: int) -> Callable[[int], float]:
        def measured(repeat: int) -> float:
            options = Distilling(epochs=1, batch_size=BATCH, max_length=128)
            rows = place.texts("mrpc", steps * BATCH, 0)
            student = place.student_without_dropout
            with place.stage(
                "intermediate", options, rows, student=student, nproc=count, log_every=1
            ) as stage:
                subprocess.run(
                    [sys.executable, "-m", "pipeline.launch.local_ranks", str(stage), str(count)],
                    env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=True,
                )  # fmt: skip
                lines = metrics(stage)
            first_loss[count] = lines[0]["hidden"] + lines[0]["attention"]
            return BATCH * (steps - 2) / (lines[-1]["seconds"] - lines[1]["seconds"])

        return measured

    one, two = run(1), run(2)
    speeds = []

    def reference(repeat: int) -> float:
        speeds.append(one(repeat) if repeat >= 0 else 0.0)  # each repeat is a process: nothing to warm up
        return speeds[-1]

    return Work(
        "ranks-2", "rows/s", 1.8, reference, lambda repeat: two(repeat) if repeat >= 0 else 0.0,
        lambda machine: 2 * max(speeds), lambda: close(first_loss[2], first_loss[1]),
    )  # fmt: skip
