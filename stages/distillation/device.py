"""What a rank computes on: which device, how its ranks talk, and which precision pays there. torch is asked, nothing else.

DS_ACCELERATOR=cpu keeps everything on the CPU; CUDA_VISIBLE_DEVICES, or ROCm's HIP_VISIBLE_DEVICES, says which GPUs
there are.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

# Counting GPUs by NVML, not by CUDA, leaves a process able to fork ranks that use them.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import torch

from checkpoints.errors import UserError

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
"""How ranks talk, by the type of their device."""

WIDTH_MULTIPLE = {"cuda": 8}
"""Batches are padded to multiples of this: tensor cores want it, and fewer shapes mean fewer kernels to load."""


def accelerator() -> str:
    """Return the type of the device that ranks get: "cuda" (also for ROCm) or "cpu". This does not start a GPU."""
    if os.environ.get("DS_ACCELERATOR", "cuda") != "cuda":
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of_rank(local_rank: int) -> torch.device:
    """Return the device of a rank.

    Raises:
        UserError: this host has fewer GPUs.
    """
    if accelerator() == "cpu":
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise UserError(
            f"rank {local_rank} of this host has no GPU: it sees {gpus}; start at most {gpus} ranks a host, or set "
            "DS_ACCELERATOR=cpu",
            argument="nproc",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    # cuDNN's attention builds a plan for each new shape (26 ms a layer on an H100), and the lengths of batches vary.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def has_fast_bf16(device: torch.device | str) -> bool:
    """Return whether bfloat16 matrix products are faster than float32's.

    - NVIDIA: from compute capability 8.0 on (A100); earlier GPUs emulate them.
    - Processors with AMX, and AMD's with AVX512-BF16 (2.3 times as fast, measured). Intel's AVX512-BF16
      without AMX, which some virtual machines hide, is half as fast as fp32 (measured on Emerald Rapids).
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and not _is_intel())


@functools.cache
def _is_intel() -> bool:
    """Return whether the processor is Intel's, as Linux says."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "GenuineIntel" in cpuinfo.read_text(encoding="utf-8", errors="replace")


def native_precision(device: torch.device | str, zero: int = 0) -> Literal["bf16", "fp16", "fp32"]:
    """Return what `precision=auto` means.

    It is bf16 where bf16 is faster than fp32; else fp16 on a GPU without ZeRO; else fp32.
    """
    if has_fast_bf16(device):
        return "bf16"
    return "fp16" if torch.device(device).type == "cuda" and not zero else "fp32"


def is_fast(precision: torch.dtype, device: torch.device | str) -> bool:
    """Return whether the device multiplies in the precision at least as fast as in fp32."""
    if precision == torch.float16:
        return torch.device(device).type == "cuda"
    return precision == torch.float32 or has_fast_bf16(device)


@contextmanager
def tf32_products(device: torch.device, precision: torch.dtype) -> Iterator[None]:
    """In the block a GPU rounds the factors of fp32 products to TF32, where the models compute in 16 bits anyway.

    Such products are those of the losses, which autocast leaves out. Their factors are queries, keys and states that
    came in 16 bits, and TF32 holds as many digits as fp16. In fp32 nothing is rounded.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and precision != torch.float32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
