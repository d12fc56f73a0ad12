"""Replay of recorded spot markets under a policy, on a virtual clock, and what it cost.

At each tick a policy sees which zones are up and at what price, then chooses: idle, on-demand, or a zone
that is up. A stay is consecutive ticks with one choice; its first ``restart`` ticks are paid and do no
work. A stay in a zone that goes down has ended. Costs are in dollars.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from launcher.errors import Refused, UserError
from launcher.money import availability, policy
from launcher.money.baselines import BASELINES, IDLE, ON_DEMAND, Chooser, Seen
from launcher.money.optimum import optimum
from launcher.money.traces import Market, Window

OURS = "nemo-sky"
OPTIMUM = "optimum"


@dataclass(frozen=True)
class Setting:
    """A job to replay: ``work``, ``deadline`` and ``restart`` in ticks of ``gap`` seconds, ``on_demand`` in
    $/h, ``budget`` in dollars."""

    work: int
    deadline: int
    restart: int
    gap: float
    on_demand: float
    budget: float | None = None

    @property
    def on_demand_cost(self) -> float:
        """Dollars of the work alone on-demand: what costs are a share of."""
        return self.work * self.on_demand * self.gap / 3600


@dataclass(frozen=True)
class Replay:
    """One window under one policy. ``choices``: per tick up to the end, IDLE, ON_DEMAND or a zone's index;
    ``done``: ticks of work; ``slowest``: the longest decision, in seconds."""

    cost: float
    done: int
    finished: bool
    stays: int
    choices: tuple[int, ...]
    slowest: float = 0.0


def setting(
    market: Market, *, work: float, deadline: float, restart: float, on_demand: float, budget: float | None
) -> Setting:
    """Round seconds to the market's ticks; the deadline is at most the shortest window.

    Raises UserError when on-demand itself could not finish in time.
    """
    gap = market.gap
    end = min(round(deadline / gap), *(w.ticks for w in market.windows), 10**9)
    found = Setting(max(round(work / gap), 1), end, round(restart / gap), gap, on_demand, budget)
    if found.work + found.restart > end:
        hours = (found.work + found.restart) * gap / 3600
        raise UserError(
            f"work and a restart take {hours:.1f} h, the deadline (or the window) is {end * gap / 3600:.1f} h"
        )
    return found


def replay(window: Window, zones: Sequence[str], job: Setting, choose: Chooser) -> Replay:
    """Drive ``choose`` through one window. A choice of a zone that is down is an error of the policy."""
    regions = tuple(availability.region(zone) for zone in zones)
    cost, left, current, overhead, stays, slowest = 0.0, job.work, IDLE, 0, 0, 0.0
    lost: int | None = None
    choices: list[int] = []
    for tick in range(job.deadline):
        if left == 0:
            break
        up = tuple(window.up[:, tick].tolist())
        price = tuple(window.price[:, tick].tolist())
        if current >= 0 and not up[current]:
            lost, current, overhead = current, IDLE, 0
        seen = Seen(
            tick, job.deadline, job.work, left, job.restart, current, lost, up, price, regions
        )  # fmt: skip
        began = time.perf_counter()
        choice = choose(seen)
        slowest = max(slowest, time.perf_counter() - began)
        if choice >= 0 and not up[choice]:
            raise ValueError(f"tick {tick}: {zones[choice]} was chosen but is down")
        paid = 0.0 if choice == IDLE else job.on_demand if choice == ON_DEMAND else price[choice]
        paid *= job.gap / 3600
        if job.budget is not None and cost + paid > job.budget + 1e-9:
            break  # the guard of every policy: a tick that cannot be paid is not begun
        if choice != current:
            current, overhead = choice, 0 if choice == IDLE else job.restart
            stays += choice != IDLE
        choices.append(choice)
        cost += paid
        if current != IDLE:
            overhead, left = (overhead - 1, left) if overhead else (0, left - 1)
    return Replay(cost, job.work - left, left == 0, stays, tuple(choices), slowest)


def ours(
    window: Window,
    zones: Sequence[str],
    job: Setting,
    prior: availability.Prior,
    *,
    replan: int | None = None,
    plan: policy.Plan | None = None,
) -> Chooser:
    """Our policy as a chooser for one window: plans at its start (unless ``plan`` is given), then sees only
    what has happened.

    With ``replan`` (ticks), it plans again that often, having added what it saw to ``prior``.
    """
    task = policy.Job(
        work=job.work * job.gap,
        deadline=job.deadline * job.gap,
        restart=job.restart * job.gap,
        on_demand=job.on_demand,
        budget=job.budget,
        tick=job.gap,
    )
    memory: dict[str, policy.Memory] = {}
    past: list[Seen] = []
    spent, overhead = 0.0, 0

    def plan_at(tick: int, left: int, prices: Sequence[float]) -> policy.Plan:
        now = tick * job.gap
        return policy.make_plan(
            task,
            zones,
            learned(prior, zones, past, window.start, job.gap),
            window.start + timedelta(seconds=now),
            prices=dict(zip(zones, prices, strict=True)),
            began=now,
            work=left * job.gap,
        )

    made = plan or plan_at(0, job.work, window.price[:, 0].tolist())

    def choose(seen: Seen) -> int:
        nonlocal memory, made, spent, overhead
        now = seen.tick * job.gap
        if replan and seen.tick and seen.tick % replan == 0 and seen.left > job.restart:
            # Too late for a new plan, the old one still ends the job in time.
            with contextlib.suppress(Refused):
                made = plan_at(seen.tick, seen.left, seen.price)
        if replan:
            past.append(seen)
        if seen.current == IDLE:
            overhead = 0
        offers = [
            policy.Offer(zone, seen.price[z], seen.up[z]) for z, zone in enumerate(zones)
        ]  # fmt: skip
        memory = policy.observe(memory, offers, now)
        place = None if seen.current == IDLE else _place(seen.current, zones)
        state = policy.State(seen.left * job.gap, place, overhead * job.gap, spent, memory)
        decision = policy.decide(made, state, offers, now)
        match decision:
            case policy.Launch(place):
                choice = ON_DEMAND if place == policy.ON_DEMAND else zones.index(place)
            case policy.Keep():
                choice = seen.current
            case _:
                choice = IDLE
        if choice != seen.current:
            overhead = 0 if choice == IDLE else job.restart
        overhead = max(overhead - 1, 0)
        paid = 0.0 if choice == IDLE else job.on_demand if choice == ON_DEMAND else seen.price[choice]
        spent += paid * job.gap / 3600
        return choice

    return choose


def learned(
    prior: availability.Prior, zones: Sequence[str], past: Sequence[Seen], start: datetime, gap: float
) -> dict[str, availability.Tally]:
    """``prior`` with what was seen of each zone since ``start``."""
    known = dict(prior)
    for z, zone in enumerate(zones if past else ()):
        up = np.array([seen.up[z] for seen in past], bool)
        price = np.array([seen.price[z] for seen in past], float)
        known[zone] = known.get(zone, availability.Tally()) + availability.tally(up, price, start, gap)
    return known


def _place(choice: int, zones: Sequence[str]) -> str:
    return policy.ON_DEMAND if choice == ON_DEMAND else zones[choice]


def optima(market: Market, job: Setting) -> list[float]:
    """The clairvoyant optimum of each window, in dollars (no budget: the least that finishing costs)."""
    costs = optimum(
        np.stack([w.up[:, : job.deadline] for w in market.windows]),
        np.stack([w.price[:, : job.deadline] for w in market.windows]),
        work=job.work,
        deadline=job.deadline,
        restart=job.restart,
        on_demand=job.on_demand,
    )
    return [float(c) * job.gap / 3600 for c in costs]


def history(market: Market) -> list[dict[str, availability.Tally]]:
    """What each window would teach, by zone, and by each pool that a job over all zones would look at."""
    groups = {(zone,) for zone in market.zones} | pools(market)
    found = []
    for w in market.windows:
        known = {}
        for group in groups:
            rows = [market.zones.index(zone) for zone in group]
            up, price = np.any(w.up[rows], axis=0), w.price[rows].min(axis=0)
            known[availability.pool(group)] = availability.tally(up, price, w.start, market.gap)
        found.append(known)
    return found


def pools(market: Market) -> set[tuple[str, ...]]:
    """The pools that a job over all zones would look at, by the prices at the start of each window."""
    return {
        group
        for w in market.windows
        for group in policy.pools_of(dict(zip(market.zones, w.price[:, 0].tolist(), strict=True)))
    }


def overlaps(one: Window, other: Window, gap: float) -> bool:
    """Whether two windows share any time: one then gives away the other's future."""
    apart = abs((_utc(one.start) - _utc(other.start)).total_seconds())
    return apart < max(one.ticks, other.ticks) * gap


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def held_out(
    market: Market, past: Sequence[dict[str, availability.Tally]], index: int, without: Sequence[str] = ()
) -> dict[str, availability.Tally]:
    """The history to test window ``index`` with: of the windows that share no time with it, and of all
    zones but ``without``."""
    target = market.windows[index]
    known: dict[str, availability.Tally] = {}
    for other, tallies in zip(market.windows, past, strict=True):
        if overlaps(target, other, market.gap):
            continue
        for zone, one in tallies.items():
            if not set(zone.split("|")) & set(without):
                known[zone] = known.get(zone, availability.Tally()) + one
    return known


def run(
    market: Market,
    job: Setting,
    name: str,
    prior: Callable[[int], availability.Prior],
    *,
    replan: int | None = None,
    progress: Callable[[], Any] = lambda: None,
) -> list[Replay]:
    """Every window under policy ``name``; ``prior(i)`` is the history that ours may use for window i."""
    results = []
    for i, window in enumerate(market.windows):
        choose = ours(window, market.zones, job, prior(i), replan=replan) if name == OURS else BASELINES[name]
        results.append(replay(window, market.zones, job, choose))
        progress()
    return results


def trace(market: Market, replays: Sequence[Replay], ticks: int) -> dict[str, Any]:
    """What was chosen per window and tick: ``-`` idle, ``o`` on-demand, or the zone's index as text."""
    windows = []
    for one in replays:
        signs = ["-" if c == IDLE else "o" if c == ON_DEMAND else str(c) for c in one.choices]
        windows.append({"choice": signs + ["-"] * (ticks - len(signs))})
    return {"zones": list(market.zones), "windows": windows}


def pooled(past: Sequence[dict[str, availability.Tally]]) -> dict[str, availability.Tally]:
    """All windows' history together."""
    known: dict[str, availability.Tally] = {}
    for tallies in past:
        for zone, one in tallies.items():
            known[zone] = known.get(zone, availability.Tally()) + one
    return known
