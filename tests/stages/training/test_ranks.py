"""Many ranks, ZeRO stages, passes and details of DeepSpeed give the same weights, and agree with few messages."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SMALL = {"reduce_bucket_size": 300, "allgather_bucket_size": 300}
OFFLOADED = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}


def trained(path: Path, ranks: int, ways: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What `many_ranks` prints of each way of training."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.training.many_ranks", str(ranks), path, json.dumps(ways)],
        cwd=Path(__file__).parents[3], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(ways), done.stdout
    return found


@pytest.mark.slow
def test_eight_ranks_zero_and_accumulation_give_the_same_weights(tmp_path):
    ways = [{"zero": zero, "passes": passes} for zero in (0, 1, 2) for passes in (1, 2)]
    for way, found in zip(ways, trained(tmp_path, 8, ways), strict=True):
        assert found["apart"] < 1e-7 and found["messages"] <= 1, (way, found)


@pytest.mark.slow
def test_details_of_deepspeed_change_how_gradients_travel_and_not_the_weights(tmp_path):
    small = {"reduce_bucket_size": 300, "allgather_bucket_size": 300}
    offloaded = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
    weights = {"offload_param": {"device": "cpu", "pin_memory": False}, "sub_group_size": 200}

    def way(zero: int, stops_at: int = 0, **details: Any) -> dict[str, Any]:
        return {"zero": zero, "passes": 2, "stops_at": stops_at, "deepspeed": {"zero_optimization": details}}

    resumed, plain, *others = trained(
        tmp_path,
        2,
        [
            way(2, **offloaded),
            way(2, stops_at=1, **offloaded),
            {"zero": 0, "passes": 2},
            way(1, overlap_comm=True, **small),
            way(2, overlap_comm=True, **small),
            way(3, stops_at=1, stage3_param_persistence_threshold=0, **offloaded, **weights),
            {"zero": 0, "passes": 2, "deepspeed": {"communication_data_type": "bf16"}},
        ],
    )[1:]
    assert resumed["apart"] == 0
    in_bfloat16 = others.pop()
    assert all(found["apart"] < 1e-7 for found in (plain, *others)), others
    assert plain["in_backward"] == 0 and all(found["in_backward"] > 10 for found in others[:2]), others
    assert in_bfloat16["apart"] > 1e-6
