"""What a run would pay and whether it would be done in time, on a market that comes and goes.

Spot nodes appear and vanish as the zones in the spot policy's history did (``availability``), which has V100
zones of AWS, and as runs saw it in the same region (``launcher.money.spots``). The run takes spot when it is
there, waits when it is not, and goes on-demand to the end once only that meets the deadline
(``baselines.greedy``); our policy does no worse. Time of day is left out. Every figure is a mean over
``PATHS`` random histories that are the same in every call.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from launcher.money import availability
from launcher.money.availability import CLASSES, STATES, TICK, UP, Floats, Prior

PATHS = 250
TICKS = 400
"""A longer time is cut into so many ticks, and turns of the market in between are not seen."""
RESTART_HOURS = 0.2
"""Paid at each start before any work: nodes come up, set-up, reading the checkpoint, redoing lost steps."""
PATIENCE = 8.0
"""Without a deadline a run on spot is followed for so many times its work."""

FOREVER = 100_000  # ticks, after which a zone's state no longer depends on the first


@dataclass(frozen=True, eq=False)
class Spot:
    """How spot nodes come and go in a place: ``steps`` (STATES, STATES) are the chances of the states of
    ``availability`` to follow each other in a tick, the mean over the week. ``known`` says from what, in
    words that follow a share of the time. One that is itself stands for no other: caches go by that."""

    steps: Floats
    known: str

    @functools.cached_property
    def share(self) -> float:
        """How much of the time nodes are there."""
        return float(self.lasting[CLASSES:].sum())

    @functools.cached_property
    def lasting(self) -> Floats:
        """(STATES,): how likely each state is at a moment of which nothing is known."""
        return np.asarray(np.linalg.matrix_power(self.steps, FOREVER)[0])


def spot_of(prior: Prior, zone: str, known: str) -> Spot:
    """The model of ``zone`` in a prior; of one that nothing is known of with ``zone`` empty."""
    weights = np.repeat([5 / 7, 2 / 7], 8) / 8
    return Spot(np.asarray(np.tensordot(weights, availability.chain(prior, zone).steps, axes=1)), known)


@functools.cache
def shipped() -> Spot:
    """By the history that comes with nemo-sky alone."""
    return spot_of(availability.load_prior(), "", ", as in recorded V100 zones")


@dataclass(frozen=True)
class Paths:
    """One entry per random history: hours paid on spot and on-demand, hours from start to end, and whether
    the work was done."""

    spot: Floats
    on_demand: Floats
    elapsed: Floats
    done: Floats


@dataclass(frozen=True)
class Outlook:
    """``cost``: mean dollars spent; ``worst``: what cannot be exceeded, None without a bound; ``chance`` of
    being done by the deadline and within the budget, None without either; ``elapsed``: mean hours from start
    to end; ``needed``: mean dollars to finish, were there no budget."""

    cost: float
    worst: float | None
    chance: float | None
    elapsed: float
    needed: float


def outlook(
    hours: float,
    spread: float,
    *,
    spot: float | None,
    on_demand: float | None,
    deadline: float | None = None,
    budget: float | None = None,
    setup: float = RESTART_HOURS,
    at: Spot | None = None,
) -> Outlook:
    """The outlook of ``hours`` of work at prices in $/h for all nodes; with ``spot`` None, on-demand only.
    ``at`` says how spot comes and goes there, None: as in the shipped history.

    ``deadline`` in hours, ``budget`` in dollars. At least one price is needed. A run is stopped at its
    deadline and at its budget, so neither can be passed. ``setup``: hours until nodes that stay begin.
    """
    if spot is None:
        paths = steady(hours, spread, setup)
    else:
        rescue = on_demand is not None and deadline is not None
        paths = market(hours, spread, deadline, rescue=rescue, at=at or shipped())
    costs = paths.spot * (spot or 0.0) + paths.on_demand * (on_demand or 0.0)
    finished = paths.done > 0
    fine = finished
    if deadline is not None:
        fine = fine & (paths.elapsed <= deadline + 1e-9)
    if budget is not None:
        fine = fine & (costs <= budget)
    worst = _bound(hours, spread, setup, spot=spot, on_demand=on_demand, deadline=deadline, budget=budget)
    shown = finished if finished.any() else np.ones(PATHS, bool)
    return Outlook(
        cost=float(np.minimum(costs, math.inf if worst is None else worst)[shown].mean()),
        worst=worst,
        chance=None if deadline is None and budget is None else float(fine.mean()),
        elapsed=float(paths.elapsed[shown].mean()),
        needed=float(costs[shown].mean()),
    )


def _bound(
    hours: float,
    spread: float,
    setup: float,
    *,
    spot: float | None,
    on_demand: float | None,
    deadline: float | None,
    budget: float | None,
) -> float | None:
    """On spot alone nothing but a deadline or a budget bounds the cost; on-demand, 19 of 20 durations do."""
    bounds = [] if budget is None else [budget]
    if deadline is not None:
        bounds.append(deadline * max(spot or 0.0, on_demand or 0.0))
    if spot is None and on_demand is not None:
        bounds.append((hours * math.exp(1.645 * spread) + setup) * on_demand)
    return min(bounds, default=None)


def steady(hours: float, spread: float, setup: float = RESTART_HOURS) -> Paths:
    """Nodes that stay: one start, then work."""
    paid = hours * _factors(spread) + setup
    return Paths(np.zeros(PATHS), paid, paid, np.ones(PATHS))


@functools.cache
def market(hours: float, spread: float, deadline: float | None, *, rescue: bool, at: Spot) -> Paths:
    """Spot when it is there. With ``rescue``, on-demand to the end once only that meets the deadline."""
    horizon = deadline if deadline is not None else PATIENCE * hours + 24 * RESTART_HOURS
    step = max(1, math.ceil(horizon * 3600 / TICK / TICKS))
    tick = step * TICK / 3600  # hours
    ticks = max(1, int(horizon / tick + 1e-9))
    left, restart = hours * _factors(spread) / tick, RESTART_HOURS / tick
    overhead, elapsed = np.zeros(PATHS), np.zeros(PATHS)
    place = np.zeros(PATHS, int)  # 0 idle, 1 spot, 2 on-demand
    paid = np.zeros((3, PATHS))
    rows = np.arange(PATHS)
    for now, up in enumerate(_histories(step, at)[:ticks]):
        working = left > 0
        if not working.any():
            break
        before, place = place, up.astype(int)
        if rescue:
            # The last tick at which waiting would still leave time to start on-demand and finish.
            place[(before == 2) | (ticks - now - 1 <= left + 2 * restart)] = 2
        place[~working] = 0
        held = place > 0
        overhead = np.where(held & (place != before), restart, overhead)
        waited = np.minimum(overhead, 1.0) * held
        done = np.minimum(1.0 - waited, left) * held
        used = np.where(held & (done >= left), waited + done, 1.0) * working
        overhead, left = overhead - waited, left - done
        paid[place, rows] += used * held
        elapsed += used
    return Paths(paid[1] * tick, paid[2] * tick, elapsed * tick, (left <= 0).astype(float))


@functools.cache
def _histories(step: int, at: Spot) -> NDArray[np.bool_]:
    """(TICKS, PATHS): whether spot nodes are there, in ticks of ``step`` x ``availability.TICK``."""
    moves = np.cumsum(np.linalg.matrix_power(at.steps, step), axis=1)
    random = np.random.default_rng(20261121).random((TICKS + 1, PATHS))
    state = np.minimum(np.searchsorted(np.cumsum(at.lasting), random[0]), STATES - 1)
    up = np.empty((TICKS, PATHS), bool)
    for now in range(TICKS):
        up[now] = UP[state]
        state = np.minimum((moves[state] < random[now + 1][:, None]).sum(axis=1), STATES - 1)
    return up


def assumes(rescue: bool, at: Iterable[Spot]) -> str:
    """What the figures of spot in the places ``at`` rest on, in a line for people."""
    shares = ", ".join(f"{one.share:.0%} of the time{one.known}" for one in dict.fromkeys(at))
    ending = (
        "on-demand to the end when only that meets the deadline" if rescue else "waiting when there is none"
    )
    return f"spot is assumed to be there {shares}; {ending}; each start costs {RESTART_HOURS * 60:.0f} min"


def _factors(spread: float) -> Floats:
    """How much longer than estimated each history takes: evenly spread over the quantiles, then shuffled."""
    quantiles = [NormalDist().inv_cdf((i + 0.5) / PATHS) for i in range(PATHS)]
    shuffled = np.random.default_rng(7).permutation(quantiles)
    return np.asarray(np.exp(spread * shuffled))
