import subprocess
import sys

import pytest
import torch

from checkpoints.errors import UserError
from stages.training.micro_batch import ran_out, rows_that_fit


def test_rows_are_halved_until_they_fit():
    tried = []

    def attempt(rows):
        tried.append(rows)
        if rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert rows_that_fit(32, attempt) == 4 and tried == [32, 16, 8, 4]
    assert rows_that_fit(3, attempt) == 3


def test_one_row_too_many_is_told_and_other_errors_are_not_taken_for_it():
    def full(rows):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def wrong(rows):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(UserError, match="max_length"):
        rows_that_fit(8, full)
    with pytest.raises(RuntimeError, match="shapes"):
        rows_that_fit(8, wrong)
    assert not ran_out(RuntimeError("shapes"))


def test_more_than_the_free_memory_is_an_error_and_not_a_kill():
    program = """
import psutil, torch
from stages.training import machine_limits as limits
from stages.training.micro_batch import errors_when_full, ran_out
with errors_when_full(torch.device("cpu"), 1):
    try:
        torch.ones(psutil.virtual_memory().total // 4)
    except RuntimeError as error:
        assert ran_out(error), error
        print("told")
limits.memory = lambda: (10**9, 2 * 10**8)  # as in a container
with errors_when_full(torch.device("cpu"), 1):
    try:
        torch.ones(75 * 10**6)
    except RuntimeError as error:
        assert ran_out(error), error
        print("told")
torch.ones(75 * 10**6)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == 2 * "told\n", result.stderr
