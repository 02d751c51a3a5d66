"""The interface through which ranks reach each other, where names resolve as on Debian."""

import pytest
import torch.distributed as dist

from pipeline.launch import network_interfaces

HOSTS = {"lo": "127.0.0.1", "eth0": "10.0.0.1"}


@pytest.fixture
def host(monkeypatch):
    """A host with two interfaces, whose own name is 127.0.1.1; other hosts are reached through eth0."""
    ways = {"me": "127.0.0.1", "other": "10.0.0.1", "10.0.0.2": "10.0.0.1"}
    monkeypatch.setattr(network_interfaces, "source_address", lambda name: ways.get(name, ""))
    monkeypatch.setattr(
        network_interfaces, "interface_of", lambda address: {v: k for k, v in HOSTS.items()}.get(address, "")
    )
    for name in network_interfaces.VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return network_interfaces.os.environ


def choose(rank: int, master: str, others: dict[int, str]) -> None:
    store = dist.HashStore()
    for other, address in others.items():
        store.set(f"address/{other}", address)
    network_interfaces.choose_interface(store, rank, 1 + len(others), master)


def test_the_master_takes_the_way_back_to_another_host(host):
    choose(0, "me", {1: "127.0.0.1", 2: "10.0.0.2"})
    assert [host[name] for name in network_interfaces.VARIABLES] == ["eth0", "eth0"]


def test_another_host_takes_the_way_to_the_master(host):
    choose(1, "other", {0: "127.0.0.1"})
    assert [host[name] for name in network_interfaces.VARIABLES] == ["eth0", "eth0"]


def test_ranks_of_one_host_need_no_network(host):
    choose(0, "me", {1: "127.0.0.1"})
    assert host["GLOO_SOCKET_IFNAME"] == "lo" and "NCCL_SOCKET_IFNAME" not in host


def test_what_the_environment_says_stays(host, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    choose(1, "other", {0: "127.0.0.1"})
    assert [host[name] for name in network_interfaces.VARIABLES] == ["ib0", "eth0"]


def test_real_addresses():
    assert network_interfaces.source_address("127.0.1.1").startswith("127.")
    assert network_interfaces.source_address("no.such.host.invalid") == ""
    assert (
        network_interfaces.interface_of("127.0.1.1") == network_interfaces.interface_of("127.0.0.1") == "lo"
    )
    assert network_interfaces.interface_of("") == ""
