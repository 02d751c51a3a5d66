"""What a stage says of itself before it works."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from stages.distillation import device as module
from stages.training.options import Job
from stages.training.stage import Stage


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_precision_that_is_slow_on_the_device_is_warned_of(precision, bf16, device, monkeypatch, capsys):
    monkeypatch.setattr(module, "has_fast_bf16", lambda device: bf16)
    job = Job(precision=precision)
    Stage("general", "general", Path(), {}, {}, "", job, torch.device(device)).warn_of_slow_precision()
    said = capsys.readouterr().out
    emulated = {"bf16": not bf16, "fp16": device == "cpu", "fp32": False}[precision]
    assert ("is slow on this device" in said) == emulated
    assert ("fp32 on a GPU" in said) == (precision == "fp32" and device == "cuda")
    fast = "bf16" if bf16 else "fp16" if device == "cuda" else "fp32"
    assert not said or f"{fast} " in said


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "intel", "fast"),
    [
        (True, True, True, True),
        (False, True, False, True),
        (False, True, True, False),  # a virtual machine that hides AMX: half as fast as fp32
        (False, False, False, False),
    ],
)
def test_bf16_is_fast_only_where_its_products_beat_those_of_fp32(amx, avx512_bf16, intel, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(module, "_is_intel", lambda: intel)
    assert module.has_fast_bf16("cpu") == fast
    assert module.native_precision("cpu") == ("bf16" if fast else "fp32")


@pytest.mark.parametrize(
    ("bf16", "zero", "decided"), [(True, 0, "bf16"), (False, 0, "fp32"), (False, 1, "fp32")]
)
def test_the_precision_is_decided_by_the_device_and_kept(bf16, zero, decided, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "has_fast_bf16", lambda device: bf16)
    spec = {"name": "g", "stage_type": "general", "options": {}, "inputs": {}, "fingerprint": ""}
    (tmp_path / "stage.json").write_text(json.dumps(spec | {"job": asdict(Job(zero=zero))}))
    assert Stage.open(tmp_path, torch.device("cpu")).job.precision == decided
    assert json.loads((tmp_path / "stage.json").read_text())["job"]["precision"] == decided


@pytest.mark.parametrize(
    ("device", "precision", "inside"),
    [
        ("cuda", torch.bfloat16, "high"),
        ("cuda", torch.float16, "high"),
        ("cuda", torch.float32, "highest"),
        ("cpu", torch.bfloat16, "highest"),
    ],
)
def test_a_gpu_rounds_products_to_tf32_only_while_models_compute_in_16_bits(device, precision, inside):
    with module.tf32_products(torch.device(device), precision):
        assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == "highest"
