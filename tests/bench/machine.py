"""What this machine can do: the speed of large matrix products and of memory, measured."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from stages.distillation.device import native_precision
from stages.training.stage import PRECISIONS

SIZE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product is timed."""


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        flops: floating-point operations a second in fp32, and in the precision that is faster, where there is one.
        memory: bytes a second, read and written together.
    """

    name: str
    threads: int
    torch: str
    transformers: str
    load: float
    flops: dict[str, float]
    memory: float

    @staticmethod
    def measure(device: torch.device) -> "Machine":
        """The best of several: what the machine can do, not what it did."""
        flops, size = {}, SIZE[device.type]
        # A product in another precision is emulated, and takes minutes.
        for name in dict.fromkeys(("fp32", native_precision(device))):
            a, b = (torch.randn(size, size, device=device).to(PRECISIONS[name]) for _ in range(2))
            flops[name] = 2 * size**3 / best(lambda a=a, b=b: a @ b, device)
        source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
        target = torch.empty_like(source)
        memory = 2 * source.nbytes / best(lambda: target.copy_(source), device)
        load = round(os.getloadavg()[0], 2)
        return Machine(
            _name(device), torch.get_num_threads(), torch.__version__, transformers.__version__, load, flops, memory
        )  # fmt: skip

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.threads} threads, load {self.load} before; matrix products "
            + ", ".join(f"{flops / 1e9:,.0f} GFLOP/s in {name}" for name, flops in self.flops.items())
            + f"; memory {self.memory / 1e9:.1f} GB/s; torch {self.torch}, transformers {self.transformers}"
        )

    def seconds(self, flops: float, bytes: float, precision: str) -> float:
        """The least time for work of so many operations over so many bytes."""
        return max(flops / self.flops[precision], bytes / self.memory)

    def to_json(self) -> dict:
        return asdict(self)


def best(work: Callable[[], object], device: torch.device, times: int = 10) -> float:
    """Seconds of the fastest of several runs."""
    return min(seconds(work, device) for _ in range(times))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run."""
    _finish(device)
    began = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "CPU")
