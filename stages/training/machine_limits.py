"""The cores and the memory this process may use: the machine's, or what its control group grants.

In a container the machine's own numbers are those of the host. Source: Linux, admin-guide/cgroup-v1 and cgroup-v2.
"""

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores() -> int:
    """Whole cores this process may use, at least one; a control group may grant a part of the machine's time."""
    # A cpuset is in the affinity already.
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        quota = quota or _read(group / "cpu.cfs_quota_us")
        period = period or _read(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # no limit is "max", or -1
            most = min(most, max(1, int(quota) // int(period)))
    return most


def memory() -> tuple[int, int]:
    """Bytes (total, available to new processes)."""
    import psutil

    of_host = psutil.virtual_memory()
    total, free = of_host.total, of_host.available
    for group in _groups("memory"):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
        if limit.isdecimal() and used.isdecimal():
            total = min(total, int(limit))
            free = min(free, max(0, int(limit) - int(used) + _cache_bytes(group)))
    return total, free


def _cache_bytes(group: Path) -> int:
    """Bytes of cached files, which can be dropped at once; version 1 counts those of nested groups as total_*."""
    lines = dict(line.split() for line in _read(group / "memory.stat").splitlines())
    return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))


def _groups(controller: str) -> Iterator[Path]:
    """The directories of this process's control group and of its parents, whose limits hold too."""
    for line in _read(OWN).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUPS / controller if controllers else GROUPS
        group = root / path.lstrip("/")
        # In a container the path may be the host's and absent: the root then is the container's group.
        yield from (there for there in (group, *group.parents) if there.is_relative_to(root))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
