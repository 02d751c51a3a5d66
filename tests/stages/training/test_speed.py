"""Estimates of time grow with the work and shrink with the ranks that do it at once."""

import time
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig

from stages.training import speed
from stages.training.speed import estimated_seconds, products_per_second, step_seconds

TEACHER, STUDENT = (BertConfig(hidden_size=w, intermediate_size=4 * w) for w in (64, 32))


def stage(device="cpu", nproc=1):
    job = SimpleNamespace(nproc=nproc)
    return SimpleNamespace(device=torch.device(device), precision=torch.float32, job=job)


@pytest.fixture
def rates(monkeypatch):
    """A machine that multiplies the wide at 2 GFLOP/s and the narrow at 1."""
    monkeypatch.setattr(speed, "products_per_second", lambda width, *_: 2e9 if width == 64 else 1e9)
    monkeypatch.setattr(speed, "cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


def test_each_model_has_its_own_speed(rates):
    assert estimated_seconds(stage(), TEACHER, 4e9) == pytest.approx(2 * speed.OTHER_WORK)
    assert estimated_seconds(stage(), STUDENT, 4e9) == pytest.approx(4 * speed.OTHER_WORK)


def test_ranks_divide_gpus_and_their_own_cores_but_not_shared_ones(rates, monkeypatch):
    one = estimated_seconds(stage(), TEACHER, 4e9)
    assert estimated_seconds(stage(nproc=2), TEACHER, 4e9) == one
    assert estimated_seconds(stage("cuda", nproc=2), TEACHER, 4e9) == one / 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # as a rank of torchrun
    assert estimated_seconds(stage(nproc=2), TEACHER, 4e9) == one / 2


def test_short_work_is_measured_shortly_and_long_work_well(monkeypatch):
    measured = []

    def rate(width, inner, precision, device, seconds):
        measured.append(seconds)
        return 1e9 if seconds == speed.FIRST else 2e9

    monkeypatch.setattr(speed, "products_per_second", rate)
    assert estimated_seconds(stage(), TEACHER, 1e9) == speed.OTHER_WORK and measured == [speed.FIRST]
    assert estimated_seconds(stage(), TEACHER, 1e11) == pytest.approx(50 * speed.OTHER_WORK)
    assert measured == [speed.FIRST, speed.FIRST, speed.SECONDS]


def test_a_product_is_counted_and_timed():
    size = (64, 256, torch.float32, torch.device("cpu"))
    assert 1e7 < products_per_second(*size, seconds=0.01) < 1e13


def test_a_step_is_timed_without_the_pass_that_warms_up():
    class Model(torch.nn.Module):
        passes = 0

        def forward(self, seconds):
            self.passes += 1
            time.sleep(1 if self.passes == 1 else float(seconds))

    model = Model()
    assert 0.03 <= step_seconds(model, {"seconds": torch.tensor(0.01)}) < 0.5 and model.passes == 2
