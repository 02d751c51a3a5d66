"""What a job compiles, when, and that it then computes the same. torch's compiler makes C++ of it here, for a GPU Triton."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from checkpoints import store
from checkpoints.errors import UserError
from stages.distillation.losses.base import LossTerm
from stages.training.compiled import STEPS_A_SHAPE, compile_model, usual_shapes
from stages.training.job import Job
from stages.training.step import Step
from tests.stages.foreign import Table, assert_resumes, make_stage


class Student(nn.Module):
    """Gives its logits, and the same with dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, x):
        logits = self.layers(x)
        return logits, functional.dropout(logits, 0.5)


class Noisy(nn.Module):
    """Learns labels without dropout, and something of no use with it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.student = Student()

    def compile(self, **settings):
        self.student.compile(**settings)

    def forward(self, batch, targets):
        logits, noisy = self.student(batch["x"])
        losses = {
            "labels": functional.cross_entropy(logits, batch["y"], reduction="none"),
            "noise": noisy.square().mean(-1),
        }
        return {name: LossTerm((loss * batch["weight"]).sum(), "rows") for name, loss in losses.items()}


@pytest.mark.slow
@pytest.mark.skipif(
    " " in torch.__file__ or not shutil.which("g++"),
    reason="torch compiles by g++, and splits the path of its own libraries at a space",
)
def test_a_compiled_job_computes_the_same_and_resumes_bit_for_bit(tmp_path, world):
    x_NF = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    rows = Table(x_NF, (x_NF[:, 0] > 0).long())

    def make(compile, directory):
        return Job(make_stage(directory, compile=compile, precision="bf16"), Noisy(), rows)

    assert_resumes(tmp_path, partial(make, "on"))
    plain = make("off", tmp_path / "plain")
    with plain.stage.resources:
        plain.run()
    first = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["labels"]
        for name in ("whole", "plain")
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-2)
    job = make("on", tmp_path / "steps")
    with job.stage.resources, torch.compiler.set_stance("fail_on_recompile"):
        job.step(np.arange(16))  # finds all compiled
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            job.step(np.arange(11))


class StandIn(nn.Module):
    """Compiles to itself, or to an error."""

    def __init__(self, error):
        super().__init__()
        self.linear, self.error = nn.Linear(3, 2), error

    def forward(self, x):
        return self.linear(x)

    def compile(self, **settings):
        def backend(graph, inputs):
            if self.error:
                raise RuntimeError(self.error)
            return graph.forward

        super().compile(backend=backend)


@pytest.fixture
def attempt_on(tmp_path, capsys):
    """Compiles a model for a stage, on what passes for a GPU or on a CPU, and tells what was tried, kept and said."""

    def run(error=None, device="cuda", steps=10**6, lengths=(16,) * 64, obstacle="", compile="auto"):
        stage = replace(make_stage(tmp_path / "s", compile=compile), device=torch.device(device))
        model, lengths, tried = StandIn(error), np.array(lengths), []

        def attempt(rows):
            tried.append(rows)
            model(torch.zeros(len(rows), 3))

        batches = iter(np.split(np.arange(len(lengths)), len(lengths) // 4))
        compile_model(stage, model, batches, lengths, steps, obstacle, attempt)
        stage.resources.close()
        kept = store.read_json(tmp_path / "s" / "stage.json").get("job", {}).get("compile")
        return tried, kept, capsys.readouterr().out

    return run


def test_auto_compiles_long_stages_of_few_shapes_on_a_gpu_and_keeps_what_it_came_to(attempt_on):
    lengths = 8 * np.repeat(np.arange(1, 17), 4)  # 16 batches, each of a width of its own
    assert attempt_on(device="cpu") == ([], None, "")
    assert attempt_on(steps=STEPS_A_SHAPE - 1)[1:] == ("off", "")
    assert attempt_on(lengths=lengths)[:2] == ([], "off")
    assert attempt_on(obstacle="it varies")[:2] == ([], "off")
    tried, kept, said = attempt_on(steps=STEPS_A_SHAPE)
    assert len(tried) == 2 and kept == "on" and "for 1 shape(s), those of 100% of the batches" in said


def test_on_compiles_what_it_can_and_says_what_it_cannot(attempt_on):
    tried, _, said = attempt_on(steps=3, device="cpu", compile="on")
    assert len(tried) == 2 and "compiled in" in said
    tried, _, said = attempt_on(obstacle="it varies", compile="on")
    assert not tried and "not compiled: it varies" in said
    assert attempt_on(compile="off")[0] == []


def test_where_compiling_fails_auto_goes_on_without_and_on_is_one_line(attempt_on):
    broken = "no compiler\nand a second line"
    _, kept, said = attempt_on(broken)
    assert kept == "off" and said.count("\n") == 2 and "no compiler" in said
    with pytest.raises(
        UserError, match=r"compile: on \(given, or decided .* foreign could not be compiled .*; give off"
    ):
        attempt_on(broken, compile="on")


def test_a_micro_batch_too_large_for_memory_is_one_line(tmp_path):
    def attempt(rows):
        raise MemoryError

    stage, lengths = make_stage(tmp_path, compile="on"), np.full(8, 16)
    with pytest.raises(UserError, match="micro_batch: out of memory at step 1, in 4 rows of up to 16 tokens"):
        compile_model(stage, StandIn(None), iter([np.arange(4)]), lengths, 2, "", attempt)


def test_a_loss_over_the_whole_batch_is_not_compiled_on_several_ranks(tmp_path, world):
    """Its ranks may have different shapes to try, and would wait for each other."""
    rows = Table(torch.randn(32, 6), torch.zeros(32, dtype=torch.long))
    job = Job(make_stage(tmp_path, compile="off"), Noisy(), rows)
    job.model.whole_batch = True
    with job.stage.resources:
        assert job._why_not_compiled(Step().kind(job.model)) == ""
        job.world = 2
        assert "waits for the other ranks" in job._why_not_compiled(Step().kind(job.model))
        job.world = 1


def test_the_most_frequent_shapes_come_first():
    lengths = np.array([8, 8, 7, 8, 16, 16, 8, 8, 5, 6, 24, 24])
    batches = [np.array(rows) for rows in ([0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [0, 6])]
    found, part = usual_shapes(batches, lengths, 8)
    assert [list(rows) for rows in found] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [10, 11],
    ]  # whole, padded, and two of 1 batch
    assert part == 1
    assert usual_shapes([*batches, np.array([9])], lengths, 8)[1] == 7 / 8
