"""``--max-hourly`` as a limit to places: the regions of a task that it allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.clusters import Profile
from launcher.errors import Refused
from launcher.money import places, prices
from launcher.money.account import MICROS
from launcher.money.want import Market, Want, alternatives, want_of

if TYPE_CHECKING:
    from launcher.task import Task


def to_price(profile: Profile, task: Task, limit: int | None, root: Path | None = None) -> Task:
    """``task`` without the regions where all its nodes together cost more than ``limit`` micro-dollars per
    hour, or where nobody knows what they cost.

    A region counts with its dearest zone, because SkyPilot may take any of them. SkyPilot is told the limit,
    too, for its catalogs may be newer. The task is unchanged without a limit, where the profile or nobody
    says the price, and where no region is allowed: the gate then says by how much.
    """
    if limit is None or not _has_catalog(profile):
        return task
    resources, ways = alternatives(task["resources"])
    # A list of accelerators is SkyPilot's way to say which of them it shall try first.
    in_order = "ordered" in task["resources"] or ("any_of" not in task["resources"] and len(ways) > 1)
    wants = want_of({**task, "resources": {**resources, "ordered": ways}})
    kept: list[dict[str, Any]] = []
    left_out = False
    for way, want in zip(ways, wants, strict=True):
        dearest = _dearest(want, root)
        allowed = {infra: cost for infra, cost in dearest.items() if cost is not None and cost <= limit}
        left_out = left_out or len(allowed) < len(dearest)
        kept += [{**way, "infra": infra} for infra in sorted(allowed, key=lambda infra: allowed[infra])]
    if not kept:
        return task
    told = {}
    if any(want.count for want in wants):  # on spot it would choose other nodes without GPUs for it
        told["max_hourly_cost"] = -(-limit // int(task.get("num_nodes") or 1)) / MICROS
    if not left_out:
        return {**task, "resources": {**task["resources"], **told}}
    resources.pop("infra", None)
    return {**task, "resources": {**resources, **told, "ordered" if in_order else "any_of": kept}}


def least(profile: Profile, task: Task, root: Path | None = None) -> int | None:
    """The lowest limit with which ``to_price`` keeps a region, in micro-dollars per hour of all nodes; None
    where the catalogs do not say the price."""
    if not _has_catalog(profile):
        return None
    costs = [cost for want in want_of(task) for cost in _dearest(want, root).values() if cost is not None]
    return min(costs, default=None)


def _has_catalog(profile: Profile) -> bool:
    own = (profile.infra or "").split("/")[0].lower() in places.OWN
    return profile.backend != "local" and profile.price_per_hour is None and not own


def what_is_left(task: Task) -> str | None:
    """The regions of a task that ``to_price`` has narrowed, in a line; None for any other."""
    resources = task.get("resources") or {}
    ways = [way for way in resources.get("any_of") or resources.get("ordered") or () if "infra" in way]
    if not ways:
        return None
    # Once, however many types of GPU a region has.
    regions = {(way["infra"], bool(way.get("use_spot", resources.get("use_spot")))) for way in ways}
    spot = sum(is_spot for _, is_spot in regions)
    counts = ((spot, "on spot"), (len(regions) - spot, "on-demand"))
    return " and ".join(f"{n} region{'s' if n > 1 else ''} {market}" for n, market in counts if n)


def _dearest(want: Want, root: Path | None) -> dict[str, int | None]:
    """Micro-dollars per hour of all nodes by region (SkyPilot's infra); None of an auction: nobody knows."""
    try:
        found = prices.taken(want, root, by_region=True)
    except Refused:
        return {}
    market: Market = want.markets[0]
    result: dict[str, int | None] = {}
    for offer in found:
        paid = None if offer.floor else offer.total(market)
        if paid is None and not offer.floor:
            continue  # SkyPilot passes over it too
        zone = want.infra if want.infra and want.infra.count("/") == 2 else None
        infra = zone or "/".join(part for part in (offer.cloud, offer.region) if part != "-")
        before = result.get(infra, 0)
        result[infra] = None if paid is None or before is None else max(before, round(paid * MICROS))
    return result
