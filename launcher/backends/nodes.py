"""What an emulated node looks like to a task: SkyPilot's environment variables, on loopback."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import launcher

# Not from the caller's shell: they would say where some other run runs, or where it is tracked.
_OWN_PREFIXES = ("NEMO_SKY_", "SKYPILOT_", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
# Below the ports that the kernel gives to clients, so that none of those takes one before its server.
_PORTS = range(20000, 32000)


@dataclass(frozen=True)
class Place:
    """What the nodes of one attempt share. ``gpus`` are the devices of this machine that may be used."""

    run_dir: Path
    nodes: int
    gpus: tuple[str, ...]
    master_port: int
    ray_port: int
    ray_token: str


def survey(run_dir: Path, nodes: int) -> Place:
    """This machine as ``nodes`` nodes."""
    master_port, ray_port = free_ports(2)
    return Place(run_dir, nodes, visible_gpus(), master_port, ray_port, secrets.token_hex(32))


def address(rank: int) -> str:
    """127.0.0.1 for the first node, 127.0.0.2 for the second: all of 127.0.0.0/8 is this machine."""
    return f"127.0.{(rank + 1) // 256}.{(rank + 1) % 256}"


def work_dir(run_dir: Path, rank: int) -> Path:
    return run_dir / "work" / f"node-{rank}"


def environment(place: Place, task: Mapping[str, Any], rank: int) -> dict[str, str]:
    """The environment of one node: the caller's, then SkyPilot's variables, then the task's own.

    What a cloud would do for a node is done by path: the job's files are where the launcher wrote them.
    """
    mine = gpus_of(place, rank)
    run_id = place.run_dir.name
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_OWN_PREFIXES)}
    paths = [str(Path(launcher.__file__).parents[1]), kept.get("PYTHONPATH", "")]
    cluster = {"cluster_name": "local", "cloud": "local", "region": None, "zone": None}
    result = {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NUM_NODES": str(place.nodes),
        "SKYPILOT_NODE_IPS": "\n".join(map(address, range(place.nodes))),
        "SKYPILOT_NUM_GPUS_PER_NODE": str(len(mine)),
        "SKYPILOT_TASK_ID": f"sky-local-{run_id}",
        "SKYPILOT_CLUSTER_INFO": json.dumps(cluster),
        "NEMO_SKY_RUN_ID": run_id,
        **{str(key): str(value) for key, value in (task.get("envs") or {}).items()},
        "NEMO_SKY_JOB": str(place.run_dir / "job"),
        "NEMO_SKY_WORK": str(work_dir(place.run_dir, rank)),
        "NEMO_SKY_MASTER_PORT": str(place.master_port),
        "NEMO_SKY_RAY_PORT": str(place.ray_port),
    }
    if "RAY_AUTH_MODE" not in result:
        result.setdefault("RAY_AUTH_TOKEN", place.ray_token)  # in memory only; all nodes have the same
    if place.nodes > 1:
        result["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return result


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that may be used: CUDA_VISIBLE_DEVICES where it is set, else all that the driver lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(item for item in chosen.split(",") if item.strip() and item.strip() != "-1")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return tuple(map(str, range(count)))


def gpus_of(place: Place, rank: int) -> Sequence[str]:
    """The GPUs of one node: an equal share."""
    share = len(place.gpus) // place.nodes
    return place.gpus[rank * share : (rank + 1) * share]


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no free port between {_PORTS.start} and {_PORTS.stop}")
