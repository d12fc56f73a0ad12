"""How many vCPUs of a family of machines an Azure subscription may run in a region, asked through ``az``.

Two quotas hold at once: that of the family and ``cores``, "Total Regional vCPUs"; spot machines of all
families share one of their own, ``lowPriorityCores`` (Azure docs, "Virtual machine quotas" and "Increase
spot vCPU quotas"). ``az vm list-usage`` tells them with what is in use. The family of a size is in no name:
``az vm list-skus`` says it, for ``Standard_NC24ads_A100_v4`` ``StandardNCADSA100v4Family``. The two commands
write some families with other capitals or spaces.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.quotas import tool
from launcher.quotas.room import Need, Room, Told, Untold, tightest

ANSWER_S = 25.0
"""For all regions together: of ``az vm list-skus`` issues report up to 30 s without a region."""
REGIONS_ASKED = 8
"""Each is a process of its own, all at once."""
_HINT = (
    "it is asked through `az`: install it and `az login`, with the role Reader or the permissions "
    "Microsoft.Compute/locations/usages/read and Microsoft.Compute/skus/read"
)
_ALL, _SPOT = "cores", "lowprioritycores"
_ODD = "its answer does not name it"

Usage = Mapping[str, tuple[str, int, int]]
"""By folded name: the name for people, the limit, and how much of it is used; vCPUs."""


def told(needs: Sequence[Need], ask: tool.Ask = tool.ask, seconds: float = ANSWER_S) -> Told:
    """The quota of the first regions of ``needs``; it takes no longer than ``seconds``."""
    until = time.monotonic() + seconds
    needs = [need for need in needs if need.cpus]
    regions = list(dict.fromkeys(need.region for need in needs))
    asked = regions[:REGIONS_ASKED]
    where = _where_to_ask([need for need in needs if need.region in asked and need.market == "on-demand"])
    answers = ask([*map(_list_usage, asked), *(_list_skus(*item) for item in where.items())], until)
    untold: list[Untold] = []
    usages: dict[str, Usage] = {}
    for region, answer in zip(asked, answers, strict=False):
        usage = None if answer.why else usage_of(answer.value)
        if usage is None:
            untold.append(Untold(f"Azure does not tell the quotas in {region}: {answer.why or _ODD}", _HINT))
        else:
            usages[region] = usage
    families: dict[str, str] = {}
    unnamed = _ODD
    for answer in answers[len(asked) :]:
        families.update(families_of(answer.value))
        unnamed = answer.why or unnamed
    rooms = []
    for need in needs:
        if need.region not in usages:
            continue
        found = _room(need, usages[need.region], families.get(need.instance.lower()))
        if found is not None:
            rooms.append(found)
        else:
            why = f"Azure does not tell the quota of {need.instance} in {need.region}: {unnamed}"
            untold.append(Untold(why, _HINT, need.market))
    if left := len(regions) - len(asked):
        untold.append(Untold(f"{left} dearer regions were not asked", "--region asks about one"))
    return Told(tuple(rooms), tuple(dict.fromkeys(untold)))


def _where_to_ask(needs: Sequence[Need]) -> dict[str, list[str]]:
    """The region in which to ask for the family of each size: one will do, for a size is of one family."""
    first: dict[str, str] = {}
    for need in needs:
        first.setdefault(need.instance, need.region)
    result: dict[str, list[str]] = {}
    for instance, region in first.items():
        result.setdefault(region, []).append(instance)
    return result


def _list_usage(region: str) -> tool.Command:
    return ("az", "vm", "list-usage", "--location", region, "--output", "json")


def _list_skus(region: str, sizes: Sequence[str]) -> tool.Command:
    """``--all``: also sizes that this subscription may not use; that is no matter of quota."""
    chosen = " || ".join(f"name=='{size}'" for size in sizes)
    words = ("az", "vm", "list-skus", "--location", region, "--resource-type", "virtualMachines", "--all")
    return (*words, "--query", f"[?{chosen}].{{name: name, family: family}}", "--output", "json")


def _folded(name: str) -> str:
    return name.replace(" ", "").lower()


def usage_of(answer: Any) -> Usage | None:
    """What ``az vm list-usage`` answered; None for another form."""
    try:
        return {
            _folded(item["name"]["value"]): (
                item["name"].get("localizedValue") or item["name"]["value"],
                int(item["limit"]),
                int(item["currentValue"]),
            )
            for item in answer
        }
    except tool.UNREADABLE:
        return None


def families_of(answer: Any) -> dict[str, str]:
    """The family of each size, both folded, of what ``az vm list-skus`` answered; empty for another form."""
    try:
        return {item["name"].lower(): _folded(item["family"]) for item in answer}
    except tool.UNREADABLE:
        return {}


def _room(need: Need, usage: Usage, family: str | None) -> Room | None:
    """None where it cannot be told: the family is unknown and all of them together have room."""
    names = (_SPOT,) if need.market == "spot" else (_ALL, family or "")
    rooms = [_of(need, *usage[name]) for name in names if name in usage]
    if len(rooms) == len(names):
        return tightest(rooms)
    return next((room for room in rooms if not room.enough), None)


def _of(need: Need, name: str, limit: int, used: int) -> Room:
    return Room(
        region=need.region,
        market=need.market,
        instance=need.instance,
        needed=need.cpus,
        limit=limit,
        name=name,
        unit="vCPUs",
        more=f"ask Azure for more of {name!r} in {need.region} (portal: Quotas, Compute)",
        used=used,
    )
