"""Where the ranks of a host meet."""

import socket

import pytest

from pipeline.launch.local_ranks import _free_port


def test_a_port_is_held_until_rank_0_listens():
    """Seconds pass until then, in which another job may look for a port."""
    held = _free_port()
    with socket.socket() as other, pytest.raises(OSError):
        other.bind(("", held.getsockname()[1]))
    with socket.socket() as rank_0:
        rank_0.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rank_0.bind(("", held.getsockname()[1]))
        rank_0.listen()
