"""Learning rates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import get_linear_schedule_with_warmup

from stages.training.log import DIVERGED_STEPS, Log, Sums
from stages.training.optimizers import scheduled
from stages.training.options import Training


@given(st.integers(1, 400), st.floats(0, 0.99), st.sampled_from(["linear", "constant"]))
def test_the_peak_is_reached_whatever_the_number_of_steps(steps, warmup, schedule):
    options = Training(warmup=warmup, schedule=schedule)
    rates = [scheduled(0.5, options, step, steps) for step in range(1, steps + 1)]
    assert max(rates) == 0.5 and min(rates) > 0
    top = rates.index(0.5)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("steps, warmup, warm", [(35, 0.1, 4), (30, 0.1, 3), (7, 0.5, 4), (10, 0.0, 0)])
def test_warm_up_takes_as_many_steps_as_in_transformers(steps, warmup, warm):
    stock = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    after = get_linear_schedule_with_warmup(stock, warm, steps)
    for step in range(1, warm + 1):
        stock.step()
        after.step()
        assert scheduled(0.5, Training(warmup=warmup), step, steps) == pytest.approx(
            stock.param_groups[0]["lr"]
        )


@pytest.mark.parametrize("first, later, diverges", [(0.0, 1e-6, False), (-1e-7, 1e-5, False), (0.0, 1.1, True),
                                                    (0.003, 0.9, False), (1.0, 11.0, True), (1.0, 9.0, False)])  # fmt: skip
def test_a_small_first_loss_is_no_divergence(tmp_path, monkeypatch, first, later, diverges):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: None)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    log = Log(tmp_path / "metrics.jsonl", Sums())
    log._recent = [
        (n, np.arange(2), torch.tensor(first if n == 0 else later)) for n in range(DIVERGED_STEPS + 1)
    ]
    if diverges:
        with pytest.raises(ValueError, match="more than 10 times"):
            log._refuse_bad_losses()
    else:
        log._refuse_bad_losses()
