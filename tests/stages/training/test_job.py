"""A job whose model takes too much memory, or whose loss is not finite, and one whose log is shown as curves."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from checkpoints import store
from checkpoints.errors import UserError
from pipeline.config.run_options import load
from pipeline.launch.launcher import RANK_VARIABLES
from pipeline.launch.worker import start_ranks
from stages.distillation.losses.base import LossTerm
from stages.distillation.models import ModelSource, load_tokenizer
from stages.training.cached_rows import corpus_rows
from stages.training.data_order import epoch_batches
from stages.training.job import Interrupted, Job
from stages.training.options import Job as JobOptions
from stages.training.options import Training
from stages.training.stage import Stage
from tests.conftest import make_corpus, make_encoder


class Hungry(nn.Module):
    """Takes `most` rows, and no more."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.student, self.seen = most, nn.Linear(1, 1), []

    def forward(self, batch, targets):
        self.seen.append(len(batch.rows))
        if len(batch.rows) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        answers = self.student(batch.rows.float()[:, None] / 100)
        return {"loss": LossTerm((answers.square().sum(-1) * batch.weight).sum(), "rows")}


class Fragile(nn.Module):
    """Breaks on the row `broken`: its loss, or its gradient alone, is not finite."""

    def __init__(self, broken: int, gradient_alone: bool = False):
        super().__init__()
        self.broken, self.gradient_alone = broken, gradient_alone
        self.student = nn.Linear(1, 3)
        with torch.no_grad():
            self.student.weight.copy_(torch.tensor([[0.3], [-0.5], [0.1]]))
            self.student.bias.zero_()

    def forward(self, batch, targets):
        answers = self.student(batch.rows.float()[:, None] / 100)
        losses = (answers - 1).square().sum(-1)
        zero = 0 * answers[batch.rows == self.broken, 0]
        broken = zero.sqrt() if self.gradient_alone else 1 / zero
        return {"loss": LossTerm((losses * batch.weight).sum() + broken.sum(), "rows")}


def make_job(
    path: Path, model: nn.Module, training: dict | None = None, evaluate=None, deepspeed=None, **job
) -> Job:
    """A job of a stage on a small corpus under `path`, where `make` has put it."""
    files = {"reader": "files", "version": 1, "files": {"corpus.txt": str(path / "corpus.txt")}}
    options = {
        "training": asdict(replace(Training(), **(training or {"epochs": 1, "batch_size": 24}))),
        "seed": 1,
    }
    settings = JobOptions(**{"precision": "fp32"} | job)
    directory = path / "runs" / "r" / "general"
    directory.mkdir(parents=True, exist_ok=True)
    inputs = {"corpus": {"name": "corpus", "identity": files}}
    stage = Stage(
        "general", "general", directory, options, inputs, "", settings, torch.device("cpu"), deepspeed or {}
    )
    rows = corpus_rows(stage, load_tokenizer(ModelSource(str(path / "bert"))), 16, 0)
    return Job(stage, model, rows, evaluate=evaluate)


@pytest.fixture
def make(tmp_path, world):
    """A job of a stage on a small corpus."""
    make_corpus(tmp_path / "corpus.txt", 30)
    make_encoder(tmp_path / "bert")

    def make(model: nn.Module, **job) -> Job:
        return make_job(tmp_path, model, **job)

    make.directory = tmp_path / "runs" / "r" / "general"
    return make


def test_out_of_memory_names_the_batch_and_what_to_lower(make):
    with pytest.raises(
        UserError, match=r"micro_batch: .* step 1, in 24 rows .*\(rows 0, .*a number below 24"
    ):
        make(Hungry(most=10)).run()


def test_micro_batch_auto_finds_what_fits_and_learns_the_same(make, capsys):
    torch.manual_seed(0)
    model, roomy = Hungry(most=10), Hungry(most=24)
    roomy.load_state_dict(model.state_dict())
    make(roomy).run()
    shutil.rmtree(make.directory)
    job = make(model, micro_batch="auto")
    assert job.micro_batches == 4 and "6 rows at once, of 24" in capsys.readouterr().out
    tried = len(model.seen)
    job.run()
    assert max(model.seen[tried:]) == 6
    torch.testing.assert_close(model.state_dict(), roomy.state_dict())
    again = make(Hungry(most=24), micro_batch="auto")
    assert again.micro_batches == 4  # what was found is kept with the stage


def test_steps_of_fp16_that_overflowed_are_told(make, capsys):
    job = make(Hungry(most=24), precision="fp16", log_every=1)
    scaler = job.engine.deepspeed.torch_autocast_z0_gradscaler
    step, job.step = job.step, lambda rows: (step(rows), scaler.update(scaler.get_scale() / 4))[0]
    job.run()
    assert (
        "fp16: gradients overflowed in 2 of the steps up to 1, which changed no weight"
        in capsys.readouterr().out
    )


def test_a_stopped_jobs_curves_hold_every_logged_line_once(make):
    torch.manual_seed(0)
    first = make(Hungry(most=24), monitor="csv", log_every=1)
    first.stop.number = signal.SIGTERM  # saves after its first step
    with pytest.raises(Interrupted):
        first.run()
    log, curves = make.directory / "metrics.jsonl", make.directory / "monitor"
    line = json.loads(log.read_text())
    first.log.write(line | {"step": 2, "loss": 9.0})  # of a step that is taken again
    job = make(Hungry(most=24), monitor="csv", log_every=1)
    job.run()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, job.steps + 1))
    for name in ("loss", "learning_rate", "tokens_per_second"):
        with open(curves / f"{name}.csv", newline="") as file:
            head, *rows = csv.reader(file)
        assert head == ["step", name]
        assert [(int(step), float(value)) for step, value in rows] == [(r["step"], r[name]) for r in lines]


def test_a_monitor_that_is_not_installed_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="job.monitor=wandb needs .* -m pip install wandb"):
        load("small", ["job.monitor=wandb"])
    assert load("small", ["job.monitor=csv"]).job.monitor == "csv"


BROKEN = 17
CONSTANT = {"schedule": "constant", "warmup": 0.0, "learning_rate": 0.03, "epochs": 3, "batch_size": 8}


def leave_out(rank: int, path: Path, port: int = 0, world: int = 1) -> None:
    """Train on this rank; keeps its own weights beside the stage's checkpoint."""
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port))  # fmt: skip
        start_ranks()
    model = Fragile(BROKEN)
    # one row at once: of all passes of a global batch a single one, on one rank, meets the broken row
    make_job(path, model, CONSTANT, micro_batch=1, skip_bad_batches=True, log_every=1).run()
    save_file(dict(model.state_dict()), path / f"rank-{rank}.safetensors")


def plain_reference(lengths: np.ndarray) -> tuple[nn.Module, torch.optim.AdamW, list[int]]:
    """A loop over whole global batches: a step of nothing where the batch holds the broken row."""
    model, skipped, step = Fragile(BROKEN), [], 0
    groups = [{"params": [model.student.weight], "weight_decay": 0.01},
              {"params": [model.student.bias], "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=0.03)
    for epoch in range(3):
        for rows in epoch_batches(lengths, 8, 1, epoch):
            step += 1
            broken = BROKEN in rows
            batch = SimpleNamespace(rows=torch.tensor(rows), weight=torch.ones(len(rows)))
            optimizer.zero_grad()
            (model(batch, None)["loss"].sum / len(rows)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if broken else parameter.grad
            for group in optimizer.param_groups:
                group["lr"] = 0.0 if broken else 0.03
            optimizer.step()
            skipped += [step] if broken else []
    return model, optimizer, skipped


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bad_row_in_one_pass_of_one_rank_leaves_the_whole_batch_out_on_all(make, tmp_path, capfd, ranks):
    rows = make(Fragile(BROKEN)).rows  # and so they are in the cache
    if ranks == 1:
        leave_out(0, tmp_path)
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        given, began = (tmp_path, port, ranks), time.monotonic()
        spawned = torch.multiprocessing.spawn(leave_out, given, nprocs=ranks, join=False)
        while not spawned.join(timeout=5):
            if (
                time.monotonic() - began > 120
            ):  # ranks that do not agree wait for each other, whatever the signal
                for process in spawned.processes:
                    process.kill()
    expected, optimizer, skipped = plain_reference(rows.lengths)
    for rank in range(ranks):
        torch.testing.assert_close(
            load_file(tmp_path / f"rank-{rank}.safetensors"), dict(expected.state_dict())
        )
    checkpoint = sorted((make.directory / "checkpoints").glob("step-*"))[-1]
    steps = 3 * len(epoch_batches(rows.lengths, 8, 1, 0))
    saved = json.loads((checkpoint / "state.json").read_text())
    assert saved["optimizer_steps"] == steps == saved["state"]["step"]
    moments = {name: optimizer.state[p]["exp_avg"] for name, p in expected.named_parameters()}
    torch.testing.assert_close(load_file(checkpoint / "exp_avg.safetensors"), moments)
    told = [line for line in capfd.readouterr().out.splitlines() if "left out" in line]
    assert [int(line.split("step ")[1].split()[0]) for line in told] == skipped and len(told) == 3
    assert all(f" {BROKEN}," in line or line.endswith(f" {BROKEN}") for line in told)
    lines = [json.loads(line) for line in (make.directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert [line["step"] for line in lines if "loss" not in line] == skipped


def test_weights_that_a_gradient_broke_are_never_saved_though_the_loss_was_finite(make, tmp_path):
    job = make_job(tmp_path, Fragile(BROKEN, gradient_alone=True), CONSTANT, checkpoint_seconds=0)
    with pytest.raises(UserError, match="student.* is no longer finite"):
        job.run()
    first = next(i for i, rows in enumerate(epoch_batches(job.rows.lengths, 8, 1, 0)) if BROKEN in rows)
    newest = sorted((make.directory / "checkpoints").glob("step-*"))[-1]
    assert newest.name == f"step-{first:08d}"
    assert load_file(newest / "weights.safetensors")["student.bias"].isfinite().all()


class Wide(nn.Module):
    """Really takes some 30 MB for each row."""

    def __init__(self):
        super().__init__()
        self.student = nn.Linear(1, 1)
        nn.init.constant_(self.student.weight, 0.5)
        nn.init.zeros_(self.student.bias)

    def forward(self, batch, targets):
        answers = self.student(batch.rows.float()[:, None] / 100)
        wide = (answers * torch.ones(2_500_000)).square().mean(-1)
        return {"loss": LossTerm((wide * batch.weight).sum(), "rows")}


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import psutil
from checkpoints.errors import UserError
from pipeline.launch.worker import start_ranks
from safetensors.torch import save_file
from tests.stages.training.test_job import Wide, make_job
path = Path(sys.argv[1])
start_ranks()
most = psutil.Process().memory_info().data + 500 * 10**6
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
try:
    make_job(path, Wide()).run()
except UserError as error:
    print("error:", error)
model = Wide()
job = make_job(path, model, micro_batch="auto")
job.run()
save_file(dict(model.state_dict()), path / "weights.safetensors")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_where_memory_really_runs_out_the_batch_is_named_and_auto_fits_and_learns_the_same(make, tmp_path):
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path)]
    alone = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], env=alone)
    assert done.returncode == 0 and done.stdout.count("error:") == 1, done.stdout + done.stderr
    assert re.search(
        r"error: micro_batch: out of memory at step 1, in 24 rows .*a number below 24", done.stdout
    )
    assert re.search(r"micro_batch=auto: (12|6|3|2|1) rows at once, of 24", done.stdout), done.stdout
    shutil.rmtree(make.directory)
    roomy = Wide()
    make(roomy, micro_batch=2).run()
    torch.testing.assert_close(load_file(tmp_path / "weights.safetensors"), dict(roomy.state_dict()))


SOUND = -1


def test_the_disk_is_looked_at_before_the_stage_and_before_each_save(make, tmp_path, monkeypatch):
    free = [10**9]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free.pop(0)))
    free[:] = [1]
    with pytest.raises(UserError, match="general keeps checkpoints; it needs .* are free: free "):
        make_job(tmp_path, Fragile(SOUND), CONSTANT).run()
    free[:] = [10**9, 10**9, 10**9, 1]  # at the start, for two saves, and then too little
    with pytest.raises(UserError, match="checkpoint of step 3 needs .* are free: free "):
        make_job(tmp_path, Fragile(SOUND), CONSTANT, checkpoint_seconds=0).run()
    kept = sorted((make.directory / "checkpoints").glob("*"))
    assert [path.name for path in kept] == ["step-00000001", "step-00000002"]
    store.verify(kept[-1])


def test_the_first_checkpoint_comes_soon_and_the_next_at_intervals_that_double(make, tmp_path, monkeypatch):
    """Seconds are steps here: the loop looks at the clock once in each, and once more after a save."""
    job = make_job(tmp_path, Fragile(SOUND), CONSTANT | {"epochs": 60}, checkpoint_seconds=50)
    saved, clock = [], itertools.count()
    monkeypatch.setattr("stages.training.job.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(job, "_save", lambda: saved.append(job.state.step))
    job.run()
    assert np.diff([0, *saved]).tolist()[:4] == [15, 30, 50, 50]


def test_the_newest_and_the_best_are_kept_and_the_best_is_what_comes_out(make, tmp_path):
    model, after, scores = Fragile(SOUND), [], [0.2, 0.9, 0.3, 0.5]

    def evaluate() -> float:
        after.append({name: tensor.clone() for name, tensor in model.student.state_dict().items()})
        return scores[len(after) - 1]

    training = CONSTANT | {"epochs": 4}
    job = make_job(tmp_path, model, training, evaluate, checkpoint_seconds=0, keep=2)
    state = job.run()
    best = 2 * job.batches_per_epoch
    assert (state.best_step, state.best_score) == (best, 0.9)
    torch.testing.assert_close(dict(model.student.state_dict()), after[1], rtol=0, atol=0)
    assert (make.directory / "best" / store.step_name(best)).is_dir()
    newest = [store.step_name(step) for step in (job.steps - 1, job.steps)]
    assert sorted(path.name for path in (make.directory / "checkpoints").iterdir()) == newest
