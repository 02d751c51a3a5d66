"""The network interface through which the ranks reach each other.

By default gloo uses the interface that the host's own name resolves to. On Debian that is 127.0.1.1, which other hosts
cannot reach.
"""

import contextlib
import ipaddress
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def choose_interface(store: "Store", rank: int, world_size: int, master: str) -> None:
    """Tell gloo and NCCL which interface leads to the other ranks, unless the environment does. Called on every rank.

    Args:
        store: that all ranks share.
        master: name or address of the host where the ranks meet.
    """
    own = source_address(master)
    store.set(f"address/{rank}", own)
    addresses = [found.decode() for found in store.multi_get([f"address/{i}" for i in range(world_size)])]
    others = [address for address in addresses if address and not _is_loopback(address)]
    # The master's host: the way back to another host shows its interface.
    if others and (not own or _is_loopback(own)):
        own = source_address(others[0])
    name = interface_of(own)
    for variable in VARIABLES if others else VARIABLES[:1]:  # within a host NCCL needs none
        if name:
            os.environ.setdefault(variable, name)


def source_address(host: str) -> str:
    """This host's address on the way to another; empty if there is no way. Nothing is sent."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    return ""


def interface_of(address: str) -> str:
    """The name of the interface that has this address; empty if none has.

    127.0.1.1 and the like belong to the loopback interface without being its address.
    """
    import psutil

    wanted = "127.0.0.1" if address and _is_loopback(address) and ":" not in address else address
    for name, found in psutil.net_if_addrs().items():
        if wanted and wanted in (entry.address.partition("%")[0] for entry in found):
            return name
    return ""


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
