"""Cluster profiles: where and on what to run. ``clusters/NAME.yaml``, with ``extends``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from launcher import yamlfile
from launcher.errors import UserError, did_you_mean

BACKENDS = ("local", "sky", "fake")
PYTHONS = ("current", "image", "venv")


@dataclass(frozen=True)
class Key:
    """One key of a profile: what it may hold, and what it means to a reader of the docs."""

    types: tuple[type, ...]
    meaning: str
    allowed: tuple[str, ...] = ()


KEYS: Mapping[str, Key] = {
    "extends": Key((str,), "another profile that this one changes"),
    "backend": Key(
        (str,),
        "who runs the task: this machine, SkyPilot, or a fake cloud on this machine for tests",
        BACKENDS,
    ),
    "infra": Key((str,), "SkyPilot's place, `cloud[/region[/zone]]`; without it SkyPilot chooses"),
    "python": Key((str,), "the node's Python: the launcher's own, the image's, or a new venv", PYTHONS),
    "accelerator": Key((str, list), "GPU type or types, in place of the recipe's"),
    "gpus_per_node": Key((int,), "GPUs on each node, in place of the recipe's"),
    "nodes": Key((int,), "number of nodes, in place of the recipe's"),
    "cpus": Key((str, int), "vCPUs of a node without GPUs, as SkyPilot writes them: `4+`"),
    "memory": Key((str, int), "memory in GiB of a node without GPUs: `16+`"),
    "disk_size": Key((int,), "disk of each node in GB; SkyPilot asks for none on Slurm and Lambda"),
    "disk_tier": Key((str,), "SkyPilot's disk tier", ("low", "medium", "high", "ultra", "best")),
    "network_tier": Key((str,), "SkyPilot's network tier, for two nodes and more", ("standard", "best")),
    "spot": Key((bool,), "run on spot where the recipe allows it"),
    "image": Key((str,), "container image, in place of the recipe's, or a cloud's machine image: `ami-...`"),
    "containers": Key((bool,), "whether this place can run the recipe's container image"),
    "ports": Key((list,), "ports to open"),
    "labels": Key((dict,), "labels on what is provisioned"),
    "priority": Key((int,), "SkyPilot's job priority, -1000 to 1000"),
    "idle_minutes": Key((int,), "minutes without work after which SkyPilot takes a cluster down by itself"),
    "shared_filesystem": Key((bool,), "nodes and launcher see the same folders, as on many Slurm clusters"),
    "secrets": Key((list,), "variables the job needs and must never be written: taken from the environment"),
    "activate": Key(
        (str,), "shell lines before set-up and run: `module load cuda`, `source venv/bin/activate`"
    ),
    "setup": Key((str,), "shell lines that prepare a node, before the recipe's own needs are installed"),
    "env": Key((dict,), "environment variables of the job"),
    "config": Key((dict,), "SkyPilot configuration for this task, such as Slurm's sbatch options"),
    "price_per_hour": Key((int, float), "dollars per node and hour where no catalog knows; 0 for your own"),
}


@dataclass(frozen=True)
class Profile:
    """A validated profile. None means: as the recipe says, or as SkyPilot chooses.

    ``price_per_hour`` is dollars per node; None is unknown, which is never the same as 0.
    """

    name: str
    files: tuple[Path, ...] = field(repr=False)
    backend: str = "sky"
    infra: str | None = None
    python: str = "image"
    accelerator: tuple[str, ...] = ()
    gpus_per_node: int | None = None
    nodes: int | None = None
    cpus: str | None = None
    memory: str | None = None
    disk_size: int | None = None
    disk_tier: str | None = None
    network_tier: str | None = None
    spot: bool = False
    spot_first: bool = False
    image: str | None = None
    containers: bool = True
    ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int | None = None
    idle_minutes: int = 10
    shared_filesystem: bool = False
    secrets: tuple[str, ...] = ()
    activate: str = ""
    setup: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    price_per_hour: float | None = None


MARKETS = ("on-demand", "spot", "spot-first")


@dataclass(frozen=True)
class Placement:
    """What a launch says of its place, over the profile; None leaves it to the profile.

    ``market`` is one of ``MARKETS``; ``gpus`` is SkyPilot's ``TYPE:COUNT`` or ``TYPE``.
    """

    region: str | None = None
    zone: str | None = None
    gpus: str | None = None
    market: str | None = None


def place(profile: Profile, wanted: Placement) -> Profile:
    """The profile with the launch's own wishes. Raises UserError for those that the place cannot have."""
    if wanted == Placement():
        return profile
    if profile.backend == "local":
        flag = next(f"--{name}" for name, value in vars(wanted).items() if value is not None)
        flag = f"--{wanted.market}" if flag == "--market" else flag
        raise UserError(f"{flag} means nothing on this machine", hint="name a cloud: --cloud aws")
    changed: dict[str, Any] = {}
    if wanted.region or wanted.zone:
        cloud, region, zone = [*(profile.infra or "*").split("/"), None, None][:3]
        region = wanted.region or region or "*"
        zone = wanted.zone or (zone if wanted.region is None else None)
        changed["infra"] = "/".join(filter(None, (cloud, region, zone)))
    if wanted.gpus:
        kind, colon, count = wanted.gpus.partition(":")
        if not kind or (colon and not (count.isdecimal() and int(count) > 0)):
            raise UserError(f"--gpus {wanted.gpus}: write TYPE:COUNT, such as H100:8")
        changed["accelerator"] = (kind,)
        if count:
            changed["gpus_per_node"] = int(count)
    if wanted.market:
        if wanted.market != "on-demand" and (profile.infra or "").split("/")[0] == "slurm":
            raise UserError(f"--{wanted.market}: Slurm has no spot market", hint="leave it out")
        changed["spot"] = wanted.market == "spot"
        changed["spot_first"] = wanted.market == "spot-first"
    return replace(profile, **changed)


def where(profile: Profile, key: str) -> str:
    """``file:line`` of the profile's key, in whichever file of its chain says it."""
    for path in profile.files:
        file = yamlfile.read(path)
        if key in file.values:
            return file.where(key)
    return str(profile.files[0])


def names(folder: Path) -> list[str]:
    """The profiles in ``folder``, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(name: str, folder: Path) -> Profile:
    """The profile ``name`` of ``folder``, or the file that ``name`` is the path of. What such a file extends
    by name lies beside it or in ``folder``.

    Raises UserError, with file:line, for an unknown profile, key, value or a cycle of ``extends``.
    """
    path = _path_of(name, [folder], where=None)
    values: dict[str, Any] = {}
    chain: list[yamlfile.YamlFile] = []
    while True:
        if any(path == seen.path for seen in chain):
            cycle = " -> ".join(seen.path.stem for seen in chain) + f" -> {path.stem}"
            raise UserError(f"extends goes in a circle: {cycle}", where=chain[-1].where("extends"))
        file = yamlfile.read(path)
        _check(file)
        chain.append(file)
        values = _merge(file.values, values)
        parent = file.values.get("extends")
        if parent is None:
            break
        beside = list(dict.fromkeys((path.parent, folder.resolve())))
        path = _path_of(parent, beside, where=file.where("extends"))
    return _profile(chain, values)


def _path_of(name: str, folders: Sequence[Path], where: str | None) -> Path:
    """The first of ``folders`` is the one that a relative path counts from."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(os.path.realpath(folders[0] / name if where else name))
        if path.is_file():
            return path
        raise UserError(f"no cluster profile at {path}", where=where)
    for folder in folders:
        if (path := folder / f"{name}.yaml").is_file():
            return path
    known = [found for folder in folders for found in names(folder)]
    raise UserError(
        f"no cluster profile {name!r} in {' or '.join(map(str, folders))}{did_you_mean(name, known)}",
        where=where,
        hint=f"there are: {', '.join(known) or 'none'}; a path to any other YAML file works too",
    )


def _check(file: yamlfile.YamlFile) -> None:
    for key, value in file.values.items():
        where = file.where(key)
        if key not in KEYS:
            raise UserError(f"unknown key {key!r}{did_you_mean(key, KEYS)}", where=where)
        rule = KEYS[key]
        if type(value) not in rule.types:  # not isinstance: True is an int to Python, not to a reader
            wanted = " or ".join(kind.__name__ for kind in rule.types)
            raise UserError(f"{key} must be {wanted}, not {value!r}", where=where)
        if rule.allowed and value not in rule.allowed:
            guess = did_you_mean(str(value), rule.allowed)
            raise UserError(
                f"{key} must be one of {', '.join(rule.allowed)}, not {value!r}{guess}", where=where
            )
        if key in ("nodes", "disk_size", "idle_minutes") and value < 1:
            raise UserError(f"{key} must be at least 1, not {value}", where=where)
        if key in ("gpus_per_node", "price_per_hour") and value < 0:
            raise UserError(f"{key} must not be negative, not {value}", where=where)
        if key == "priority" and not -1000 <= value <= 1000:
            raise UserError(f"priority must be from -1000 to 1000, not {value}", where=where)
        if key in ("env", "labels"):
            for name, item in value.items():
                if not isinstance(item, (str, int, float)):
                    raise UserError(f"{key}.{name} must be text or a number", where=file.where(key, name))


def _merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """The child's keys win; ``env``, ``labels`` and ``config`` are merged key by key."""
    merged = dict(parent)
    for key, value in child.items():
        both_tables = isinstance(value, dict) and isinstance(parent.get(key), dict)
        merged[key] = _merge(parent[key], value) if both_tables else value
    return merged


def _profile(chain: list[yamlfile.YamlFile], values: dict[str, Any]) -> Profile:
    def texts(key: str) -> dict[str, str]:
        table = values.get(key, {})
        return {name: str(int(v) if isinstance(v, bool) else v) for name, v in table.items()}

    accelerator = values.get("accelerator", ())
    cleaned = {
        **values,
        "accelerator": (accelerator,) if isinstance(accelerator, str) else tuple(accelerator),
        "secrets": tuple(str(name) for name in values.get("secrets", ())),
        "ports": tuple(str(port) for port in values.get("ports", ())),
        "env": texts("env"),
        "labels": texts("labels"),
        "cpus": str(values["cpus"]) if "cpus" in values else None,
        "memory": str(values["memory"]) if "memory" in values else None,
    }
    known = {item.name for item in fields(Profile)}
    return Profile(
        name=chain[0].path.stem,
        files=tuple(file.path for file in chain),
        **{key: value for key, value in cleaned.items() if key in known},
    )
