"""What became of every attempt that costs: ledger entries joined with the journals of their runs.

Times are milliseconds since the epoch, amounts micro-dollars.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.money.account import Entry, charge
from launcher.money.receipts import Line, kept_until

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.lineage.journal import Event

LOSS = "loss"


@dataclass(frozen=True)
class Stay:
    """One attempt. ``how`` it ended, as its journal says, or ``lost`` without a word, or ``no journal``.

    ``begun`` is its first step, None when it never came to one, and ``kept`` until when its work was kept;
    ``checkpoints`` are (time, step) and ``loss`` (time, step, value), in order.
    """

    line: Line
    how: str
    begun: int | None = None
    kept: int | None = None
    checkpoints: tuple[tuple[int, int], ...] = ()
    loss: tuple[tuple[int, int, float], ...] = ()

    @property
    def entry(self) -> Entry:
        return self.line.entry


def stays(store: Store, found: Sequence[Line], now: int) -> list[Stay]:
    """Every attempt of ``found`` with its story."""
    from launcher.lineage import sync

    journals = {
        (run, events[0].get("attempt")): events
        for run in dict.fromkeys(line.entry.run for line in found)
        for events in sync.attempts(store, run)
    }
    return [_stay(line, journals.get((line.entry.run, line.entry.attempt), []), now) for line in found]


def spending(found: Sequence[Line]) -> list[tuple[int, int]]:
    """(time, all that was spent until then), at every moment where the rate changes."""
    entries = [line.entry for line in found if line.entry.price is not None]
    moments = sorted({moment for entry in entries for moment in (entry.launched, entry.end)})
    return [(moment, spent(entries, moment)) for moment in moments]


def spent(entries: Sequence[Entry], moment: int) -> int:
    """Micro-dollars of the entries until then; those without a price count nothing."""
    return sum(charge(entry.price or 0, min(entry.end, moment) - entry.launched) for entry in entries)


def _stay(line: Line, events: Sequence[Event], now: int) -> Stay:
    if not events:
        return Stay(line, "running" if line.entry.is_open(now) else "no journal")
    how = "running" if line.entry.is_open(now) else "lost"
    if events[-1]["type"] == "attempt_ended":
        how = str(events[-1]["status"])
    loss = []
    for event in events:
        for point in event["points"] if event["type"] == "metrics" else ():
            if point["key"] == LOSS:
                when, value = float(point.get("ts") or event["ts"]), float(point["value"])
                if math.isfinite(value):
                    loss.append((_ms(when), int(point["step"]), value))
    begun = next((event for event in events if event["type"] == "metrics"), None)
    return Stay(
        line,
        how,
        _ms(begun["ts"]) if begun else None,
        line.entry.end if how == "running" else kept_until(events, line.entry.end),
        tuple((_ms(event["ts"]), int(event["step"])) for event in events if event["type"] == "checkpoint"),
        tuple(sorted(loss)),
    )


def _ms(when: float) -> int:
    """Scripts write milliseconds, journals seconds."""
    return round(when if when > 1e11 else when * 1000)
