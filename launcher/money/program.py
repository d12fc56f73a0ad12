"""The stochastic dynamic program behind the spot policy: what it costs to go on, from any situation.

Backward induction over ticks, for one or two pools of spot zones beside on-demand. A situation is (state of
each pool, mode, slack): the mode is what is being paid for and how much of its restart overhead is left, and
slack = ticks left - work left. The deadline is a hard constraint, since on-demand can always finish. Two
pools are taken to turn independently of each other, given the hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.money.availability import STATES, UP, Floats

Values = NDArray[np.float32]

LATE = np.float32(1e7)
"""Cost of missing the deadline: more than any job."""


@dataclass(frozen=True)
class Market:
    """A pool of zones: ``steps`` are its transition matrices per cell of the week, ``price`` its expected
    $/h, and ``hop`` the chance per tick that a stay ends although some zone of the pool is up."""

    steps: Floats
    price: float
    hop: float = 0.0


@dataclass(frozen=True)
class Table:
    """``later[slab[t]]`` holds the expected cost after tick t, by (mode, state of each pool, slack).

    Mode 0 is idle; then ``levels`` modes for on-demand and as many for each pool, with 0, 1, ... ticks of
    restart overhead left. Costs are in $/h x ticks.
    """

    later: Values
    slab: NDArray[np.int64]
    levels: int


def solve(
    pools: Sequence[Market], cell: NDArray[np.int64], *, on_demand: float, work: int, restart: int
) -> Table:
    """Solve for a job of ``work`` ticks with the deadline after ``len(cell)`` ticks (needs work <= that).

    ``cell[t]`` is the cell of the week at tick t. With one pool every count of overhead ticks is a mode of
    its own. With two (twelve times the states) there is one mode, and a stay pays its overhead in slack at
    once: a little too much where it ends within it. Of the ticks, every 8th is kept and all of the last 48
    (with two pools every 16th, and 32): costs change slowly but for the end.
    """
    ticks = len(cell)
    stride, last = (8, 48) if len(pools) == 1 else (16, 32)
    levels = max(restart, 1) if len(pools) == 1 else 1
    shape = (STATES,) * len(pools)
    rates = [on_demand, *(pool.price for pool in pools)]
    value = np.full((1 + len(rates) * levels, *shape, ticks - work + 1), LATE, np.float32)
    value[..., 0] = 0.0
    matrices = [pool.steps.astype(np.float32) for pool in pools]
    grid = np.indices(shape)  # the state of each pool, over all situations
    up = [UP[state] for state in grid]
    down = [~one for one in up]
    times = np.array([t for t in range(ticks) if t % stride == 0 or t >= ticks - last])
    slab = np.searchsorted(times, np.arange(ticks), side="right") - 1
    kept = np.empty((len(times), *value.shape), np.float32)
    for t in range(ticks - 1, -1, -1):
        later = _expected(value, [matrix[cell[t]] for matrix in matrices])
        if times[slab[t]] == t:
            kept[slab[t]] = later
        best = np.minimum(_slower(later[0]), on_demand + _started(later[1 : 1 + levels], restart))
        for i, pool in enumerate(pools):
            stay = later[1 + (i + 1) * levels :][:levels]
            best[up[i]] = np.minimum(best[up[i]], pool.price + _started(stay, restart)[up[i]])
        value = np.empty_like(later)
        value[0] = best
        for place, rate in enumerate(rates):
            first = 1 + place * levels
            value[first] = np.minimum(best, rate + later[first])
            for k in range(first + 1, first + levels):
                value[k] = np.minimum(best, rate + _slower(later[k - 1]))
        for i, pool in enumerate(pools):
            for k in range(1 + (i + 1) * levels, 1 + (i + 2) * levels):
                value[k] += np.float32(pool.hop) * (best - value[k])
                value[k][down[i]] = best[down[i]]
        value[..., ticks - t :] = 0.0
    return Table(kept, slab, levels)


def _expected(value: Values, steps: Sequence[Values]) -> Values:
    """The mean of ``value`` (mode, state of each pool, slack) over where a tick leads."""
    mean = value
    for i, matrix in enumerate(steps):
        mean = np.matmul(matrix, mean.reshape(len(value) * STATES**i, STATES, -1))
    out: Values = mean.reshape(value.shape)
    return out


def _slower(later: Values, lost: int = 1) -> Values:
    """The values with ``lost`` ticks less of slack, as after ticks without work."""
    out = np.empty_like(later)
    out[..., :lost] = LATE
    out[..., lost:] = later[..., :-lost]
    return out


def _started(modes: Values, restart: int) -> Values:
    """The values after the first tick of a stay whose modes, by overhead left, are ``modes``."""
    if restart == 0:
        first: Values = modes[0]
        return first
    return _slower(modes[-1], 1 + restart - len(modes))
