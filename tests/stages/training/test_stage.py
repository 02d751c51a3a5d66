"""What a stage says of itself before it works."""

from pathlib import Path

import pytest
import torch

from stages.training import stage as module
from stages.training.options import Job
from stages.training.stage import Stage


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("native", [True, False])
def test_a_precision_that_the_device_emulates_is_warned_of(precision, native, monkeypatch, capsys):
    monkeypatch.setattr(module, "bf16_pays", lambda device: native)
    job = Job(precision=precision)
    Stage("general", "general", Path(), {}, {}, "", job, torch.device("cpu")).warn_if_precision_is_emulated()
    said = capsys.readouterr().out
    assert bool(said) == (precision != "fp32" and not native)
    assert not said or f"no {precision} products" in said and "fp32" in said
