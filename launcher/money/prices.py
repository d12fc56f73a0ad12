"""What a launch pays per hour, from SkyPilot's catalogs: at first, and at worst wherever it ends up.

    prices_of(profile, task)                   dollars per hour for all nodes, or None: unknown
    prices_of(profile, task, highest=True)     of the dearest place that SkyPilot may take them to

SkyPilot 0.14.1 chooses one instance type for each cloud and GPU, the one that is cheapest anywhere the task
may go (``optimizer._fill_in_launchable_resources`` keeps the first of
``get_feasible_launchable_resources``), and offers no other when that is nowhere to be had. In another place
this type may be dearer than what would be cheapest there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.clusters import Profile
from launcher.errors import Refused
from launcher.money import offers, places
from launcher.money.catalogs import DIGITS
from launcher.money.offers import Offer
from launcher.money.want import MARKETS, Market, Want, split_infra, want_of


def prices_of(
    profile: Profile, task: Mapping[str, Any], root: Path | None = None, *, highest: bool = False
) -> tuple[float | None, float | None]:
    """Dollars per hour for **all nodes** of ``task`` launched by ``profile``, and what the same nodes cost
    on-demand in that very place; None when it is not known.

    The profile's own ``price_per_hour`` (per node, 0 for one's own) comes first. Else it is the cheapest
    place that the task's ``infra`` and market leave open, in SkyPilot's catalogs: what SkyPilot tries first.
    With ``highest`` it is the dearest place to which it may fail over: reserve that where a cap must hold.
    Absent catalogs, Slurm and one's own Kubernetes give None. Takes a few milliseconds to a tenth of a
    second; imports neither sky nor numpy.
    """
    if profile.price_per_hour is not None:
        price = round(profile.price_per_hour * int(task.get("num_nodes") or 1), DIGITS)
        return price, None if profile.spot or profile.spot_first else price
    if profile.backend == "local" or (profile.infra or "").split("/")[0].lower() in places.OWN:
        return None, None
    totals: list[tuple[float, str, str, Want]] = []
    for want in want_of(task):
        try:
            found = taken(want, root)
        except Refused:
            continue
        market = want.markets[0]
        totals += [
            (paid, offer.place, offer.instance, want)
            for offer in found
            if not offer.floor and (paid := offer.total(market)) is not None
        ]
    if not totals:
        return None, None
    price, place, instance, want = (max if highest else min)(totals, key=lambda item: item[:3])
    if want.markets[0] == "on-demand":
        return price, price
    both, _ = offers.everywhere(replace(want, markets=MARKETS, infra=place), root)
    same = (offer for offer in both if (offer.place, offer.instance) == (place, instance))
    return price, next((offer.total("on-demand") for offer in same), None)


def taken(want: Want, root: Path | None = None, *, by_region: bool = False) -> list[Offer]:
    """Where SkyPilot may take ``want``, which names one market: every place of the instance types that it
    chooses. With ``by_region``, were it asked for each region by itself.

    Raises what ``offers.find`` does.
    """
    found, _ = offers.everywhere(replace(want, markets=MARKETS), root)
    _, _, zone = split_infra(want.infra)
    groups: dict[tuple[object, ...], list[Offer]] = {}
    for offer in found:
        if offer.ask is None:
            alone = offer.zone if zone else offer.region if by_region else None
            groups.setdefault((offer.cloud, offer.gpu, alone), []).append(offer)
    return [offer for group in groups.values() for offer in _of_chosen_type(group, want.markets[0])]


def _of_chosen_type(group: Sequence[Offer], market: Market) -> list[Offer]:
    # GCP's hosts, and nodes without GPUs, are chosen by their price on-demand whatever the market.
    by_on_demand = group[0].cloud == "gcp" or not group[0].gpus
    for by in ("on-demand", market) if by_on_demand else (market,):
        if priced := [(paid, offer.instance) for offer in group if (paid := offer.price(by)) is not None]:
            cheapest, _ = min(priced)
            chosen = {instance for paid, instance in priced if paid == cheapest}
            return [offer for offer in group if offer.instance in chosen]
    return []
