"""The rig's network: one bridge of its own, and a leg of it in each instance's namespace.

Addresses are of 100.64.0.0/10, which no public host has (RFC 6598). Each rig takes a /16 of it that no
interface of this machine has: the gateway is .0.1, each region's VPC is a /18. Nothing is forwarded
and nothing is translated, so an instance reaches the gateway and the other instances, and nothing else.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A bridge and its /16."""

    bridge: str
    block: str

    @property
    def gateway(self) -> str:
        return str(ipaddress.IPv4Network(self.block)[1])

    def vpc(self, number: int) -> ipaddress.IPv4Network:
        """The /18 of region ``number``, counted from 0; the first /18 holds the gateway."""
        return list(ipaddress.IPv4Network(self.block).subnets(new_prefix=18))[number + 1]


def free_block() -> str:
    """A /16 of 100.64.0.0/10 with no address on this machine."""
    listed = json.loads(_run("ip", "-json", "address").stdout)
    used = [
        ipaddress.IPv4Interface(f"{item['local']}/{item['prefixlen']}").network
        for link in listed
        for item in link["addr_info"]
        if item["family"] == "inet"
    ]
    for block in ipaddress.IPv4Network("100.64.0.0/10").subnets(new_prefix=16):
        if not any(block.overlaps(network) for network in used):
            return str(block)
    raise RuntimeError("no free /16 in 100.64.0.0/10")


def make_bridge(network: Network) -> None:
    _run("ip", "link", "add", network.bridge, "type", "bridge")
    _run("ip", "address", "add", f"{network.gateway}/16", "dev", network.bridge)
    _run("ip", "link", "set", network.bridge, "up")


def remove_bridge(name: str) -> None:
    """Remove a bridge if it is there."""
    _run("ip", "link", "delete", name, "type", "bridge", check=False)


def connect(network: Network, pid: int, leg: str, address: str) -> None:
    """Give the network namespace of ``pid`` a leg on the bridge, and the metadata address on its loopback."""
    _run("ip", "link", "add", leg, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    _run("ip", "link", "set", leg, "master", network.bridge, "up")
    for words in (
        "link set lo up",
        "address add 169.254.169.254/32 dev lo",
        f"address add {address}/16 dev eth0",
        "link set eth0 up",
        f"route add default via {network.gateway}",  # Ray takes its own address from the default route
    ):
        _run("nsenter", "--target", str(pid), "--net", "ip", *words.split())


def disconnect(leg: str) -> None:
    _run("ip", "link", "delete", leg, check=False)


def _run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=check, capture_output=True, text=True)
