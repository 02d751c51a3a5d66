"""Trains a tiny student on several ranks, in each of several ways; prints how far the weights are apart.

    python -m tests.stages.training.many_ranks RANKS DIRECTORY '[{"zero": 1, "passes": 2}, ...]'

A way is the ZeRO stage, the passes of a rank in a step, and what a DeepSpeed config of the user's adds ("deepspeed").
The ranks are forks of one process, which has imported what they need.
"""

import json
import os
import shutil
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipeline.launch.worker import leave, set_environment, start_ranks
from stages.distillation.distillation import Distillation
from stages.distillation.losses import AttentionScores, HiddenStates
from stages.distillation.models import ModelSource, load_encoder
from stages.distillation.teachers import FrozenTeacher
from stages.training.job import Interrupted, Job
from tests.conftest import make_corpus, make_encoder
from tests.stages.training.test_job import make_job

BATCH = 16


@dataclass
class Way:
    """How it is trained.

    Attributes:
        zero: ZeRO stage.
        passes: of a rank in a step.
        deepspeed: what a DeepSpeed config of the user's adds to the engine's.
        stops_at: a step at which it is stopped, and then resumed.
    """

    zero: int = 0
    passes: int = 1
    deepspeed: dict[str, Any] = field(default_factory=dict)
    stops_at: int = 0


@dataclass
class Counts:
    """Collectives of this rank.

    Attributes:
        control: by which ranks agree to save or stop.
        in_backward: that began while a backward pass ran.
    """

    control: int = 0
    in_backward: int = 0


@contextmanager
def counted(counts: Counts, job: Job) -> Iterator[None]:
    """Count the collectives of a job in the block."""
    plain = {name: getattr(dist, name) for name in ("all_reduce", "reduce")}

    def counting(name: str, *arguments: Any, **keywords: Any) -> Any:
        counts.control += keywords.get("group") is job.control_group is not None
        counts.in_backward += torch._C._current_graph_task_id() != -1
        return plain[name](*arguments, **keywords)

    for name in plain:
        setattr(dist, name, partial(counting, name))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(dist, name, function)


def train(path: Path, way: Way) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The student's weights after an epoch, and the numbers that are printed."""
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(path / "runs", ignore_errors=True)
    dist.barrier()
    counts = Counts()
    if way.stops_at:
        job = make(path, way)
        step = job.step

        def step_and_stop(rows: np.ndarray) -> float:
            rate = step(rows)
            job.stop.number = 15 if job.state.step == way.stops_at else 0
            return rate

        job.step = step_and_stop
        with suppress(Interrupted):
            job.run()
            raise AssertionError("it was not stopped")
        job.stage.resources.close()
    job = make(path, way)
    with counted(counts, job):
        job.run()
    weights = job.student_weights()
    job.stage.resources.close()
    return weights, {"messages": counts.control / job.steps, "in_backward": counts.in_backward}


def make(path: Path, way: Way) -> Job:
    """The job of a student and its teacher."""
    teacher, student = (load_encoder(ModelSource(str(path / name))) for name in ("teacher", "student"))
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(1)  # of the projections
    configs = student.config, teacher.config
    model = Distillation(student, [HiddenStates(*configs), AttentionScores(*configs)])
    options = {"epochs": 1, "batch_size": BATCH, "learning_rate": 1e-3}
    micro_batch = BATCH // dist.get_world_size() // way.passes
    job = make_job(path, model, options, deepspeed=way.deepspeed, zero=way.zero, micro_batch=micro_batch)
    job.targets = FrozenTeacher(teacher, model.teacher_capture, torch.device("cpu"))
    return job


def rank(path: Path, ways: list[Way]) -> None:
    torch.set_num_threads(1)
    start_ranks()
    first: dict[str, torch.Tensor] = {}
    for way in ways:
        weights, numbers = train(path, way)
        first = first or weights
        apart = max((weights[name] - first[name]).abs().max().item() for name in first)
        if dist.get_rank() == 0:
            print(json.dumps({"apart": apart} | numbers), flush=True)
    dist.barrier()


def main(ranks: int, path: Path, ways: list[Way]) -> int:
    make_corpus(path / "corpus.txt", 20)
    make_encoder(path / "bert")
    make_encoder(path / "teacher", layers=2)
    make_encoder(path / "student", layers=1, seed=1)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    set_environment()
    children = []
    for number in range(ranks):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
            try:
                rank(path, ways)
            except BaseException as error:
                traceback.print_exception(error)
                leave(1)
            leave(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    given = [Way(**way) for way in json.loads(sys.argv[3])]
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), given))
