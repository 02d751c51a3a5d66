"""In a container the cores and the memory are those it was granted, by control groups of either version."""

import os

import psutil
import pytest

from pipeline.cli import doctor
from pipeline.launch.local_ranks import threads_per_rank
from stages.training import machine
from stages.training import machine_limits as limits

GB = 10**9
V1 = "4:memory:{path}\n3:cpuset:/\n1:cpu,cpuacct:{path}\n0::/\n"
V2 = "0::{path}\n"
GRANTED = {  # of 2.5 cores and 3 GB, of which 1.5 GB are used, 0.5 GB of that by files that can be dropped
    "v1": {"cpu": {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"},
           "memory": {"memory.limit_in_bytes": 3 * GB, "memory.usage_in_bytes": 3 * GB // 2,
                      "memory.stat": f"cache 9\ninactive_file 7\ntotal_inactive_file {GB // 2}"}},
    "v2": {".": {"cpu.max": "250000 100000", "memory.max": 3 * GB, "memory.current": 3 * GB // 2,
                 "memory.stat": f"anon 9\ninactive_file {GB // 2}"}},
}  # fmt: skip
FREE = {"v1": {"cpu": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
               "memory": {"memory.limit_in_bytes": 9223372036854771712, "memory.usage_in_bytes": GB}},
        "v2": {".": {"cpu.max": "max 100000", "memory.max": "max", "memory.current": GB}}}  # fmt: skip


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with 8 cores and 100 GB, whose control groups a test writes: call with version, path, files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    about = psutil.virtual_memory()._replace(total=100 * GB, available=90 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: about)
    monkeypatch.setattr(limits, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "OWN", tmp_path / "own")

    def write(version: str, own: str, group: str, files: dict) -> None:
        (tmp_path / "own").write_text({"v1": V1, "v2": V2}[version].format(path=own))
        for controller, contents in files[version].items():
            directory = tmp_path / "cgroup" / controller / group
            directory.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                (directory / name).write_text(f"{content}\n")

    return write


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    "own, group",
    [("/", ""), ("/docker/abc", ""), ("/pod", "pod"), ("/pod/container", "pod")],
    ids=["root", "the host's path", "own", "its parent's"],
)
def test_what_a_container_was_granted_is_what_is_used_and_said(host, capsys, tmp_path, version, own, group):
    host(version, own, "pod/container", FREE)
    host(version, own, group, GRANTED)
    assert (
        limits.cores() == 2
        and threads_per_rank(1) == "2"
        and threads_per_rank(2) == threads_per_rank(4) == "1"
    )
    assert limits.memory() == (3 * GB, 2 * GB)
    about = machine.describe()
    assert (about["cores"], about["memory"]) == (2, 3 * GB)
    doctor.check_machine(doctor.Report(), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert any("2 available to this process" in line for line in lines), lines
    assert any("2.0 GB free of 3.0 GB" in line for line in lines), lines


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_without_a_limit_the_machine_counts(host, version):
    assert (limits.cores(), limits.memory()) == (8, (100 * GB, 90 * GB))  # no control groups at all
    host(version, "/", "", FREE)
    assert (limits.cores(), limits.memory()) == (8, (100 * GB, 90 * GB))


def test_less_than_a_core_is_one_and_a_full_group_has_nothing_free(host):
    host("v2", "/", "", {"v2": {".": {"cpu.max": "50000 100000", "memory.max": GB, "memory.current": GB}}})
    assert (limits.cores(), limits.memory()) == (1, (GB, 0))
