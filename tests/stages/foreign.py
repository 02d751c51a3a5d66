"""What the tests of foreign rows and steps share: a job of theirs, killed and resumed to the same weights."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

from stages.training.job import Interrupted, Job
from stages.training.options import Job as JobOptions
from stages.training.options import Training
from stages.training.stage import Stage

STEPS_BEFORE_THE_STOP = 5


class Table:
    """Rows of numbers, all of the same cost: what most of these tests train on."""

    def __init__(self, x_NF: Tensor, y_N: Tensor):
        self.x_NF, self.y_N, self.lengths = x_NF, y_N, np.ones(len(x_NF), np.int64)

    def __len__(self) -> int:
        return len(self.x_NF)

    def normalizers(self, indices) -> dict[str, int]:
        return {"rows": len(indices)}

    def collate(self, indices, weights) -> BatchEncoding:
        return BatchEncoding(
            {"x": self.x_NF[indices], "y": self.y_N[indices], "weight": torch.as_tensor(weights)}
        )


def make_stage(directory: Path, training: dict | None = None, **job) -> Stage:
    """A stage without inputs, in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    options = Training(**{"epochs": 3, "batch_size": 16, "learning_rate": 0.01} | (training or {}))
    settings = JobOptions(**{"precision": "fp32", "log_every": 1, "checkpoint_seconds": 1000} | job)
    given = {"training": asdict(options), "seed": 1}
    return Stage("foreign", "foreign", directory, given, {}, "", settings, torch.device("cpu"))


def assert_resumes(path: Path, make: Callable[[Path], Job]) -> Job:
    """Train through, and stopped after some steps and resumed; both end with the same model and score, bit by bit.

    Args:
        path: an empty directory.
        make: makes the job in the directory that it is given.

    Returns:
        The job that was trained through.
    """
    whole = make(path / "whole")
    with whole.stage.resources:
        whole.run()
    stopped = make(path / "stopped")
    take_step = stopped.step

    def step_and_stop(rows):
        if stopped.state.step == STEPS_BEFORE_THE_STOP - 1:
            stopped.stop.number = 15
        return take_step(rows)

    stopped.step = step_and_stop
    with pytest.raises(Interrupted), stopped.stage.resources:
        stopped.run()
    resumed = make(path / "stopped")
    with torch.no_grad():  # nothing may be left of how a model begins
        for tensor in resumed.model.state_dict().values():
            tensor.zero_()
    with resumed.stage.resources:
        state = resumed.run()
    assert state.step == whole.state.step > STEPS_BEFORE_THE_STOP
    assert state.best_score == whole.state.best_score
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    return whole
