"""What SkyPilot 0.14.1 can do on which cloud, and how the clouds sell their nodes: tables, no code."""

from __future__ import annotations

from collections.abc import Mapping

# What SkyPilot 0.14.1 can do where, as its `sky/clouds/*.py` say; a test holds these beside them.
LAUNCHABLE = frozenset(
    ("aws", "azure", "cudo", "do", "fluidstack", "gcp", "hyperbolic", "ibm", "lambda", "mithril", "nebius",
     "oci", "paperspace", "primeintellect", "runpod", "scp", "seeweb", "shadeform", "vast", "verda",
     "vsphere", "yotta")
)  # fmt: skip
ONE_NODE = frozenset(
    ("hyperbolic", "primeintellect", "runpod", "seeweb", "shadeform", "vast", "verda", "vsphere", "yotta")
)
NO_SPOT = frozenset(
    ("cudo", "do", "fluidstack", "hyperbolic", "lambda", "paperspace", "scp", "seeweb", "shadeform",
     "vsphere", "yotta")
)  # fmt: skip
NO_CONTAINERS = frozenset(
    ("cudo", "hyperbolic", "ibm", "oci", "primeintellect", "scp", "shadeform", "verda", "vsphere")
)
NO_AUTODOWN = frozenset(("hyperbolic", "primeintellect", "verda", "yotta"))
NO_NODES = (
    "Failed to provision all possible launchable resources",
    "No launchable resource found for task",
    "does not contain any instances satisfying the request",
    "Resources unavailable: failed to launch clusters after",
)
"""How SkyPilot says that it got no nodes anywhere: it has taken down again what it did get."""
OWN = frozenset(("kubernetes", "k8s", "slurm", "ssh"))
"""Places of one's own, whose price only their owner knows."""
AUCTIONS = frozenset(("mithril",))
# The families among which SkyPilot chooses a node without GPUs; elsewhere it takes any.
CPU_FAMILIES: Mapping[str, str] = {
    "aws": r"(?:m6id?|m7i|r6id?|r7i|c6id?|c7i)\.",
    "gcp": r"(?:n2|n4)-(?:standard|highmem|highcpu)-",
    "azure": r"Standard_(?:[DE]\d+s_v5|F\d+s_v2)$",
    "oci": r"VM\.Standard(?:\.E|3)",
}
# GCP sells a GPU and its host on two lines; these are the hosts that SkyPilot takes, by GPU and count.
GCP_HOSTS: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    "A100": {**{n: (f"a2-highgpu-{n}g",) for n in (1, 2, 4, 8)}, 16: ("a2-megagpu-16g",)},
    "A100-80GB": {n: (f"a2-ultragpu-{n}g",) for n in (1, 2, 4, 8)},
    "B200": {8: ("a4-highgpu-8g",)},
    "H100": {n: (f"a3-highgpu-{n}g",) for n in (1, 2, 4, 8)},
    "H100-MEGA": {8: ("a3-megagpu-8g",)},
    "H200": {8: ("a3-ultragpu-8g",)},
    "L4": {
        1: tuple(f"g2-standard-{n}" for n in (4, 8, 12, 16, 32)),
        2: ("g2-standard-24",),
        4: ("g2-standard-48",),
        8: ("g2-standard-96",),
    },
    "RTXPRO6000": {n: (f"g4-standard-{48 * n}",) for n in (1, 2, 4, 8)},
}
# Any other GPU of GCP hangs on an n1 host of at least so many vCPUs, with 4 GiB for each.
GCP_CPUS: Mapping[str, Mapping[int, int]] = {
    "K80": {1: 4, 2: 8, 4: 16, 8: 32, 16: 64},
    "T4": {1: 4, 2: 8, 4: 48},
    "": {1: 8, 2: 16, 4: 32, 8: 64, 16: 128},
}
# Azure's catalog gives the machine with 8 H100 twelve of them; no task that asks for 8 finds it.
GPUS_IN_TRUTH: Mapping[str, int] = {"Standard_ND96isr_H100_v5": 8, "Standard_ND96is_flex_H100_v5": 8}
