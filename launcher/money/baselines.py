"""The policies that ours is measured against, each a function of what it sees at a tick.

``Seen -> choice``: a zone's index, ``ON_DEMAND`` or ``IDLE``. They are written as their authors describe
them; where the text leaves room, the docstring says what was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

IDLE = -1
ON_DEMAND = -2


@dataclass(frozen=True)
class Seen:
    """One tick. ``current`` is IDLE when the stay was just preempted, and ``lost`` the zone that it was
    last preempted in; ``up`` and ``price`` are per zone; times in ticks."""

    tick: int
    deadline: int
    work: int
    left: int
    restart: int
    current: int
    lost: int | None
    up: tuple[bool, ...]
    price: tuple[float, ...]
    regions: tuple[str, ...]


Chooser = Callable[[Seen], int]


def cheapest(seen: Seen) -> int:
    """The cheapest zone that is up, or IDLE."""
    return min((z for z, up in enumerate(seen.up) if up), key=lambda z: (seen.price[z], z), default=IDLE)


def on_demand(seen: Seen) -> int:
    """On-demand from start to end."""
    return ON_DEMAND


def sticky(seen: Seen) -> int:
    """SkyPilot's ``any_of: [spot, on-demand]``: spot where it can be had, else on-demand to the end."""
    if seen.current != IDLE:
        return seen.current
    spot = cheapest(seen)
    return ON_DEMAND if spot == IDLE else spot


def greedy(seen: Seen) -> int:
    """Spot whenever it can be had, else wait; on-demand to the end once time left <= work left + 2d."""
    if seen.current >= 0:
        return seen.current
    if seen.current == ON_DEMAND or _net(seen):
        return ON_DEMAND
    return cheapest(seen)


def uniform_progress(seen: Seen) -> int:
    """Uniform Progress (Can't Be Late, NSDI'24): spot when idle and it can be had; on-demand when behind
    the line work x t / deadline, until ahead of it by twice the restart; safety net as in ``greedy``.

    Ahead of the line, an on-demand stay goes on until spot can be had: ending it to wait saves less than
    the next restart costs (the other reading, to idle at once, does worse in every zone).
    """
    if seen.current >= 0:
        return seen.current
    if _net(seen):
        return ON_DEMAND
    ahead = seen.work - seen.left - seen.tick * seen.work / seen.deadline
    spot = cheapest(seen)
    if seen.current == ON_DEMAND:
        return spot if spot != IDLE and ahead >= 2 * seen.restart else ON_DEMAND
    if spot != IDLE:
        return spot
    return ON_DEMAND if ahead < 0 else IDLE


def failover(seen: Seen) -> int:
    """SkyPilot's FAILOVER on spot: after a preemption the same zone first, then the cheapest; no deadline."""
    if seen.current != IDLE:
        return seen.current
    return seen.lost if seen.lost is not None and seen.up[seen.lost] else cheapest(seen)


def eager_next_region(seen: Seen) -> int:
    """SkyPilot's EAGER_NEXT_REGION on spot: after a preemption another region first; no deadline."""
    if seen.current != IDLE:
        return seen.current
    if seen.lost is not None:
        gone = seen.regions[seen.lost]
        away = [z for z, up in enumerate(seen.up) if up and seen.regions[z] != gone]
        if away:
            return min(away, key=lambda z: (seen.price[z], z))
    return cheapest(seen)


def _net(seen: Seen) -> bool:
    return seen.deadline - seen.tick <= seen.left + 2 * seen.restart


BASELINES: Mapping[str, Chooser] = {
    "on-demand": on_demand,
    "sticky": sticky,
    "greedy": greedy,
    "uniform-progress": uniform_progress,
    "failover": failover,
    "eager-next-region": eager_next_region,
}
