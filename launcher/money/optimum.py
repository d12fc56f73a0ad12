"""The cheapest that anyone could have done, had they known the window: an exact dynamic program.

A state is (tick, current choice, slack), where slack = ticks left - work left. A working tick keeps the
slack, any other tick costs one of it, so the slack never grows and the table stays narrow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def optimum(
    up: NDArray[np.bool_],
    price: NDArray[np.float64],
    *,
    work: int,
    deadline: int,
    restart: int,
    on_demand: float,
) -> NDArray[np.float64]:
    """Least cost of each window, in (price unit) x ticks; infinite where the deadline cannot be met.

    ``up`` and ``price`` have shape (windows, zones, ticks); ``work``, ``deadline`` and ``restart`` are in
    ticks. The first ``restart`` ticks of every stay cost money and do no work. A zone's spot can be held
    only while it is up; nothing is paid for the ticks after the last work.
    """
    windows, zones, _ = up.shape
    slack = deadline - work
    if slack < 0:
        return np.full(windows, np.inf)
    # Choice 0 is on-demand: never down, always at one price.
    always = np.ones((windows, 1, deadline), bool)
    can = np.concatenate([always, up[:, :, :deadline]], axis=1)
    cost = np.concatenate([always * on_demand, price[:, :, :deadline]], axis=1)
    # What a stay's overhead costs from tick t on; infinite when the zone goes down in it.
    held = np.where(can, cost, np.inf)
    start = np.zeros((windows, zones + 1, deadline))
    for k in range(restart):
        start[:, :, : deadline - k] += held[:, :, k:]
        start[:, :, deadline - k :] = np.inf
    size = slack + 1
    # work left = deadline - t - s: at the deadline only slack 0 means that all is done.
    end = np.full((windows, zones + 1, size), np.inf)
    end[:, :, 0] = 0.0
    later = [end]  # later[k]: values at tick t + 1 + k of holding each choice past its overhead
    idle = end[:, 0]
    for t in range(deadline - 1, -1, -1):
        wait = np.full((windows, size), np.inf)
        wait[:, 1:] = idle[:, :-1]
        stay = held[:, :, t, None] + later[0]
        begun = np.full_like(stay, np.inf)
        if restart == 0:
            begun = stay
        elif len(later) >= restart and size > restart:
            begun[:, :, restart:] = later[restart - 1][:, :, : size - restart] + start[:, :, t, None]
        best = np.minimum(wait, begun.min(axis=1))
        best[:, deadline - t :] = 0.0
        now = np.minimum(stay, best[:, None])
        now[:, :, deadline - t :] = 0.0
        idle = best
        later = [now, *later[: max(restart - 1, 0)]]
    return np.asarray(idle[:, slack])
