"""A parsed runspec. What each key means and its default stand in ``launcher.runspec.table``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """In ``cmd``, ``{script}`` and ``{config}`` are placeholders; every other brace means itself."""

    launch: str
    cmd: str
    workdir: str | None


@dataclass(frozen=True)
class ConfigSpec:
    dir: str
    default: str
    format: str


@dataclass(frozen=True)
class Resources:
    """``gpus_per_node`` is a count, 0 for a CPU stage, or ``"gpu"``: as many as the node has."""

    nodes: int
    gpus_per_node: int | str


@dataclass(frozen=True)
class Output:
    name: str
    type: str


@dataclass(frozen=True)
class Sky:
    """What a cloud must know. ``spot`` None: as the cluster profile says. ``in_all``: see ``plan.select``."""

    accelerator: tuple[str, ...]
    disk_gb: int | None
    min_gpu_memory_gb: int | None
    spot: bool | None
    procs_per_node: int
    checkpoint_dir: str | None
    no_retry: tuple[int, ...]
    sources: tuple[str, ...]
    config_keys: tuple[str, ...]
    in_all: bool
    inputs: Mapping[str, str]
    output: Output | None


@dataclass(frozen=True)
class Runspec:
    """The identity and the needs of one stage, read from the top of its script."""

    schema: str
    docs: str
    name: str
    image: str | None
    setup: str
    run: Run
    config: ConfigSpec
    resources: Resources
    env: Mapping[str, str]
    sky: Sky
    dependencies: tuple[str, ...]
    requires_python: str | None
    script_path: Path

    @property
    def config_dir(self) -> Path:
        return self.script_path.parent / self.config.dir

    @property
    def family(self) -> str:
        """``tiny`` of ``tiny/data/prep/pretrain``."""
        return self.name.partition("/")[0]

    @property
    def stage(self) -> str:
        """``data/prep/pretrain`` of ``tiny/data/prep/pretrain``; empty when the name has no stage."""
        return self.name.partition("/")[2]


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in one file; prints as ``file:line: message``."""

    file: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


def facts(spec: Runspec) -> dict[str, Any]:
    """A runspec as plain values, ready for JSON; nested tables are joined by dots, as in ``run.launch``."""
    result: dict[str, Any] = {"family": spec.family, "stage": spec.stage}
    for key, value in asdict(spec).items():
        if key in ("run", "config", "resources", "sky"):
            table = "nemo_sky" if key == "sky" else key
            result.update({f"{table}.{inner}": _plain(item) for inner, item in value.items()})
        else:
            result[key] = _plain(value)
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
