"""What a SkyPilot task asks of its nodes: the question that offers answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launcher.errors import UserError

Market = Literal["spot", "on-demand"]
MARKETS: tuple[Market, ...] = ("on-demand", "spot")


@dataclass(frozen=True)
class Want:
    """What a task asks of its nodes. ``gpus``: the types that will do, best first; ``count``: of them on each
    node, 0 for none. ``cpus`` and ``memory`` as SkyPilot writes them (``4+``), for nodes without GPUs.
    ``infra``: ``cloud[/region[/zone]]`` or None; ``gpu_gb``: the least memory of a GPU."""

    gpus: tuple[str, ...] = ()
    count: int = 0
    nodes: int = 1
    cpus: str | None = None
    memory: str | None = None
    container: bool = False
    autodown: bool = False
    infra: str | None = None
    markets: tuple[Market, ...] = MARKETS
    gpu_gb: int | None = None


def want_of(task: Mapping[str, Any], *, gpu_gb: int | None = None) -> list[Want]:
    """What a SkyPilot task asks for: one Want per alternative of ``any_of`` or ``ordered``, else one.

    ``use_spot: true`` leaves the spot market, its absence on-demand.
    """
    base = dict(task.get("resources") or {})
    others = base.pop("any_of", None) or base.pop("ordered", None) or [{}]
    wants = []
    for other in others:
        one = {**base, **other}
        kinds, count = _accelerators(one.get("accelerators"))
        infra = one.get("infra") or "/".join(
            str(one[key]) for key in ("cloud", "region", "zone") if one.get(key)
        )
        wants.append(
            Want(
                gpus=kinds,
                count=count,
                nodes=int(task.get("num_nodes") or 1),
                cpus=None if one.get("cpus") is None else str(one["cpus"]),
                memory=None if one.get("memory") is None else str(one["memory"]),
                container=str(one.get("image_id") or "").startswith("docker:"),
                autodown=bool((one.get("autostop") or {}).get("down")),
                infra=infra or None,
                markets=("spot",) if one.get("use_spot") else ("on-demand",),
                gpu_gb=gpu_gb,
            )
        )
    return wants


def alternatives(resources: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all ways to have a task's ``resources`` share, and each way's own, in the order in which they
    will do: one for every entry of ``any_of`` or ``ordered``, and in it for every type of several
    accelerators. A task with nothing to choose has one way, which is empty.

    For SkyPilot 0.14.1 refuses a list of accelerators beside either (``Resources.from_yaml_config``).
    """
    base = dict(resources)
    ways = base.pop("any_of", None) or base.pop("ordered", None) or [{}]
    kinds = base.get("accelerators")
    if kinds is None or isinstance(kinds, str) or len(kinds) < 2:
        return base, [dict(way) for way in ways]
    del base["accelerators"]
    texts = [f"{kind}:{count or 1}" for kind, count in kinds.items()] if isinstance(kinds, Mapping) else kinds
    return base, [{"accelerators": kind, **way} for way in ways for kind in texts]


def split_infra(text: str | None) -> tuple[str | None, str | None, str | None]:
    """Cloud, region and zone of SkyPilot's ``cloud/region/zone``; None for what is missing or ``*``."""
    parts = [None if part in ("", "*") else part for part in (text or "").split("/", 2)]
    cloud, region, zone = [*parts, None, None, None][:3]
    return (cloud.lower() if cloud else None), region, zone


def _accelerators(written: Any) -> tuple[tuple[str, ...], int]:
    """Types and count of SkyPilot's ``H100:8``, ``[H100:8, H200:8]``, ``{H100: 8}`` or nothing."""
    if not written:
        return (), 0
    texts = [f"{k}:{v or 1}" for k, v in written.items()] if isinstance(written, Mapping) else written
    pairs = [text.partition(":") for text in ([texts] if isinstance(texts, str) else texts)]
    try:
        counts = {int(float(count or 1)) for _, _, count in pairs}
    except ValueError:
        raise UserError(f"accelerators {written!r}: write TYPE:COUNT, such as H100:8") from None
    if len(counts) > 1:
        raise UserError(f"accelerators {written!r}: the counts differ; a plan needs one")
    return tuple(kind for kind, _, _ in pairs), counts.pop()
