"""What runs saw of spot zones, kept in the store for the plans of later runs.

    spot/BEGAN-RUN.json    {version, run, account, seen: [[at, zone, what, price], ...]}

One object per launch that our strategy recovers, written whole by its process alone, after each event; BEGAN
is seconds since the epoch, so that the newest are last by name. A zone has the name that it has in the
history that comes with nemo-sky: ``us-east-1a_h100_8``, of four nodes ``us-east-1a_h100_8x4``. For one kind
of instance may be there when another is not, and four of them are harder to get than one.

While a run is in a zone it sees it all the time. Otherwise a zone is as it was seen last, for at most
``CARRIED``. How long the last stay of a run that has ended lasted, nobody tells the strategy: the ledger
does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from launcher.artifacts.store import Store, StoreError, soon
from launcher.money import availability
from launcher.money.availability import TICK, Prior, Tally, load_prior, pool, tally
from launcher.money.ledger import open_ledger
from launcher.money.recovery import FAILED, Event

FOLDER = "spot"
VERSION = 1
NEWEST = 100
"""So many launches are looked at."""
PATIENCE_S = 5.0
"""For reading them: the newest come first, and what is not read by then is left out."""
CARRIED = 2400.0
"""Seconds for which a zone is taken to be as it was seen last. In the shipped history, of zones that are down
now and in 40 minutes, 93 % are down all the while (72 % of those that have just gone down)."""
FOREIGN_TICKS = 7 * 86_400 / TICK
"""The history of a zone that is not asked for, of another kind mostly, counts as no more than a week: months
of V100 nodes in 2023 must not outvote what is seen today."""
RECENT_S = 86_400.0
"""What others saw before that says nothing of now."""


@dataclass(frozen=True)
class Seen:
    """``what`` (see ``recovery.Event``) became of a stay in ``zone``, named as in a prior, at ``at`` (seconds
    since the epoch); ``price`` in $/h of all nodes."""

    at: float
    zone: str
    what: str
    price: float


@dataclass(frozen=True)
class Report:
    """What one launch of ``run`` saw, in order of time. ``until``: to when the last stay is known to have
    lasted, where it was neither lost nor left, in seconds since the epoch."""

    run: str
    seen: tuple[Seen, ...]
    until: float = 0.0


def kind(gpu: str, count: float, nodes: int) -> str:
    """The end of a zone's name in a prior, ``ZONE_KIND``: its instances have ``count`` GPUs each, and
    ``nodes`` of them are wanted. Without GPUs ``gpu`` is the instance type, and ``count`` 0."""
    return gpu.lower() + (f"_{count:g}" if count else "") + (f"x{nodes}" if nodes > 1 else "")


def keep(store: Store, run: str, began: float, account: str, seen: Sequence[Seen]) -> None:
    """Write what the launch of ``began`` (seconds since the epoch) has seen so far. Raises StoreError."""
    values = {
        "version": VERSION,
        "run": run,
        "account": account,
        "seen": [list(vars(one).values()) for one in seen],
    }
    store.put_bytes(f"{FOLDER}/{int(began):012d}-{run}.json", json.dumps(values).encode())


def read(
    store: Store, now: float, newest: int = NEWEST, patience: float = PATIENCE_S
) -> tuple[list[Report], list[str]]:
    """The newest launches' reports, of what was before ``now`` (seconds since the epoch), and what is to be
    said of those that could not be read, or not within ``patience`` seconds. Raises StoreError."""
    found: list[Report] = []
    trouble: list[str] = []
    ends = _Ends(store)
    names = [one for one in store.children(FOLDER) if one.endswith(".json")][-newest:]
    began = time.monotonic()
    for count, one in enumerate(reversed(names)):
        if time.monotonic() - began > patience:
            trouble.append(
                f"{len(names) - count} of {len(names)} reports of other runs were left out: the store is slow"
            )
            break
        data = store.get_bytes(f"{FOLDER}/{one}")
        try:
            if data is not None:
                found.append(_report(data, now, ends))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            trouble.append(f"{store.uri(f'{FOLDER}/{one}')} is not a report of spot zones: {error!r}")
    return found, trouble


def read_soon(
    store: Store, now: float, newest: int = NEWEST, patience: float = PATIENCE_S
) -> tuple[list[Report], list[str]]:
    """``read``, but nothing waits for it: a store that fails, or takes longer than twice ``patience``, gives
    no report, and words that say so."""
    try:
        return soon(store, 2 * patience, lambda: read(store, now, newest, patience))
    except StoreError as error:
        return [], [f"what other runs saw is not known: {error.message}"]


def mean_stays(store: Store, of: str | None, now: float) -> tuple[float, dict[str, float]]:
    """Seconds that a stay lasts in the mean on instances of the kind ``of``, None for any, by all that was
    seen before ``now``: anywhere, and in each zone where such were seen."""
    reports, _ = read_soon(store, now)
    shipped = load_prior()
    zones = {*shipped, *(one.zone for report in reports for one in report.seen)}
    ours = [zone for zone in zones if of is not None and zone.endswith(f"_{of}") and "|" not in zone]
    known = joined(shipped, tallies(reports), {zone: zone for zone in ours})
    by_zone = {zone.removesuffix(f"_{of}"): availability.mean_stay(known, [zone]) for zone in sorted(ours)}
    return availability.mean_stay(known, ours), by_zone


def _report(data: bytes, now: float, ends: _Ends) -> Report:
    values = json.loads(data)
    if values["version"] != VERSION:
        raise ValueError(f"version {values['version']}")
    rows = [Seen(float(at), str(zone), str(what), float(price)) for at, zone, what, price in values["seen"]]
    seen = tuple(sorted((one for one in rows if one.at <= now), key=lambda one: one.at))
    run = str(values["run"])
    until = 0.0
    if seen and seen[-1].what == "launched":
        # The launch was seen; what came of it after ``now`` is in neither.
        until = min(ends.of(str(values["account"]), run, seen[-1].at), now)
    return Report(run, seen, until)


class _Ends:
    """When attempts ended, by the ledger; each account is read once."""

    def __init__(self, store: Store) -> None:
        self._ledger = open_ledger(store)
        self._known: dict[str, list[tuple[str, int, int]]] = {}

    def of(self, account: str, run: str, launched: float) -> float:
        """The end of the stay that was up at ``launched``, in seconds since the epoch, as far as the ledger
        knows it; that moment itself where it knows nothing."""
        if account not in self._known:
            try:
                held = self._ledger.read(account)
            except StoreError:
                held = None
            self._known[account] = [(one.run, one.launched, one.end) for one in held.of(None)] if held else []
        mine = [end for of, at, end in self._known[account] if of == run and at <= launched * 1000]
        return max(mine[-1] / 1000, launched) if mine else launched


@dataclass(frozen=True)
class _Span:
    """A zone was up, or down, from ``start`` to ``end``."""

    start: float
    end: float
    up: bool
    price: float


def tallies(reports: Iterable[Report]) -> dict[str, Tally]:
    """What the reports teach, by zone: ``availability.tally`` of every time that somebody knew the zone.

    A refusal alone is a zone that stays down for a tick.
    """
    known: dict[str, Tally] = {}
    for report in reports:
        for zone, spans in _spans(report).items():
            for part in _together(spans):
                known[zone] = known.get(zone, Tally()) + _counted(part)
    return known


def _spans(report: Report) -> dict[str, list[_Span]]:
    found: dict[str, list[_Span]] = {}
    for n, one in enumerate(report.seen):
        spans = found.setdefault(one.zone, [])
        if one.what in FAILED:
            spans.append(_Span(one.at, one.at, False, one.price))
        elif one.what == "launched":
            after = report.seen[n + 1] if n + 1 < len(report.seen) else None
            end = report.until if after is None else one.at
            if after and after.zone == one.zone and after.what in ("lost", "left"):
                end = after.at
            spans.append(_Span(one.at, max(end, one.at), True, one.price))
    return found


def _together(spans: Sequence[_Span]) -> list[list[_Span]]:
    """The spans in groups between which nobody knew the zone."""
    groups: list[list[_Span]] = []
    for span in spans:
        if groups and span.start - groups[-1][-1].end <= CARRIED:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _counted(part: Sequence[_Span]) -> Tally:
    start, last = part[0].start, part[-1]
    length = (last.end - start) / TICK
    # A zone that went down between two ticks is down at the second.
    ticks = int(np.floor(length + 1e-6) if last.up else np.ceil(length - 1e-6)) + 1
    if not any(span.up for span in part):
        ticks = max(ticks, 2)
    at = np.arange(ticks) * TICK + 1e-3
    span = np.searchsorted([one.start - start for one in part], at, side="right") - 1
    up = np.array([one.up for one in part])[span]
    price = np.array([one.price for one in part])[span]
    return tally(up, price, datetime.fromtimestamp(start, UTC))


def joined(prior: Prior, seen: Mapping[str, Tally], named: Mapping[str, str]) -> dict[str, Tally]:
    """``prior`` with what was ``seen`` (see ``tallies``), for a plan over the zones ``named``: its own names
    for them, and those in a prior."""
    known = dict(prior)
    for zone, more in seen.items():
        known[zone] = known.get(zone, Tally()) + more
    ours = {zone: label for label, zone in named.items()}
    result = {}
    for zone, one in known.items():
        foreign = "|" not in zone and zone not in ours and one.ticks > FOREIGN_TICKS
        weighed = one * (FOREIGN_TICKS / one.ticks) if foreign else one
        result[pool(ours.get(part, part) for part in zone.split("|"))] = weighed
    return result


def others(reports: Iterable[Report], named: Mapping[str, str], run: str, now: float) -> list[Event]:
    """What other runs than ``run`` lately saw of the zones ``named``, by the plan's names for them."""
    ours = {zone: label for label, zone in named.items()}
    return [
        Event(one.at, ours[one.zone], one.what)
        for report in reports
        if report.run != run
        for one in report.seen
        if one.zone in ours and one.at > now - RECENT_S
    ]
