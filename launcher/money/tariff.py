"""What a launch pays wherever it lands: a table of its places, kept in the store beside its journals.

Under a cap a launch is reserved at the price of the dearest place. Where it really went the node says, and
what that costs only the launcher's catalogs do: so they are written down at the launch, and at its end each
attempt gets the price of its own place, as it was at the launch.

    runs/RUN_ID/tariff.json    {launched, rates: [[cloud, region, zone, market, price, on_demand], ...]}

Prices are micro-dollars per hour for all nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.artifacts.store import Store
from launcher.clusters import Profile
from launcher.errors import Refused
from launcher.money import places, prices
from launcher.money.account import MICROS, Account, Entry, micros
from launcher.money.want import want_of


@dataclass(frozen=True)
class Rate:
    """One place on one market. ``on_demand`` is None where it is not sold so."""

    cloud: str
    region: str
    zone: str | None
    market: str
    price: int
    on_demand: int | None


@dataclass(frozen=True)
class Table:
    """The places of the launch at ``launched``, in milliseconds since the epoch."""

    launched: int
    rates: tuple[Rate, ...]


def of(profile: Profile, task: Mapping[str, Any], root: Path | None = None) -> list[Rate]:
    """Every place that SkyPilot may take the task to; none where the profile or nobody says the price."""
    if profile.price_per_hour is not None or profile.backend != "sky":
        return []
    if (profile.infra or "").split("/")[0].lower() in places.OWN:
        return []
    rates: dict[Rate, None] = {}
    for want in want_of(task):
        market = want.markets[0]
        try:
            found = prices.taken(want, root)
        except Refused:
            continue
        for offer in found:
            if not offer.floor and (paid := offer.total(market)) is not None:
                both = (round(paid * MICROS), micros(offer.total("on-demand")))
                rates[Rate(offer.cloud, offer.region, offer.zone, market, *both)] = None
    return list(rates)


def keep(store: Store, run: str, launched: int, rates: Sequence[Rate]) -> None:
    """Write the table of the launch at ``launched`` (milliseconds since the epoch). Raises StoreError."""
    values = {"launched": launched, "rates": [list(vars(rate).values()) for rate in rates]}
    store.put_bytes(_key(run), json.dumps(values, separators=(",", ":")).encode())


def read(store: Store, run: str) -> Table | None:
    """The table of the run's last launch; None where it left none. Raises StoreError."""
    data = store.get_bytes(_key(run))
    if data is None:
        return None
    values = json.loads(data)
    return Table(values["launched"], tuple(Rate(*cells) for cells in values["rates"]))


def apply(table: Table | None, held: Account, run: str) -> Account:
    """The account with the run's attempts at the prices of the places that they had. An attempt whose place
    or market is not known, or that an earlier launch began, stays as it was reserved; so do all without a
    table."""
    if table is None:
        return held
    entries = dict(held.entries)
    for entry in held.of(run):
        if entry.attempt is not None and entry.launched >= table.launched:
            entries[entry.key] = _priced(entry, table.rates)
    return replace(held, entries=entries)


def _priced(entry: Entry, rates: Sequence[Rate]) -> Entry:
    there = [rate for rate in rates if _is_at(rate, entry)]
    reserved = entry.price
    if reserved is None or not there:
        return entry
    # Several zones or types of GPU may be meant: between the cheapest and the dearest it is as reserved.
    nearest = min(there, key=lambda rate: abs(rate.price - reserved))
    low, high = min(rate.price for rate in there), max(rate.price for rate in there)
    return replace(entry, price=min(max(reserved, low), high), on_demand=nearest.on_demand)


def _is_at(rate: Rate, entry: Entry) -> bool:
    cloud = (entry.cloud or "").lower()
    if (rate.cloud, rate.region, rate.market) != (cloud, entry.region, entry.market):
        return False
    # AWS's catalog names zones by ids, its nodes by letters of the account's own order.
    return None in (rate.zone, entry.zone) or cloud == "aws" or rate.zone == entry.zone


def _key(run: str) -> str:
    return f"runs/{run}/tariff.json"
