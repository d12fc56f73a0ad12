"""The interface that gloo is told to use."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
import pytest

from launcher.agent.job import Node
from launcher.agent.network import gloo_interface

BESIDE = "192.0.2.7"  # RFC 5737: of no machine


def node(*addresses: str, rank: int = 0) -> Node:
    return Node(rank, len(addresses), addresses, Path("/w"), Path("/w/config.yaml"), {})


def test_the_interface_of_this_nodes_own_address() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for item in addresses:
            if item.family == socket.AF_INET and not item.address.startswith("127."):
                assert gloo_interface(node(BESIDE, item.address, rank=1)) == {"GLOO_SOCKET_IFNAME": name}
                return
    pytest.skip("this machine has no address but loopback's")


@pytest.mark.parametrize(
    "alone",
    [node("127.0.0.1"), node("127.0.0.1", "127.0.0.2"), node(BESIDE, "192.0.2.8"), node("x..y", "z..y")],
    ids=["one node", "on loopback", "behind a NAT", "no such name"],
)
def test_otherwise_gloo_is_left_alone(alone: Node) -> None:
    assert gloo_interface(alone) == {}
