"""A job whose model takes too much memory, and one whose log is shown as curves."""

import csv
import json
import shutil
import signal
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from checkpoints.errors import UserError
from pipeline.options import Job as JobOptions
from pipeline.options import Training, load
from stages.distillation.models import ModelSource, load_tokenizer
from stages.distillation.objectives import Term
from stages.job import Interrupted, Job
from stages.rows import corpus_rows
from stages.stage import Stage
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
        return {"loss": Term((answers.square().sum(-1) * batch.weight).sum(), "rows")}


@pytest.fixture
def make(tmp_path, world):
    """A job of a stage on a small corpus."""
    path = make_corpus(tmp_path / "corpus.txt", 30)
    files = {"reader": "files", "version": 1, "files": {"corpus.txt": str(path)}}
    options = {"training": asdict(replace(Training(), epochs=1, batch_size=24)), "seed": 1}
    tokenizer = load_tokenizer(ModelSource(str(make_encoder(tmp_path / "bert"))))

    directory = tmp_path / "runs" / "r" / "general"

    def make(model: nn.Module, **job) -> Job:
        settings = SimpleNamespace(**asdict(JobOptions()) | {"precision": "fp32"} | job)
        directory.mkdir(parents=True, exist_ok=True)
        inputs = {"corpus": {"name": "corpus", "identity": files}}
        stage = Stage("general", "general", directory, options, inputs, "", settings, torch.device("cpu"))
        return Job(stage, model, corpus_rows(stage, tokenizer, 16, 0))

    make.directory = directory
    return make


def test_out_of_memory_names_the_batch_and_what_to_lower(make):
    with pytest.raises(UserError, match=r"step 1, in 24 rows .*\(rows 0, .*micro_batch a number below 24"):
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


def test_a_stopped_jobs_curves_hold_every_logged_line_once(make):
    torch.manual_seed(0)
    first = make(Hungry(most=24), monitor="csv", log_every=1)
    first.stop = signal.SIGTERM  # saves after its first step
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
