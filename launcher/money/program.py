"""The stochastic dynamic program behind the spot policy: what it costs to go on, from any situation.

Backward induction over ticks, for one zone beside on-demand. A situation is (state of the zone, mode, slack):
the mode is what is being paid for and how much of its restart overhead is left, and slack = ticks left -
work left. The deadline is a hard constraint, since on-demand can always finish.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.money.availability import STATES, UP, Floats

LATE = np.float32(1e7)
"""Cost of missing the deadline: more than any job."""


@dataclass(frozen=True)
class Table:
    """``later[slab[t]]`` holds the expected cost after tick t, by (zone state, mode, slack).

    Mode 0 is idle, 1 + k on-demand and 1 + m + k spot, each with k ticks of restart overhead left (m =
    max(restart, 1)). Costs are in $/h x ticks.
    """

    later: NDArray[np.float32]
    slab: NDArray[np.int64]
    restart: int


def modes(restart: int) -> int:
    """Number of overhead counts that a mode can have left once its first tick is over."""
    return max(restart, 1)


def solve(
    steps: Floats,
    cell: NDArray[np.int64],
    *,
    price: float,
    on_demand: float,
    work: int,
    restart: int,
    stride: int = 8,
) -> Table:
    """Solve for a job of ``work`` ticks with the deadline after ``len(cell)`` ticks (needs work <= that).

    ``steps`` are the zone's transition matrices, ``cell[t]`` says which holds at tick t. Every
    ``stride``-th tick is kept, and all of the last 48: costs change slowly but for the end.
    """
    ticks, m = len(cell), modes(restart)
    size = ticks - work + 1
    count = 1 + 2 * m
    matrices = steps.astype(np.float32)
    value = np.full((STATES, count, size), LATE, np.float32)
    value[..., 0] = 0.0
    kept = []
    down = ~UP
    for t in range(ticks - 1, -1, -1):
        later = (matrices[cell[t]] @ value.reshape(STATES, -1)).reshape(value.shape)
        if t % stride == 0 or t >= ticks - 48:
            kept.append(later)
        best = np.minimum(_slower(later[:, 0]), on_demand + _started(later, 1, restart))
        spot = price + _started(later, 1 + m, restart)
        best[UP] = np.minimum(best[UP], spot[UP])
        value = np.empty_like(later)
        value[:, 0] = best
        for first, rate in ((1, on_demand), (1 + m, price)):
            value[:, first] = np.minimum(best, rate + later[:, first])
            for k in range(1, m):
                value[:, first + k] = np.minimum(best, rate + _slower(later[:, first + k - 1]))
        value[down, 1 + m :] = best[down][:, None]
        value[..., ticks - t :] = 0.0
    kept.reverse()
    times = [t for t in range(ticks) if t % stride == 0 or t >= ticks - 48]
    slab = np.searchsorted(times, np.arange(ticks), side="right") - 1
    return Table(np.stack(kept), slab, restart)


def _slower(later: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values after a tick without work: one less slack."""
    out = np.empty_like(later)
    out[..., 0] = LATE
    out[..., 1:] = later[..., :-1]
    return out


def _started(later: NDArray[np.float32], first: int, restart: int) -> NDArray[np.float32]:
    """The values after the first tick of a stay, whose modes begin at ``first``."""
    if restart == 0:
        return later[:, first]
    return _slower(later[:, first + restart - 1])
