"""How often to save, for the least time lost: by what a checkpoint takes and how long nodes last.

J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974: sqrt(2 C M).
J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22(3), 2006:
the same to a higher order, for checkpoints that are not short against the time between failures.
"""

from __future__ import annotations

import math

AUTO = "auto"
"""How often to save, where that is what this module says."""


def interval(checkpoint: float, between: float) -> float:
    """Seconds of work between two checkpoints that take ``checkpoint`` seconds each, where nodes last for
    ``between`` seconds in the mean (both above 0): Daly's equation 37. Never above ``between``."""
    if checkpoint >= 2 * between:
        return between
    ratio = checkpoint / (2 * between)
    return math.sqrt(2 * checkpoint * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - checkpoint
