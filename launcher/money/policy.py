"""The spot policy: where to run now, and on which market. Pure functions, no clock, no I/O.

    plan = make_plan(job, zones, prior, start)      once per launch: 0.1 s, or 0.3 s with two pools; 0.3 s and
                                                    2.5 s with a budget that may not be enough
    memory = observe(memory, offers, now)           at each tick: what the market shows
    decide(plan, state, offers, now) -> Launch | Keep | Wait | Stop      well under a millisecond

Zones of about one price form a pool: a job in one of them loses little by moving to another, so what
counts is whether any is up. ``plan`` holds the expected cost of going on from any situation
(``program.solve``), with the state of the cheap pool and of the dear one. A decision compares the actions
that are open now by what they cost this tick and what is expected after it. Three rules stand above the
expectation, exactly and whatever the model believes:

1. *Deadline*: no action is taken after which on-demand could not finish in time, if the job still can.
2. *Budget*: no tick is begun that the budget cannot pay. While the budget could pay for finishing
   on-demand, that reserve is never broken into; below it, the job goes on as one with no more work than
   the money that is left is expected to pay for.
3. *Truth*: spot is launched only where it is offered.

The same functions drive the simulation (``nemo-sky simulate``) and production: a tick is the interval at
which the market is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import numpy as np
from numpy.typing import NDArray

from launcher.errors import Refused, UserError
from launcher.money import availability, program

ON_DEMAND = "on-demand"
"""The place name of on-demand, wherever it is (``State.place``, ``Launch.place``)."""
POOL_PRICE = 1.1
"""Zones up to this many times the price of the cheapest form the cheap pool."""


@dataclass(frozen=True)
class Job:
    """What is to be done. ``work``, ``deadline``, ``restart`` and ``tick`` in seconds, ``on_demand`` in $/h
    for all nodes, ``budget`` in dollars. ``restart`` is what each new stay pays before it works."""

    work: float
    deadline: float
    restart: float
    on_demand: float
    budget: float | None = None
    tick: float = availability.TICK

    def ticks(self, seconds: float) -> int:
        """Whole ticks that ``seconds`` need."""
        return math.ceil(seconds / self.tick - 1e-6)


@dataclass(frozen=True)
class Offer:
    """A zone's spot instances now: ``price`` in $/h for all nodes, and whether they can be had."""

    zone: str
    price: float
    up: bool


@dataclass(frozen=True)
class Memory:
    """Since when (seconds from launch) a zone has been up, or down."""

    up: bool
    since: float


@dataclass(frozen=True)
class State:
    """Where the job stands. ``place``: a zone, ``ON_DEMAND`` or None (idle, or just preempted);
    ``overhead``: seconds of restart left before it works; ``work`` left in seconds; ``spent`` in dollars."""

    work: float
    place: str | None = None
    overhead: float = 0.0
    spent: float = 0.0
    memory: Mapping[str, Memory] | None = None


@dataclass(frozen=True)
class Launch:
    """Begin a stay: spot in zone ``place``, or ``ON_DEMAND``."""

    place: str


@dataclass(frozen=True)
class Keep:
    """Stay where the job is."""


@dataclass(frozen=True)
class Wait:
    """Hold nothing until the next tick; with a stay running, save a checkpoint and end it."""


@dataclass(frozen=True)
class Stop:
    """End the run: ``reason`` is ``done``, ``budget reached`` or ``deadline``."""

    reason: str


Decision = Launch | Keep | Wait | Stop


@dataclass(frozen=True)
class Pool:
    """Zones of about one price. ``price``: $/h of the cheapest that is up, on average; ``lives``: per zone
    and age class, the ticks that it is expected to stay up."""

    zones: tuple[str, ...]
    price: float
    lives: Mapping[str, availability.Floats]


@dataclass(frozen=True)
class Plan:
    """What ``decide`` looks up; made by ``make_plan``. ``began`` is its time, in seconds from launch;
    ``columns`` are the slacks of its table, in ticks, from 0."""

    job: Job
    pools: tuple[Pool, ...]
    table: program.Table
    began: float
    ticks: int
    work: int
    restart: int
    columns: int


def make_plan(
    job: Job,
    zones: Sequence[str],
    prior: availability.Prior,
    start: datetime,
    *,
    prices: Mapping[str, float] | None = None,
    began: float = 0.0,
    work: float | None = None,
) -> Plan:
    """Solve the program from ``start`` (the time of day counts) to the deadline.

    ``prices`` are today's spot prices in $/h; a zone that is not in it costs what history says. A pool that
    ``prior`` does not know is taken to be up no more than its best zone. To plan again on the way, with more
    history, give ``began`` (seconds since launch; ``start`` is then that moment) and the ``work`` left.
    Raises UserError for a job that makes no sense, Refused for one that on-demand itself could not finish.
    """
    _check(job)
    ticks = math.floor((job.deadline - began) / job.tick + 1e-6)
    left, restart = job.ticks(job.work if work is None else work), job.ticks(job.restart)
    if ticks < left + restart:
        raise Refused(
            f"{left + restart} ticks of {job.tick:g} s are needed, the deadline leaves {max(ticks, 0)}",
            hint="allow more time, or split the work",
        )
    chains = {
        zone: availability.chain(prior, zone, gap=job.tick, default_price=job.on_demand / 3) for zone in zones
    }
    known = {zone: (prices or {}).get(zone, chains[zone].price) for zone in zones}
    pools, markets = [], []
    for group in pools_of(known):
        best = max(group, key=lambda zone: chains[zone].share)
        name = availability.pool(group)
        whole = availability.chain(prior, name, gap=job.tick) if name in prior else chains[best]
        shares = np.array([chains[zone].share for zone in group])
        turns = np.array([chains[zone].turn_down for zone in group])
        hop = max(float(turns @ shares / shares.sum()) - whole.turn_down, 0.0) if len(group) > 1 else 0.0
        lives = {zone: availability.lives(chains[zone]) for zone in group}
        pools.append(Pool(group, _cheapest_up(group, shares, known), lives))
        markets.append(program.Market(whole.steps, pools[-1].price, hop))
    cell = availability.cells(start, job.tick, ticks)
    # Short of money, it may have to be decided as if there were less work, which is more slack.
    scarce = job.budget is not None and job.budget < (left + restart) * job.on_demand * job.tick / 3600
    least = 0 if scarce else left
    table = program.solve(markets, cell, on_demand=job.on_demand, work=least, restart=restart)
    return Plan(job, tuple(pools), table, began, ticks, left, restart, ticks - least + 1)


def worn(price: float, life: float, restart: float) -> float:
    """$/h of work in a stay that lasts ``life`` ticks, of which the first ``restart`` do none."""
    return price * life / max(life - restart, 0.1)


def pools_of(prices: Mapping[str, float]) -> list[tuple[str, ...]]:
    """The zones within ``POOL_PRICE`` of the cheapest, and the rest if there is one, in order of name."""
    limit = min(prices.values()) * POOL_PRICE
    cheap = tuple(sorted(zone for zone, price in prices.items() if price <= limit))
    dear = tuple(sorted(zone for zone in prices if zone not in cheap))
    return [cheap, dear] if dear else [cheap]


def _cheapest_up(group: Sequence[str], shares: availability.Floats, prices: Mapping[str, float]) -> float:
    """The mean price of the cheapest zone that is up, as if zones were up independently."""
    paid, reached = 0.0, 1.0
    for zone, share in sorted(zip(group, shares.tolist(), strict=True), key=lambda one: prices[one[0]]):
        paid += reached * share * prices[zone]
        reached *= 1 - share
    return paid / (1 - reached)


def observe(memory: Mapping[str, Memory] | None, offers: Sequence[Offer], now: float) -> dict[str, Memory]:
    """The memory after looking at ``offers`` at ``now``; zones that are not offered are kept as they were."""
    known = dict(memory or {})
    for offer in offers:
        before = known.get(offer.zone)
        if before is None:
            known[offer.zone] = Memory(offer.up, now - availability.FIRST_AGE)
        elif before.up != offer.up:
            known[offer.zone] = Memory(offer.up, now)
    return known


def decide(plan: Plan, state: State, offers: Sequence[Offer], now: float) -> Decision:
    """What to do for the tick that begins at ``now`` (seconds since launch).

    ``state.memory`` has seen ``offers`` already; ``state.place`` is None when the stay was just preempted.
    """
    job = plan.job
    if state.work <= 1e-6:
        return Stop("done")
    if now >= job.deadline - 1e-6:
        return Stop("deadline")
    known = {zone for pool in plan.pools for zone in pool.zones}
    here = _Here(plan, state, {o.zone: o for o in offers if o.zone in known}, now)
    choice = here.cheapest()
    if job.budget is not None:
        affordable = here.room >= here.rate(choice) * job.tick / 3600 - 1e-9
        if not affordable or (choice is None and here.penniless):
            return Stop("budget reached")
    if choice == state.place:
        return Wait() if choice is None else Keep()
    return Wait() if choice is None else Launch(choice)


class _Here:
    """One situation, and what each action would cost. Lives for one decision."""

    def __init__(self, plan: Plan, state: State, offers: Mapping[str, Offer], now: float) -> None:
        self.plan, self.state, self.offers, self.now = plan, state, offers, now
        job = plan.job
        self.t = min(int((now - plan.began) / job.tick + 1e-6), plan.ticks - 1)
        self.work = job.ticks(state.work)
        self.overhead = job.ticks(state.overhead) if state.place else 0
        self.slack = plan.ticks - self.t - self.work
        # More slack than the plan began with (work done elsewhere) is worth no less than that much.
        self.column = min(self.slack, plan.columns - 1)
        self.up = [zone for zone, offer in offers.items() if offer.up]
        self.room = math.inf if job.budget is None else job.budget - state.spent
        self.tight = job.budget is not None and self._finish(self.overhead_of(ON_DEMAND)) > self.room

    def overhead_of(self, place: str | None) -> int:
        return self.overhead if place == self.state.place else self.plan.restart

    def rate(self, place: str | None) -> float:
        """$/h of ``place``."""
        if place is None:
            return 0.0
        return self.plan.job.on_demand if place == ON_DEMAND else self.offers[place].price

    def _finish(self, overhead: int, work: int | None = None) -> float:
        """Dollars of finishing on-demand, with ``overhead`` ticks before it works."""
        job = self.plan.job
        return ((self.work if work is None else work) + overhead) * job.on_demand * job.tick / 3600

    def allowed(self, place: str | None) -> bool:
        """Whether on-demand can still finish in time, and be paid, if this tick goes to ``place``; where the
        money cannot pay for that, whether a stay there would do any work."""
        if self.tight:
            return place is None or self._useful(place)
        pending = self.overhead_of(place) if place else 1
        work = self.work - (place is not None and pending == 0)
        slack = self.slack - (pending > 0)
        after = max(pending - 1, 0) if place == ON_DEMAND else self.plan.restart
        if work > 0 and slack < after:
            return False
        paid = self.rate(place) * self.plan.job.tick / 3600
        return self.room - paid >= (self._finish(after, work) if work else 0.0) - 1e-9

    def later(self) -> NDArray[np.float32]:
        """Expected costs after this tick, by mode and slack, with each pool as it is now."""
        table = self.plan.table
        states = [self.state_of(pool) for pool in self.plan.pools]
        here: NDArray[np.float32] = table.later[(table.slab[self.t], slice(None), *states)]
        return here

    def seen(self, zone: str) -> Memory:
        """Since when the zone has been up or down; one never offered is down."""
        first = Memory(zone in self.up, self.now - availability.FIRST_AGE)
        return (self.state.memory or {}).get(zone, first)

    def state_of(self, pool: Pool) -> int:
        """The chain's state of a pool: as old as its oldest zone that is up, or the last that went down."""
        known = [self.seen(zone) for zone in pool.zones]
        up = [one.since for one in known if one.up]
        since = min(up) if up else max(one.since for one in known)
        return availability.state_of(bool(up), self.now - since)

    def wear(self, zone: str, pool: Pool) -> float:
        """$/h of work in a new stay there, with its restart spread over the time that it may last."""
        age = availability.state_of(True, self.now - self.seen(zone).since) - availability.CLASSES
        rate, life = self.rate(zone), min(float(pool.lives[zone][age]), self.work + self.plan.restart)
        if rate > 0:  # the stay ends with the money at the latest
            life = min(life, self.room / (rate * self.plan.job.tick / 3600))
        return worn(rate, life, self.plan.restart)

    def cheapest(self) -> str | None:
        """The action of least expected cost among those that keep the deadline and, while it can pay for
        finishing on-demand, the budget. Where it cannot, and the rest is expected to cost more than there is,
        the action that would be best if the work were only so much as the money is expected to pay for."""
        plan, place = self.plan, self.state.place
        # Less work is more slack: the columns after this one.
        columns = np.arange(self.column, plan.columns if self.tight else self.column + 1)
        later = self.later()
        found: list[tuple[NDArray[np.float32], bool, str | None]] = []

        def add(where: str | None, rate: float, first: int) -> None:
            pending, levels = self.overhead_of(where) if where else 0, plan.table.levels
            level = min(max(pending - 1, 0), levels - 1)
            # Overhead that is no mode of its own is paid in slack at once.
            lost = (where is None or pending > 0) + (max(pending - 1, 0) - level)
            costs = np.full(len(columns), np.inf, np.float32)
            costs[columns >= lost] = rate + later[first + level, columns[columns >= lost] - lost]
            found.append((costs, where != place, where))

        for where, rate, first in ((None, 0.0, 0), (ON_DEMAND, plan.job.on_demand, 1)):
            if self.allowed(where):
                add(where, rate, first)
        for i, pool in enumerate(plan.pools):
            spots = [zone for zone in pool.zones if zone in self.up and self.allowed(zone)]
            options = [place] if place in spots else []
            if spots:
                options.append(min(spots, key=partial(self.wear, pool=pool)))
            for where in dict.fromkeys(options):
                add(where, pool.price, 1 + (i + 1) * plan.table.levels)
        if not found:
            return place if place is not None else ON_DEMAND
        least = np.min([costs for costs, _, _ in found], axis=0) * plan.job.tick / 3600
        paid = np.flatnonzero(least <= self.room)
        at = int(paid[0]) if len(paid) and self.tight else -1
        return min(found, key=lambda option: (option[0][at], option[1]))[2]

    def _useful(self, place: str) -> bool:
        """Whether a stay at ``place`` would still do some work before the deadline and within the budget."""
        ticks = self.overhead_of(place) + 1
        paid = ticks * self.rate(place) * self.plan.job.tick / 3600
        return self.plan.ticks - self.t >= ticks and self.room >= paid

    @property
    def penniless(self) -> bool:
        """Whether no stay anywhere could do any more work within the budget."""
        cheapest = min([self.plan.job.on_demand, *(o.price for o in self.offers.values())])
        return self.room < (self.plan.restart + 1) * cheapest * self.plan.job.tick / 3600


def _check(job: Job) -> None:
    for name in ("work", "deadline", "on_demand", "tick"):
        if not (math.isfinite(getattr(job, name)) and getattr(job, name) > 0):
            raise UserError(f"{name} must be above 0, not {getattr(job, name)!r}")
    if job.restart < 0 or (job.budget is not None and not job.budget > 0):
        raise UserError("restart must not be negative, and a budget must be above 0")
