"""What runs cost, from the ledger: by run, by experiment, by anything that a launch is known by.

Sums are of whole micro-dollars, so what is shown adds up. A price that is not known is shown as unknown and
never as 0. What the journals add, set-up and work that was lost, is read for the runs that are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from launcher.errors import UserError, did_you_mean
from launcher.money.account import HOUR_MS, MICROS, About, Account, Entry, charge, money
from launcher.money.ledger import Ledger

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.lineage.journal import Event

GROUPS = ("family", "stage", "cluster", "cloud", "place", "market", "user", "experiment", "run")
PLACES = 4  # of a receipt at a run's end, the dearest; `nemo-sky cost` has all


@dataclass(frozen=True)
class Line:
    """One attempt of one run."""

    entry: Entry
    about: About
    experiment: str | None

    def group(self, by: str) -> str:
        """What the attempt is counted under, one of ``GROUPS``."""
        if by == "place":
            return place_of(self.entry) or "unknown"
        if by in ("cloud", "market", "run"):
            return str(getattr(self.entry, by) or "unknown")
        return str((self.experiment or "-") if by == "experiment" else getattr(self.about, by))


def lines(ledger: Ledger) -> list[Line]:
    """Every attempt, oldest first."""
    found = [
        Line(entry, held.runs[entry.run], held.experiment)
        for held in ledger.accounts().values()
        for entry in held.entries.values()
    ]
    return sorted(found, key=lambda line: (line.entry.launched, line.entry.key))


def place_of(entry: Entry) -> str:
    """``cloud/region/zone``, as far as they are known."""
    return "/".join(part for part in (entry.cloud, entry.region, entry.zone) if part)


def totals(found: Iterable[Line]) -> dict[str, Any]:
    """Attempts, hours and dollars of all. ``saved_usd`` is against the same hours on-demand, at the launch's
    price of that place, over the attempts where it is known; None where it never is."""
    entries = [line.entry for line in found]
    known = [entry for entry in entries if entry.price is not None]
    saved = [amount for entry in entries if (amount := saved_by(entry)) is not None]
    return {
        "runs": len({entry.run for entry in entries}),
        "attempts": len(entries),
        "hours": round(sum(entry.end - entry.launched for entry in entries) / HOUR_MS, 4),
        "cost_usd": sum(entry.cost for entry in known) / MICROS if known or not entries else None,
        "unknown_price": len(entries) - len(known),
        "saved_usd": sum(saved) / MICROS if saved else None,
    }


def saved_by(entry: Entry) -> int | None:
    """Micro-dollars that the attempt saved against on-demand; None where a price is unknown."""
    if entry.price is None or entry.on_demand is None:
        return None
    return charge(entry.on_demand, entry.end - entry.launched) - entry.cost


def by_group(found: Sequence[Line], by: Sequence[str]) -> list[dict[str, Any]]:
    """The totals of each group, dearest first. Raises UserError for a group that there is not."""
    for name in by:
        if name not in GROUPS:
            raise UserError(
                f"--by {name}: there is no such group{did_you_mean(name, GROUPS)}",
                hint=f"of {', '.join(GROUPS)}, one or several with commas",
            )
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in found:
        groups.setdefault(tuple(line.group(name) for name in by), []).append(line)
    rows = [
        {**dict(zip(by, values, strict=True)), **totals(members)}
        for values, members in sorted(groups.items())
    ]
    return sorted(rows, key=lambda row: -(row["cost_usd"] or 0.0))


def attempts(found: Iterable[Line], now: int) -> list[dict[str, Any]]:
    """One row for each attempt. One that is open costs as much as its lease; ``so_far_usd`` is what it has
    cost by now."""
    return [
        {
            "run": line.entry.run,
            "attempt": line.entry.attempt,
            "market": line.entry.market,
            "place": place_of(line.entry),
            "nodes": line.entry.nodes,
            "launched_at": _utc(line.entry.launched),
            "hours": round((line.entry.end - line.entry.launched) / HOUR_MS, 6),
            "price_per_hour": None if line.entry.price is None else line.entry.price / MICROS,
            "cost_usd": None if line.entry.price is None else line.entry.cost / MICROS,
            "so_far_usd": _so_far(line.entry, now),
            "on_demand_per_hour": None if line.entry.on_demand is None else line.entry.on_demand / MICROS,
            "saved_usd": None if (saved := saved_by(line.entry)) is None else saved / MICROS,
            "state": _state(line.entry, now),
        }
        for line in found
    ]


def caps_of(held: Account, run: str | None) -> dict[str, Any]:
    """The budgets that hold for the run, or with None for the experiment, and what is left, in dollars."""
    budget = held.budget if run is None else held.budget_of(run)
    committed = held.committed(run)
    return {
        "budget_usd": None if budget is None else budget / MICROS,
        "left_usd": None if budget is None else (budget - committed) / MICROS,
    }


def receipt(store: Store, held: Account, run_id: str) -> str | None:
    """What a run of the account cost, in a line or, where it was in several places, two; None where the
    account does not have it."""
    found = [Line(entry, held.runs[run_id], held.experiment) for entry in held.of(run_id)]
    if not found:
        return None
    total = totals(found)
    count = f"{len(found)} attempt{'s' if len(found) > 1 else ''}, {total['hours']:.2f} h"
    more = f"(`nemo-sky cost {run_id}`)"
    if total["unknown_price"]:
        return f"cost: unknown, for nobody gave a price, {count} {more}"
    budget = held.budget_of(run_id)
    of = "" if budget is None else f" of {money(budget)}"
    parts = [f"cost: {money(held.committed(run_id))}{of}", count]
    facts = {**total, **waste(store, found)}
    for words, key in (
        ("saved", "saved_usd"),
        ("set-up", "setup_usd"),
        ("lost work", "lost_work_usd"),
        ("a billion tokens", "usd_per_billion_tokens"),
    ):
        if value := facts[key]:
            parts.append(f"{words} {money(round(value * MICROS))}")
    where = [
        f"{row['market']} {row['place']} {money(round(row['cost_usd'] * MICROS))}"
        for row in by_group(found, ["market", "place"])
        if row["cost_usd"]
    ]
    shown = [*where[:PLACES], *([f"{len(where) - PLACES} more places"] if len(where) > PLACES else [])]
    if len(where) == 1:
        parts.append(f"all of it {where[0].rpartition(' ')[0]}")
    by_place = f"\n  of it {', '.join(shown)}" if len(where) > 1 else ""
    return f"{', '.join(parts)} {more}{by_place}"


def waste(store: Store, found: Sequence[Line]) -> dict[str, Any]:
    """Dollars that bought no progress: set-up, with all that an attempt cost which left no journal, and work
    after the last checkpoint of one that was lost; and what a billion tokens of the work that was kept cost,
    where the trainer says how many it did. From the journals. All are None where an attempt has no price."""
    from launcher.lineage import sync

    if any(line.entry.price is None for line in found):
        return {"setup_usd": None, "lost_work_usd": None, "usd_per_billion_tokens": None}
    setup = lost = 0
    tokens = 0.0
    for run in dict.fromkeys(line.entry.run for line in found):
        journals = {events[0].get("attempt"): events for events in sync.attempts(store, run)}
        counted, by_speed = 0.0, 0.0
        for line in found:
            events = journals.get(line.entry.attempt)
            if line.entry.run != run:
                continue
            if not events:  # nodes that came to no agent, or went before it had written a line
                setup += line.entry.cost
                continue
            begun = _begun(events)
            work = line.entry.end if begun is None else min(begun, line.entry.end)
            setup += charge(line.entry.price or 0, work - line.entry.launched)
            kept = kept_until(events, line.entry.end)
            lost += charge(line.entry.price or 0, line.entry.end - kept) if kept else 0
            counted = max(counted, _counted(events, kept == line.entry.end))
            by_speed += _by_speed(events, kept) if kept else 0.0
        tokens += counted or by_speed
    cost = sum(line.entry.cost for line in found) / MICROS
    return {
        "setup_usd": setup / MICROS,
        "lost_work_usd": lost / MICROS,
        "usd_per_billion_tokens": round(cost / tokens * 1e9, 4) if tokens else None,
    }


def kept_until(events: Sequence[Event], end: int) -> int | None:
    """Until when the work of an attempt that ended at ``end`` was kept, in milliseconds since the epoch: to
    its end where it succeeded or went with all its steps saved, else to its last checkpoint, or to its first
    step without one. None when it never came to a step."""
    if (begun := _begun(events)) is None:
        return None
    checkpoints = [event for event in events if event["type"] == "checkpoint"]
    steps = [point["step"] for event in events if event["type"] == "metrics" for point in event["points"]]
    if events[-1]["type"] == "attempt_ended" or any(event["type"] == "notice" for event in events):
        saved = bool(checkpoints) and checkpoints[-1]["step"] >= max(steps, default=0)
        if saved or events[-1].get("status") == "succeeded":
            return end
    return min(max([begun, *map(_ms, checkpoints)]), end)


def _begun(events: Sequence[Event]) -> int | None:
    """When the trainer reported its first step, in milliseconds since the epoch; None when it never did."""
    return next((_ms(event) for event in events if event["type"] == "metrics"), None)


def _counted(events: Sequence[Event], all_kept: bool) -> float:
    """The tokens of the run so far, as its trainer counts them over all attempts (``total_tokens``): at its
    last step that was kept. 0 where it says none."""
    last = max((event["step"] for event in events if event["type"] == "checkpoint"), default=0)
    points = [
        point
        for event in events
        if event["type"] == "metrics"
        for point in event["points"]
        if point["key"] == "total_tokens" and (all_kept or point["step"] <= last)
    ]
    return float(points[-1]["value"]) if points else 0.0


def _by_speed(events: Sequence[Event], until: int) -> float:
    """About the tokens of the attempt up to ``until`` (milliseconds since the epoch), of a trainer that says
    its speed alone: pauses between two reports count as training. What came after is done once more by the
    next attempt, and counts there."""
    points = [
        (float(point.get("ts") or event["ts"]), float(point["value"]))
        for event in events
        if event["type"] == "metrics"
        for point in event["points"]
        if point["key"] == "tokens_per_second"
    ]
    return sum(
        speed * max(min(_seconds(after), until / 1000) - _seconds(before), 0.0)
        for (before, _), (after, speed) in pairwise(points)
    )


def _seconds(when: float) -> float:
    """Scripts write milliseconds, journals seconds."""
    return when / 1000 if when > 1e11 else when


def _ms(event: Event) -> int:
    return round(float(event["ts"]) * 1000)


def _so_far(entry: Entry, now: int) -> float | None:
    """Dollars of an attempt that is open; its cost has the rest of its lease in it. None for any other."""
    if entry.price is None or not entry.is_open(now):
        return None
    return charge(entry.price, now - entry.launched) / MICROS


def _state(entry: Entry, now: int) -> str:
    if entry.ended is not None:
        return "settled"
    return "open" if entry.is_open(now) else "to the end of its lease"


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
