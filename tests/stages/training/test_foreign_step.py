"""Steps that are not one loss, one backward pass and one AdamW. All that they need is in this file."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import BatchEncoding

from checkpoints.errors import UserError
from pipeline.launch.worker import start_ranks
from stages.distillation.gather import gather_rows
from stages.distillation.losses.base import LossTerm
from stages.training.job import Job
from stages.training.step import Pass, Step
from tests.stages.foreign import Table, assert_resumes, make_stage

PLAIN = {"clip": 0.0, "schedule": "constant", "warmup": 0.0}
"""Options under which the same loop by hand is short."""


def table(rows: int = 96) -> Table:
    """Six numbers a row; the label is the sign of a sum of two of them."""
    x_NF = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))
    return Table(x_NF, (x_NF[:, 0] + x_NF[:, 1] > 0).long())


def batches(job: Job) -> Iterator[BatchEncoding]:
    """All batches of a job, in order."""
    for epoch in range(job.options.epochs):
        for indices in job.batches_of(epoch):
            yield job.rows.collate(indices, np.ones(len(indices), np.float32))


def row_sum(losses_B: Tensor, batch: BatchEncoding, tag: str = LossTerm.tag) -> LossTerm:
    return LossTerm((losses_B * batch["weight"]).sum(), "rows", tag=tag)


class Pruned(nn.Module):
    """Two passes: of the labels, whose gradients score the weights, and of a penalty. Low scores are pruned."""

    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        self.register_buffer("scores", torch.zeros(8, 6))

    def forward(self, batch: BatchEncoding, targets: None) -> dict[str, LossTerm]:
        labels = functional.cross_entropy(self.student(batch["x"]), batch["y"], reduction="none")
        penalty = self.student[0].weight.square().sum() * batch["weight"]
        return {"labels": row_sum(labels, batch, "labels"), "penalty": row_sum(penalty, batch, "penalty")}

    def score(self, gradients: dict[str, Tensor]) -> None:
        self.scores += (gradients["student.0.weight"] * self.student[0].weight.detach()).abs()

    def prune(self) -> None:
        with torch.no_grad():
            self.student[0].weight[self.scores < self.scores.median()] = 0


def test_two_passes_with_a_hook_between_them_and_a_hook_after_the_step(tmp_path, world):
    rows = table()

    def make(directory):
        torch.manual_seed(0)
        model = Pruned()
        step = Step((Pass("labels", hook=model.score), Pass("penalty")), after_step=model.prune)
        return Job(make_stage(directory, PLAIN), model, rows, step=step)

    job = assert_resumes(tmp_path, make)
    assert (job.model.student[0].weight == 0).sum() >= 23

    torch.manual_seed(0)  # the same by hand
    plain = Pruned()
    matrices, vectors = ([p for p in plain.parameters() if p.ndim == ndim] for ndim in (2, 1))
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=0.01)
    for batch in batches(job):
        terms = plain(batch, None)
        labels, penalty = (terms[name].sum / len(batch["y"]) for name in ("labels", "penalty"))
        (alone,) = torch.autograd.grad(labels, plain.student[0].weight, retain_graph=True)
        plain.score({"student.0.weight": alone})
        optimizer.zero_grad()
        (labels + penalty).backward()
        optimizer.step()
        plain.prune()
    torch.testing.assert_close(job.model.state_dict(), plain.state_dict())


class Adversaries(nn.Module):
    """A discriminator tells the student's features from the teacher's; the student wants to be taken for the teacher."""

    def __init__(self):
        super().__init__()
        self.student, self.discriminator = nn.Linear(6, 4), nn.Linear(4, 1)

    def forward(self, batch: BatchEncoding, targets: Tensor) -> dict[str, LossTerm]:
        taken = self.discriminator(self.student(batch["x"]))[:, 0]
        real = self.discriminator(targets)[:, 0]
        judge = functional.softplus(taken) + functional.softplus(-real)
        return {"judge": row_sum(judge, batch, "judge"), "fool": row_sum(functional.softplus(-taken), batch)}


def adversaries_step(model: Adversaries) -> Step:
    def optimizers(parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        judge = list(model.discriminator.parameters())
        student = [p for p in parameters.values() if all(p is not q for q in judge)]
        return [
            torch.optim.AdamW(student, lr=0.02, weight_decay=0.0),
            torch.optim.SGD(judge, lr=0.3, momentum=0.5),
        ]

    return Step((Pass("judge", trains=model.discriminator.parameters()), Pass()), optimizers=optimizers)


def test_a_discriminator_against_the_student_with_an_optimiser_of_its_own(tmp_path, world):
    rows = table()
    teacher_F4 = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))

    def targets(batch: BatchEncoding) -> Tensor:
        return batch["x"] @ teacher_F4

    def make(directory):
        torch.manual_seed(0)
        model = Adversaries()
        return Job(make_stage(directory, PLAIN), model, rows, targets, step=adversaries_step(model))

    job = assert_resumes(tmp_path, make)

    torch.manual_seed(0)  # the same by hand: both gradients at the same weights, each for its own player
    plain = Adversaries()
    ours = torch.optim.AdamW(plain.student.parameters(), lr=0.02, weight_decay=0.0)
    judge = torch.optim.SGD(plain.discriminator.parameters(), lr=0.3, momentum=0.5)
    for batch in batches(job):
        terms = plain(batch, targets(batch))
        pairs = (("judge", plain.discriminator), ("fool", plain.student))
        gradients = [
            torch.autograd.grad(
                terms[name].sum / len(batch["y"]), list(player.parameters()), retain_graph=True
            )
            for name, player in pairs
        ]
        for (_, player), found in zip(pairs, gradients, strict=True):
            for parameter, gradient in zip(player.parameters(), found, strict=True):
                parameter.grad = gradient
        ours.step()
        judge.step()
    torch.testing.assert_close(job.model.state_dict(), plain.state_dict())


class Sparse(nn.Module):
    """A table of n-gram embeddings with sparse gradients under a dense head."""

    def __init__(self):
        super().__init__()
        self.student = nn.ModuleDict({"table": nn.Embedding(500, 4, sparse=True), "head": nn.Linear(4, 2)})

    def forward(self, batch: BatchEncoding, targets: None) -> dict[str, LossTerm]:
        ids_BF = (batch["x"] * 20).long() % 500
        logits_BC = self.student["head"](self.student["table"](ids_BF).mean(1))
        return {"labels": row_sum(functional.cross_entropy(logits_BC, batch["y"], reduction="none"), batch)}


def by_group(parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    tables = [p for name, p in parameters.items() if "table" in name]
    dense = [
        {
            "params": [p for name, p in parameters.items() if name.endswith("head.weight")],
            "weight_decay": 0.1,
        },
        {"params": [p for name, p in parameters.items() if name.endswith("head.bias")], "lr": 0.002},
    ]
    return [torch.optim.AdamW(dense, lr=0.01, weight_decay=0.0), torch.optim.SparseAdam(tables, lr=0.1)]


def test_adamw_and_sparse_adam_by_parameter_group(tmp_path, world):
    rows = table()

    def make(directory, optimizers=by_group):
        torch.manual_seed(0)
        return Job(make_stage(directory, PLAIN), Sparse(), rows, step=Step(optimizers=optimizers))

    job = assert_resumes(tmp_path, make)
    torch.manual_seed(0)
    plain = Sparse()
    untouched = plain.student["table"].weight.detach().clone()
    optimizers = by_group(dict(plain.named_parameters()))
    for batch in batches(job):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (plain(batch, None)["labels"].sum / len(batch["y"])).backward()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(job.model.state_dict(), plain.state_dict())
    same_N = (job.model.student["table"].weight == untouched).all(1)
    assert (
        same_N.any() and not same_N.all()
    )  # Adam on all rows would have moved those that were not read, too
    with pytest.raises(UserError, match=r"student\.table\.weight and 0 more parameters are in no optimiser"):
        make(tmp_path / "left", lambda parameters: by_group(parameters)[:1])


def test_sparse_gradients_are_clipped_together_with_the_others(tmp_path, world):
    rows, found = table(), []

    def descent(parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(list(parameters.values()), lr=0.5)]

    for sparse in (True, False):
        torch.manual_seed(0)
        model = Sparse()
        model.student["table"].sparse = sparse
        stage = make_stage(tmp_path / str(sparse), PLAIN | {"clip": 0.05})
        Job(stage, model, rows, step=Step(optimizers=descent)).run()
        found.append(model.state_dict())
    torch.testing.assert_close(*found)


class Together(nn.Module):
    """A teacher that learns the labels while the student learns the teacher; the student alone is kept."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        self.student = nn.Linear(6, 2)

    def forward(self, batch: BatchEncoding, targets: None) -> dict[str, LossTerm]:
        theirs_BC, mine_BC = self.teacher(batch["x"]), self.student(batch["x"])
        gold = functional.cross_entropy(theirs_BC, batch["y"], reduction="none")
        soft = functional.cross_entropy(mine_BC, theirs_BC.detach().softmax(-1), reduction="none")
        return {"gold": row_sum(gold, batch), "soft": row_sum(soft, batch)}


def test_a_teacher_that_trains_along_is_resumed_and_left_behind(tmp_path, world):
    rows = table()

    def right(model: nn.Module) -> float:
        return (model(rows.x_NF).argmax(-1) == rows.y_N).float().mean().item()

    def make(directory):
        torch.manual_seed(0)
        model = Together()
        return Job(make_stage(directory, {"epochs": 8, "learning_rate": 0.03}), model, rows,
                   evaluate=lambda: right(model.student))  # fmt: skip

    torch.manual_seed(0)
    before = Together().teacher.state_dict()
    job = assert_resumes(tmp_path, make)
    assert right(job.model.teacher) > 0.9 and right(job.model.student) > 0.8
    assert not any(torch.equal(before[name], p) for name, p in job.model.teacher.state_dict().items())
    assert sorted(job.student_weights()) == ["bias", "weight"]


@pytest.mark.parametrize(
    "job, words",
    [
        ({"zero": 1}, "^zero: a step .* ZeRO stage 1 .* set it to 0$"),
        ({"micro_batch": 4}, "^micro_batch: 4 rows at once split the batch into 4 parts.* set it to 0$"),
        ({"precision": "fp16"}, "^precision: fp16 .* take bf16 or fp32$"),
        ({"nproc": 2}, "^nproc: .* runs on 1 rank, not on 2; set it to 1$"),
    ],
    ids=["zero", "accumulation", "fp16", "ranks"],
)
def test_what_does_not_combine_is_refused_when_the_job_is_made(tmp_path, world, monkeypatch, job, words):
    ranks, model = job.get("nproc", 1), Adversaries()
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: ranks)
    with pytest.raises(UserError, match=words):
        Job(make_stage(tmp_path, **job), model, table(), step=adversaries_step(model))


QUEUE = 20


class Contrastive(nn.Module):
    """Each row's student vector is to be told from those of all other rows, and from teacher vectors of the past."""

    whole_batch = True

    def __init__(self):
        super().__init__()
        self.student = nn.Linear(6, 4)
        self.register_buffer("queue_QW", torch.zeros(QUEUE, 4))

    def forward(self, batch: BatchEncoding, targets: Tensor) -> dict[str, LossTerm]:
        counted_B = batch["weight"] > 0
        theirs_NW, own_B = gather_rows(targets[counted_B])
        mine_BW = self.student(batch["x"])[counted_B]
        mine_NW, _ = gather_rows(mine_BW)
        among_teachers = mine_BW @ torch.cat([theirs_NW, self.queue_QW]).T
        among_students = mine_BW @ mine_NW.T
        losses = functional.cross_entropy(among_teachers, own_B, reduction="sum")
        losses = losses + functional.cross_entropy(among_students, own_B, reduction="sum")
        self.queue_QW.copy_(torch.cat([self.queue_QW, theirs_NW])[-QUEUE:])
        return {"contrastive": LossTerm(losses, "rows")}


def contrastive_job(directory: Path) -> Job:
    """Batches of 15 rows: two ranks have unequal parts."""
    torch.manual_seed(0)
    teacher_FW = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    stage = make_stage(directory, {"batch_size": 15})
    return Job(stage, Contrastive(), table(91), lambda batch: batch["x"] @ teacher_FW)


def sparse_job(directory: Path) -> Job:
    torch.manual_seed(0)
    return Job(make_stage(directory, {"batch_size": 15}), Sparse(), table(91), step=Step(optimizers=by_group))


def train_on_rank(rank: int, world: int, port: int, path: Path) -> None:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    start_ranks()
    for make in (contrastive_job, sparse_job):
        job = make(path / "two" / make.__name__)
        job.run()
        save_file(job.model.state_dict(), path / f"{make.__name__}-{rank}.safetensors")


@pytest.mark.slow
def test_a_loss_over_the_whole_batch_and_sparse_gradients_are_the_same_on_one_rank_and_two(tmp_path, world):
    jobs = [assert_resumes(tmp_path / make.__name__, make) for make in (contrastive_job, sparse_job)]
    assert jobs[0].model.queue_QW.abs().sum() > 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train_on_rank, (2, port, tmp_path), nprocs=2)
    for job, name in zip(jobs, ("contrastive_job", "sparse_job"), strict=True):
        for rank in range(2):
            found = load_file(tmp_path / f"{name}-{rank}.safetensors")
            torch.testing.assert_close(found, dict(job.model.state_dict()), rtol=1e-4, atol=1e-5)


def test_a_loss_over_the_whole_batch_refuses_accumulation(tmp_path, world):
    with pytest.raises(
        UserError, match="^micro_batch: 8 rows at once split the batch into 2 parts.* set it to 0$"
    ):
        Job(make_stage(tmp_path, micro_batch=8), Contrastive(), table())
    assert Job(make_stage(tmp_path, micro_batch="auto"), Contrastive(), table()).micro_batches == 1
