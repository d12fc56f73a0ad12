"""Which network interface the nodes of a run speak over.

gloo, which carries PyTorch's and Megatron's groups on the CPU, listens on the address that the machine's own
name resolves to (ProcessGroupGloo.cpp: ``createDefaultDevice``). Debian and Ubuntu write 127.0.1.1 there
(``/etc/hosts``), so that no other node gets through. The nodes know each other by SkyPilot's addresses: the
interface that has this node's is the right one.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil

from launcher.agent.job import Node


def gloo_interface(node: Node) -> dict[str, str]:
    """``GLOO_SOCKET_IFNAME`` for a node among several; nothing where its address is on no interface here,
    as behind a NAT, or is this machine itself, as on the local backend."""
    if node.count < 2 or node.rank >= len(node.addresses):
        return {}
    own = node.addresses[node.rank]
    try:
        address = ipaddress.ip_address(socket.gethostbyname(own))  # Slurm may give names
    except (OSError, UnicodeError):  # no such name, or none that could be
        return {}
    if address.is_loopback:
        return {}
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address == str(address) for item in addresses):
            return {"GLOO_SOCKET_IFNAME": name}
    return {}
