"""Works that train: the general stage, the two task stages, and a stage on two ranks.

Ours is the pipeline's own stage, run from a `stage.json` as a worker runs it, in the first epoch of a new run with a
cache of its own; its speed is what it writes into `metrics.jsonl`: all its steps, with reading, batching, recording of
the teacher's logits and logging, without loading models before and saving the student after. The reference reads
tensors that lie ready, padded.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from stages.distillation.compatibility import forward_flops
from stages.distillation.distillation import Distillation
from stages.distillation.losses.prediction import SoftLabels
from stages.distillation.models import ModelSource, load_classifier
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.batches import Batch, normalizers
from stages.teaching.student import layer_losses
from stages.training.options import Distilling, General, Prediction
from tests.bench.machine import Machine, seconds
from tests.bench.place import CLASSES, STUDENT, TEACHER, Place, Texts, metrics
from tests.bench.reference import Reference
from tests.bench.texts import long_text
from tests.bench.work import Work, close

BATCH = 32
OPTIONS = {"general": General, "intermediate": Distilling, "prediction": Prediction}
OPTIMIZER_BYTES = 32
"""Of a parameter in a step, in fp32: the gradient written and read, the weight and two moments read and written."""


def training(
    place: Place, name: str, kind: str, task: str, length: int, goal: float, plain_steps: int, our_steps: int
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
    """

    def texts(count: int, repeat: int) -> Texts:
        if task:
            return place.texts(task, count, repeat)
        return [(long_text(2 * count * length, place.tokenizer),)]

    speeds: list[float] = []

    def reference(repeat: int, mended: bool = False) -> float:
        count = BATCH * (plain_steps if repeat >= 0 else 1)
        if task:
            tensors = place.padded(texts(count, repeat), length)
        else:
            ids = torch.randint(1000, 30000, (count, length), device=place.device)
            tensors = (ids, torch.ones_like(ids), torch.zeros_like(ids))
        student = place.stock(place.student, "eager")
        plain = Reference(place.plain_teacher, student, kind == "prediction", kind == "general", mended)

        def steps() -> None:
            for batch in zip(*(tensor.split(BATCH) for tensor in tensors), strict=True):
                plain.step(*batch)

        return count / seconds(steps, place.device)

    def ours(repeat: int) -> float:
        count = BATCH * (our_steps if repeat >= 0 else 2)
        options = OPTIONS[kind](epochs=1, batch_size=BATCH, max_length=length)
        if not task:
            options.tokens = count * length
        rows = texts(count, repeat)
        with place.stage(kind, options, rows) as stage:
            tokens_per_second = place.run(stage)[-1]["tokens_per_second"]
        speeds.append(
            tokens_per_second / (place.padded(rows, length)[1].sum().item() / count if task else length)
        )
        return speeds[-1]

    def more() -> list[tuple[str, str, float, float]]:
        return [("optimised reference", "rows/s", reference(0, mended=True), statistics.median(speeds[1:]))]

    def limit(machine: Machine) -> float:
        lengths = np.full(BATCH, length)
        if task:
            lengths = place.padded(texts(50 * BATCH, 0), length)[1].sum(1).cpu().numpy()
        share = BATCH / len(lengths)
        total = {key: value * share for key, value in normalizers(lengths).items()}
        flops, bytes = step_cost(total, kind != "prediction", 4 if place.precision == "fp32" else 2)
        return BATCH / machine.seconds(flops, bytes, place.precision)

    agrees = partial(same_loss, place, kind == "prediction")
    return Work(name, "rows/s", goal, reference, ours, limit, agrees, more=more)


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
        load_classifier(ModelSource(str(path)), CLASSES) for path in (place.student, place.teacher)
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
