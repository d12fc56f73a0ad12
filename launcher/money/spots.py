"""How spot comes and goes in the places of a plan: by the shipped history, and by what runs saw of zones.

    reports in the store (``sightings``) + shipped history -> one model per region and kind of nodes that runs
    were in, and one for all other places

A plan's zones are a catalog's, which are not always the launches' (AWS has ids in the one and letters in the
other), so that the zones of a region are taken together. Each counts as it does for the recovery strategy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.artifacts.store import Store
from launcher.money import availability, forecast, sightings
from launcher.money.availability import Tally
from launcher.money.forecast import Spot
from launcher.money.offers import Offer
from launcher.money.sightings import Report

NEWEST = 20
"""So many launches are looked at: fewer than by the strategy, for a person waits for a plan."""
PATIENCE_S = 1.0
"""For reading them; twice as long for a store that does not answer."""
REGIONS = 3
"""Of a kind of nodes, so many regions get a model of their own, those that most is known of: each makes a
plan some 50 ms longer."""


@dataclass(frozen=True)
class Spots:
    """``near``: by region and kind (``sightings.kind``); ``other``: where nobody was with such nodes."""

    near: Mapping[tuple[str, str], Spot]
    other: Spot

    def of(self, offer: Offer) -> Spot:
        """How spot nodes of this offer come and go."""
        kind = sightings.kind(offer.gpu or offer.instance, offer.gpus, offer.nodes)
        return self.near.get((offer.region.lower(), kind), self.other)


def learn(store: Store, now: float) -> tuple[Spots | None, list[str]]:
    """What the newest launches saw before ``now`` (seconds since the epoch), None where that is nothing, and
    in words what could not be read. No plan waits long for it."""
    reports, trouble = sightings.read_soon(store, now, NEWEST, PATIENCE_S)
    return made_of(reports), trouble


def made_of(reports: Sequence[Report]) -> Spots | None:
    """The models by these reports, None without anything that was seen."""
    seen = sightings.tallies(reports)
    if not seen:
        return None
    shipped = availability.load_prior()
    weighed = sightings.joined(shipped, seen, {})
    groups: dict[tuple[str, str], list[str]] = {}
    for zone in seen:
        groups.setdefault((availability.region(zone), zone.partition("_")[2]), []).append(zone)
    most = sorted(groups, key=lambda group: (-sum(seen[zone].ticks for zone in groups[group]), group))
    kept = [one for n, one in enumerate(most) if sum(kind == one[1] for _, kind in most[:n]) < REGIONS]
    near = {}
    for region, kind in kept:
        zones = groups[region, kind]
        own = sum((shipped.get(zone, Tally()) + seen[zone] for zone in zones), Tally())
        rest = {zone: one for zone, one in weighed.items() if zone not in zones}
        name = f"{region}_{kind}"
        said = f" in {region}, by what {_launches(reports, zones)} saw there"
        near[region, kind] = forecast.spot_of({**rest, name: own}, name, said)
    every = _launches(reports, [*seen])
    return Spots(near, forecast.spot_of(weighed, "", f", as in recorded V100 zones and as {every} saw it"))


def _launches(reports: Sequence[Report], zones: Sequence[str]) -> str:
    count = sum(any(one.zone in zones for one in report.seen) for report in reports)
    return f"{count} launch{'es' if count != 1 else ''}"
