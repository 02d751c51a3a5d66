"""Many ranks, ZeRO stages and passes give the same weights, and agree with few messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_eight_ranks_zero_and_accumulation_give_the_same_weights(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.training.many_ranks", "8", tmp_path],
        cwd=Path(__file__).parents[3], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(line["zero"], line["passes"]) for line in found] == [(z, p) for z in (0, 1, 2) for p in (1, 2)]
    for line in found:
        assert line["apart"] < 1e-7 and line["messages"] <= 1, line
