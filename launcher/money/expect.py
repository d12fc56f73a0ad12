"""What a launch is expected to take and to cost, for the gate, before anything is spent.

plan + checkpoint -> work that is left -> places x markets (``launcher.money.quote``) -> Expected

Nothing is invented: where the duration or every price is unknown there is no way, and the words say why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.errors import Refused
from launcher.money import estimate, forecast, past, quote
from launcher.money.account import MICROS
from launcher.money.gate import Expected, Way
from launcher.money.offers import NO_INSTANCE
from launcher.money.want import MARKETS, want_of

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.clusters import Profile
    from launcher.money.estimate import Work
    from launcher.money.forecast import Outlook
    from launcher.money.quote import Row
    from launcher.money.spots import Spots
    from launcher.plan import Plan

EVEN = 0.5
"""A way is in time when it is with this chance."""
CENT = MICROS // 100


@dataclass(frozen=True)
class Limits:
    """``deadline`` in hours from the launch, ``budget``: the dollars that the caps leave; None without."""

    deadline: float | None = None
    budget: float | None = None


def work_left(plan: Plan, store: Store, hours: float | None, step: int | None) -> tuple[Work, list[str]]:
    """The work of a plan after the checkpoint ``step`` (None: from the start), and in words what of the
    earlier runs in ``store`` could not be looked at. ``hours`` is a person's own word on all of it."""
    found, trouble = ([], []) if hours else past.past_of(store, plan.name, plan.config_name, plan.values)
    return estimate.from_step(estimate.work_of(plan.values, hours=hours, past=found), step), trouble


def expected(
    profile: Profile,
    task: Mapping[str, Any],
    work: Work,
    limits: Limits,
    spots: Spots | None = None,
) -> Expected:
    """What ``work`` takes and costs wherever the task may go, and on the other market, as what else would
    do. Spot nodes are given up for on-demand ones to meet a deadline only where the task leaves both open.
    ``spots`` is what is known of spot beside the shipped history."""
    try:
        found = quote.quote(profile, task, work, markets=MARKETS, spots=spots)
    except Refused as unknown:
        return Expected((), unknown.message)
    # A price of the profile is what is paid, whatever the market.
    priced = profile.price_per_hour is not None
    asked = set(MARKETS) if priced else {market for want in want_of(task) for market in want.markets}
    ways = [
        _way(row, row.market in asked, asked == set(MARKETS), limits)
        for row in found.rows
        if row.outlook is not None and row.offer.ask is None
    ]
    why = (row.estimate.source for row in found.rows if row.estimate.hours is None)
    return Expected(tuple(ways), "" if ways else next(why, "no place has a price"))


def _way(row: Row, asked: bool, rescue: bool, limits: Limits) -> Way:
    assert row.outlook is not None
    assert row.estimate.hours is not None
    seen, source = row.outlook, row.estimate.source
    where = row.offer.place if row.offer.instance == NO_INSTANCE else f"{row.offer.place} on {row.market}"
    on_demand = row.offer.total("on-demand") if rescue or row.market == "on-demand" else None
    spot = row.hourly if row.market == "spot" else None

    def under(budget: float | None) -> Outlook:
        return forecast.outlook(
            row.estimate.hours or 0.0,
            row.estimate.spread,
            spot=spot,
            on_demand=on_demand,
            deadline=limits.deadline,
            budget=budget,
            setup=row.setup,
            at=row.at,
        )

    alone = under(None)
    in_time = limits.deadline is None or (alone.chance or 0.0) >= EVEN or seen.elapsed <= limits.deadline
    shown = alone if in_time else seen
    chance = under(limits.budget).chance
    return Way(where, shown.elapsed, _micros(shown.needed), source, in_time, chance, asked)


def _micros(dollars: float) -> int:
    """Up to the next cent: what an estimate says of less is noise."""
    return math.ceil(dollars * 100 - 1e-6) * CENT
