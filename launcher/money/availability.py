"""What is known of spot zones: tallies of their history, and the Markov chain that a plan is made from.

A zone is up (an instance can be had) or down, for some time: the *age*. Up-times are heavy-tailed (a zone
that has been up for a day will likely stay up; one up for ten minutes will likely not), so the chain's
states are (down | up, age in six classes). How often a zone turns also depends on the hour and on the
weekend, by factors that zones of one region share. Both are counted from history: of the zone itself
where there is any, and of all others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.errors import UserError

Floats = NDArray[np.float64]

TICK = 195.0
"""Seconds per tick of the shipped history (SkyPilot's spot traces)."""
AGES = (0.0, 585.0, 1950.0, 5850.0, 19500.0, 78000.0)
"""Lower edges of the age classes, in seconds: 10 min, 33 min, 1.6 h, 5.4 h, 22 h."""
CLASSES = len(AGES)
FIRST_AGE = 7200.0
"""Age, in seconds, that is taken for a zone's state when it is first looked at: it has likely lasted a while,
since long stays fill more of the time than short ones."""
STATES = 2 * CLASSES
CELLS = 16
"""Three-hour cells of the (UTC) day, on a weekday or at the weekend."""
OWN_WEIGHT = 8.0
"""A tick of the zone's own history counts as much as this many ticks of other zones."""
POOL_WEIGHT = 100.0
"""The same for a pool's own history: pools differ more from zones than zones do from each other."""
SHRINK = 20.0
"""Flips added to both sides of a cell's observed : expected ratio, so that few flips say little."""
FIRST_TICKS = 25.0
"""With fewer ticks of its own, how often a zone turns is taken from the others for the greater part."""
SHIPPED = Path(__file__).with_name("prior.json")


@dataclass(frozen=True)
class Tally:
    """Counts of one zone's history, per tick of ``TICK`` seconds; tallies add up.

    ``moves`` (STATES, STATES): transitions; ``flips`` and ``seen`` (CELLS, STATES): ticks at whose end the
    zone turned, and all ticks; ``paid``: sum of the price over ``ticks`` ticks.
    """

    moves: Floats = field(default_factory=lambda: np.zeros((STATES, STATES)))
    flips: Floats = field(default_factory=lambda: np.zeros((CELLS, STATES)))
    seen: Floats = field(default_factory=lambda: np.zeros((CELLS, STATES)))
    paid: float = 0.0
    ticks: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.moves + other.moves,
            self.flips + other.flips,
            self.seen + other.seen,
            self.paid + other.paid,
            self.ticks + other.ticks,
        )

    def __mul__(self, weight: float) -> Tally:
        return Tally(
            self.moves * weight,
            self.flips * weight,
            self.seen * weight,
            self.paid * weight,
            self.ticks * weight,
        )


Prior = Mapping[str, Tally]
"""History by zone, and by pool of zones (``pool``)."""


def pool(zones: Iterable[str]) -> str:
    """The name of ``zones`` taken together, up when one of them is, in a prior."""
    return "|".join(sorted(zones))


def state_of(up: bool, age: float) -> int:
    """The chain's state of a zone that has been up (or down) for ``age`` seconds."""
    return int(up) * CLASSES + int(np.searchsorted(AGES, age, side="right")) - 1


def cells(start: datetime, gap: float, ticks: int) -> NDArray[np.int64]:
    """The cell of the week at each of ``ticks`` ticks of ``gap`` seconds from ``start`` (UTC when naive)."""
    at = start.replace(tzinfo=UTC) if start.tzinfo is None else start.astimezone(UTC)
    hours = at.weekday() * 24 + at.hour + at.minute / 60 + at.second / 3600 + np.arange(ticks) * gap / 3600
    return np.asarray((hours % 24 // 3 + 8 * (hours // 24 % 7 >= 5)).astype(np.int64))


def tally(up: NDArray[np.bool_], price: Floats, start: datetime, gap: float = TICK) -> Tally:
    """Count one zone's observations, one per ``gap`` seconds from ``start``."""
    if len(up) == 0:
        return Tally()
    turned = np.concatenate([[True], up[1:] != up[:-1]])
    began = np.maximum.accumulate(np.where(turned, np.arange(len(up)), 0))
    age = (np.arange(len(up)) - began) * gap + np.where(began == 0, FIRST_AGE, 0.0)
    state = up * CLASSES + np.searchsorted(AGES, age, side="right") - 1
    known = Tally(paid=float(price.sum()), ticks=float(len(up)))
    np.add.at(known.moves, (state[:-1], state[1:]), 1.0)
    cell = cells(start, gap, len(up))[:-1]
    np.add.at(known.seen, (cell, state[:-1]), 1.0)
    np.add.at(known.flips, (cell, state[:-1]), turned[1:].astype(float))
    return known


def region(zone: str) -> str:
    """``us-east-1`` of ``us-east-1a_v100_1``, ``us-central1`` of ``us-central1-a``; else the name without the
    kind of instance."""
    found = re.match(r"[a-z]+(?:-[a-z]+)+-?\d+", zone)
    return found[0] if found else zone.partition("_")[0]


@dataclass(frozen=True)
class Chain:
    """A zone's model. ``steps`` (CELLS, STATES, STATES): transition matrices per tick and cell of the week;
    ``price``: expected $/h of its spot instances; ``share``: how much of the time it is up."""

    steps: Floats
    price: float
    share: float
    turn_up: float
    turn_down: float


UP = np.arange(STATES) >= CLASSES


def chain(prior: Prior, zone: str, *, gap: float = TICK, default_price: float = 1.0) -> Chain:
    """The model of ``zone`` or pool: zones' history, and its own with ``OWN_WEIGHT`` or ``POOL_WEIGHT``.

    With no history at all, half a flip per age class is assumed: up and down both last about two ticks
    until experience says otherwise.
    """
    own = prior.get(zone, Tally())
    pooled = "|" in zone
    everyone = own * (POOL_WEIGHT if pooled else OWN_WEIGHT - 1)
    nearby = own if pooled else Tally()
    for name, known in prior.items():
        if "|" in name:
            continue
        everyone = everyone + known
        if not pooled and region(name) == region(zone):
            nearby = nearby + known
    moves = everyone.moves.copy()
    rows = np.arange(STATES)
    fresh = np.where(UP, 0, CLASSES)  # the state that a flip leads to
    moves[rows, fresh] += 0.5
    moves[rows, rows] += 0.5
    base = moves / moves.sum(axis=1, keepdims=True)
    if gap != TICK:  # rates are per second; a different tick makes that many times more or fewer moves
        base = np.eye(STATES) + (base - np.eye(STATES)) * min(gap / TICK, 0.9 / (1 - base.diagonal().min()))
    flip = base[rows, fresh]
    steps = np.empty((CELLS, STATES, STATES))
    for cell in range(CELLS):
        ratio = np.ones(2)
        for side in (0, 1):
            of = side == UP
            expected = float((nearby.seen[cell, of] * flip[of]).sum())
            ratio[side] = (float(nearby.flips[cell, of].sum()) + SHRINK) / (expected + SHRINK)
        turned = np.clip(flip * ratio[UP.astype(int)], 1e-6, 0.9)
        steps[cell] = base * ((1 - turned) / (1 - flip))[:, None]
        steps[cell, rows, fresh] = turned
    source = own if own.ticks else everyone
    turn_up, turn_down = _rate(own, everyone, ~UP), _rate(own, everyone, UP)
    return Chain(
        steps=steps,
        price=source.paid / source.ticks if source.ticks else default_price,
        share=turn_up / (turn_up + turn_down),
        turn_up=turn_up,
        turn_down=turn_down,
    )


def _rate(own: Tally, everyone: Tally, of: NDArray[np.bool_]) -> float:
    """How often per tick a zone turns while its state is one ``of`` these: by its own history, with
    ``FIRST_TICKS`` ticks added in which it did as the others, so that a zone of which little is known is much
    like them."""
    others = (float(everyone.flips[:, of].sum()) + 0.5) / (float(everyone.seen[:, of].sum()) + FIRST_TICKS)
    turned, seen = float(own.flips[:, of].sum()), float(own.seen[:, of].sum())
    return (turned + FIRST_TICKS * others) / (seen + FIRST_TICKS)


def lives(one: Chain) -> Floats:
    """The ticks that the zone is expected to stay up from now, by age class, over all hours alike."""
    steps = one.steps.mean(axis=0)[np.ix_(UP, UP)]
    found: Floats = np.linalg.solve(np.eye(CLASSES) - steps, np.ones(CLASSES))
    return found


def life_of_any(one: Chain) -> float:
    """The ticks that the zone is expected to stay up from a moment at which it is up and nobody knows since
    when: a zone that lasts is mostly old then, and one that goes at once never."""
    shares = np.linalg.matrix_power(one.steps.mean(axis=0), 100_000)[0][UP]
    return float(shares @ lives(one) / shares.sum())


def mean_stay(prior: Prior, zones: Iterable[str] = ()) -> float:
    """Seconds that a stay in ``zones`` lasts in the mean, from its start to its loss; the history of all
    others counts as well, by ``OWN_WEIGHT`` less, for there may be none of their own."""
    ours = set(zones)
    known = {
        name: one * (OWN_WEIGHT if name in ours else 1.0) for name, one in prior.items() if "|" not in name
    }
    up = sum(float(one.seen[:, UP].sum()) for one in known.values())
    turned = sum(float(one.flips[:, UP].sum()) for one in known.values())
    return TICK * (up + 0.5) / (turned + 0.5)


def load_prior(path: Path = SHIPPED) -> dict[str, Tally]:
    """A prior as ``save_prior`` wrote it; by default the one that comes with nemo-sky.

    Raises UserError when the file is not one.
    """
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        return {
            zone: Tally(
                np.asarray(one["moves"], float).reshape(STATES, STATES),
                np.asarray(one["flips"], float).reshape(CELLS, STATES),
                np.asarray(one["seen"], float).reshape(CELLS, STATES),
                float(one["paid"]),
                float(one["ticks"]),
            )
            for zone, one in raw.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"not a history of spot zones: {error!r}", where=str(path)) from None


def save_prior(prior: Prior, path: Path) -> None:
    """Write a prior as JSON, one zone a line."""
    lines = [
        f"{json.dumps(zone)}: "
        + json.dumps(
            {
                "moves": _short(one.moves),
                "flips": _short(one.flips),
                "seen": _short(one.seen),
                "paid": round(one.paid, 3),
                "ticks": one.ticks,
            }
        )
        for zone, one in sorted(prior.items())
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _short(values: Floats) -> list[float]:
    return [int(v) if v == int(v) else round(float(v), 4) for v in values.ravel()]
