"""Trains a tiny student on several ranks, at ZeRO 0 to 2, in one pass and in two; prints how far the weights are apart.

    python -m tests.stages.training.many_ranks RANKS DIRECTORY

The ranks are forks of one process, which has imported what they need.
"""

import json
import os
import shutil
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.launch.worker import leave, set_environment, start_ranks
from stages.distillation.distillation import Distillation
from stages.distillation.losses import AttentionScores, HiddenStates
from stages.distillation.models import ModelSource, load_encoder
from stages.distillation.teachers import FrozenTeacher
from stages.training.job import Job
from tests.conftest import make_corpus, make_encoder
from tests.stages.training.test_job import make_job

BATCH = 16


def train(path: Path, zero: int, micro_batch: int) -> tuple[dict[str, torch.Tensor], float]:
    """The student's weights after an epoch, and how many messages of control each step took."""
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(path / "runs", ignore_errors=True)
    dist.barrier()
    teacher, student = (load_encoder(ModelSource(str(path / name))) for name in ("teacher", "student"))
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(1)  # of the projections
    configs = student.config, teacher.config
    model = Distillation(student, [HiddenStates(*configs), AttentionScores(*configs)])
    options = {"epochs": 1, "batch_size": BATCH, "learning_rate": 1e-3}
    job = make_job(path, model, options, zero=zero, micro_batch=micro_batch)
    job.targets = FrozenTeacher(teacher, model.teacher_capture, torch.device("cpu"))
    messages, plain = [], dist.all_reduce

    def counted(*arguments, **keywords):
        if keywords.get("group") is job.control_group is not None:
            messages.append(1)
        return plain(*arguments, **keywords)

    dist.all_reduce = counted
    try:
        Job.run(job)
    finally:
        dist.all_reduce = plain
    return job.student_weights(), len(messages) / job.steps


def rank(path: Path) -> None:
    torch.set_num_threads(1)
    start_ranks()
    expected = None
    for zero in (0, 1, 2):
        for passes in (1, 2):
            weights, messages = train(path, zero, BATCH // dist.get_world_size() // passes)
            expected = expected or weights
            apart = max((weights[name] - expected[name]).abs().max().item() for name in expected)
            if dist.get_rank() == 0:
                print(
                    json.dumps({"zero": zero, "passes": passes, "apart": apart, "messages": messages}),
                    flush=True,
                )
    dist.barrier()


def main(ranks: int, path: Path) -> int:
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
                rank(path)
            except BaseException as error:
                print(f"rank {number}: {error!r}", file=sys.stderr)
                leave(1)
            leave(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
