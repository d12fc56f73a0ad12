"""A plan's price: every place that can run a stage, for how long, at what cost, and with what chance.

task -> offers (places and prices) x estimate (hours) x forecast (cost, chance) -> Quote
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.clusters import Profile
from launcher.errors import Refused
from launcher.money import amounts, estimate, forecast, offers
from launcher.money.estimate import Estimate, Work
from launcher.money.forecast import Outlook, Spot
from launcher.money.offers import Offer
from launcher.money.want import MARKETS, Market, Want, want_of

if TYPE_CHECKING:
    from launcher.money.spots import Spots

SORTS = ("cost", "hours", "price", "place")
LIKELY = 0.9
"""The best row is the cheapest of those that finish in time and budget with at least this chance."""


@dataclass(frozen=True)
class Row:
    """One place on one market. ``hourly`` is dollars per hour for all nodes; ``outlook`` is None where the
    price or the duration is unknown, or the price is only a lowest bid. ``setup`` is in hours, ``at`` how
    spot comes and goes there. ``rescue``: a run on spot goes on-demand where only that meets the deadline."""

    offer: Offer
    market: Market
    hourly: float | None
    estimate: Estimate
    outlook: Outlook | None
    setup: float
    at: Spot
    rescue: bool = False

    @property
    def launch(self) -> str:
        """What a launch calls it: only of spot first are runs on spot allowed to go on-demand."""
        return "spot-first" if self.rescue else self.market


@dataclass(frozen=True)
class Quote:
    """``left_out``: why a cloud has no row."""

    nodes: int
    gpus: str
    work: Work
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]
    best: Row | None

    @property
    def least(self) -> float | None:
        """Mean dollars to finish where that costs least; None when nothing is known."""
        known = [row.outlook.needed for row in self.rows if row.outlook and row.offer.ask is None]
        return min(known, default=None)


def quote(
    profile: Profile,
    task: Mapping[str, Any],
    work: Work,
    *,
    root: Path | None = None,
    gpu_gb: int | None = None,
    markets: Sequence[Market] = MARKETS,
    deadline: float | None = None,
    budget: float | None = None,
    spots: Spots | None = None,
) -> Quote:
    """The quote for ``task`` on ``profile``. ``deadline`` in hours, ``budget`` in dollars; ``root`` is the
    folder of the catalogs, ``gpu_gb`` the least memory of a GPU; ``spots`` is what is known of spot beside
    the shipped history. Where both ``markets`` are asked for, on-demand nodes meet a deadline that spot alone
    would miss.

    Raises Refused, saying what is known without prices, when there is no catalog to look in.
    """
    wants = want_of(task, gpu_gb=gpu_gb)
    kinds = tuple(dict.fromkeys(kind for one in wants for kind in one.gpus))
    both = MARKETS if kinds or "spot" in markets else ("on-demand",)
    want = replace(wants[0], gpus=kinds, markets=both)
    gpus = f"{' or '.join(want.gpus)}:{want.count}" if want.count else "no GPUs"
    found: list[Offer] = []
    left_out: dict[str, str] = {}
    if (own := offers.by_profile(profile, want)) is not None:
        found.append(own)
    else:
        try:
            seen = offers.find(want, root)
        except Refused as missing:
            rough = estimate.estimate(work, *_size(want))
            raise Refused(
                f"{missing.message}; without prices: {_rough(want, gpus, rough)}", hint=missing.hint
            ) from None
        found += seen.offers
        left_out |= seen.left_out
    # On this machine nothing is provisioned.
    setup = forecast.RESTART_HOURS if profile.backend == "sky" else 0.0
    rescued = deadline is not None and set(markets) == set(MARKETS)
    rows = [
        _row(
            offer,
            market,
            work,
            setup,
            spots.of(offer) if spots else forecast.shipped(),
            rescue=rescued and market == "spot" and offer.on_demand is not None,
            deadline=deadline,
            budget=budget,
        )
        for offer in found
        for market in markets
        if offer.price(market) is not None or (market == markets[0] and offer.unpriced)
    ]
    return Quote(want.nodes, gpus, work, tuple(sort(rows, "cost")), left_out, _best(rows))


def sort(rows: Iterable[Row], by: str) -> list[Row]:
    """Rows by one of ``SORTS``; what is unknown comes last."""

    def key(row: Row) -> tuple[object, ...]:
        place = (row.offer.place, row.market)
        value = {
            "cost": row.outlook.cost if row.outlook else None,
            "hours": row.outlook.elapsed if row.outlook else None,
            "price": row.hourly,
            "place": 0.0,
        }[by]
        return value is None, value or 0.0, (row.hourly is None, row.hourly or 0.0), place

    return sorted(rows, key=key) if by != "place" else sorted(rows, key=lambda r: (r.offer.place, r.market))


def _row(
    offer: Offer,
    market: Market,
    work: Work,
    setup: float,
    at: Spot,
    *,
    rescue: bool,
    deadline: float | None,
    budget: float | None,
) -> Row:
    guess = estimate.estimate(work, offer.gpu, offer.gpus * offer.nodes, offer.nodes, offer.instance)
    hourly = offer.total(market)
    outlook = None
    if hourly is not None and guess.hours is not None and not offer.floor:
        outlook = forecast.outlook(
            guess.hours,
            guess.spread,
            spot=hourly if market == "spot" else None,
            on_demand=offer.total("on-demand") if market == "on-demand" or rescue else None,
            deadline=deadline,
            budget=budget,
            setup=setup,
            at=at,
        )
    return Row(offer, market, hourly, guess, outlook, setup, at, rescue)


def _best(rows: Sequence[Row]) -> Row | None:
    known = [(row.outlook, row) for row in rows if row.outlook and row.offer.ask is None]
    likely = [pair for pair in known if pair[0].chance is None or pair[0].chance >= LIKELY]
    if likely:
        return min(likely, key=lambda pair: (pair[0].cost, pair[1].offer.place))[1]
    return max(known, key=lambda pair: (pair[0].chance or 0.0, -pair[0].cost), default=(None, None))[1]


def _size(want: Want) -> tuple[str | None, int, int]:
    return (want.gpus[0] if want.count else None), want.count * want.nodes, want.nodes


def _rough(want: Want, gpus: str, guess: Estimate) -> str:
    time = (
        "a time not known" if guess.hours is None else f"about {amounts.format_duration(guess.hours * 3600)}"
    )
    return f"{want.nodes} node{'s' if want.nodes > 1 else ''} with {gpus} for {time} ({guess.source})"
