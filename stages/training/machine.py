"""The machine that a stage ran on, for the report."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from stages.distillation.device import accelerator
from stages.training import machine_limits as limits

LIBRARIES = ("torch", "transformers", "deepspeed")


def describe() -> dict[str, str | int]:
    """Processor, accelerator, cores and bytes of memory this process may use, system and versions."""
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": limits.cores(),
        "memory": limits.memory()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if accelerator() == "cuda":
        found["accelerator"] = torch.cuda.get_device_name()
    return found | {name: version(name) for name in LIBRARIES}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
