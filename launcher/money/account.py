"""What an account of the ledger holds, and every change it can go through, as pure functions.

An account is one document: of an experiment with all its runs, or of one run outside any. So both caps that
a launch must keep are in one place, and one compare-and-swap decides. Money is whole micro-dollars and
time is whole milliseconds since the epoch: sums are exact.

    reserve   before anything is launched: the worst case until the first check
    renew     at every check: the worst case until the next, or as much of it as the caps leave
    settle    at the end: what it really took

A reservation is a lease. What is never settled counts to the end of its lease: whoever held it had
promised to be gone by then, so nothing is counted short and nothing waits to be cleaned up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.errors import Refused
from launcher.money import amounts

MICROS = 1_000_000  # of a dollar
HOUR_MS = 3_600_000
NO_PRICE = "give the cluster profile a `price_per_hour` (dollars per node; 0 for what is yours)"


class Short(Refused):
    """A cap leaves less than what is asked. Amounts are in micro-dollars; ``whose`` names the cap."""

    def __init__(self, whose: str, cap: int, committed: int, needed: int) -> None:
        super().__init__(
            f"the budget of {whose} is {money(cap)}, of which {money(committed)} is spent or reserved: "
            f"{money(needed)} more is {money(committed + needed - cap)} too much"
        )
        self.whose, self.cap, self.committed, self.needed = whose, cap, committed, needed


class Closed(Refused):
    """The entry is settled, or another's: whoever acts for it must stop."""


@dataclass(frozen=True)
class Entry:
    """One attempt: a stay of ``nodes`` nodes, from the launch of the instances to their end.

    ``price`` is micro-dollars per hour for all nodes at launch time, None when unknown; ``on_demand`` is
    what the same would cost on demand. ``attempt`` is None until an agent takes the entry over.
    ``until`` is the end of the lease, ``ended`` the settled end.
    """

    key: str
    run: str
    price: int | None
    launched: int
    until: int
    nodes: int = 1
    market: str = "on-demand"
    cloud: str | None = None
    region: str | None = None
    zone: str | None = None
    on_demand: int | None = None
    attempt: int | None = None
    ended: int | None = None

    @property
    def end(self) -> int:
        """When it stops to cost."""
        return self.until if self.ended is None else self.ended

    @property
    def cost(self) -> int:
        """Micro-dollars, settled or at worst; 0 when the price is unknown."""
        return charge(self.price or 0, self.end - self.launched)

    def is_open(self, now: int) -> bool:
        """Whether somebody may still hold it: neither settled nor past its lease."""
        return self.ended is None and self.until > now


@dataclass(frozen=True)
class Budget:
    """A cap in micro-dollars, who gave it and when."""

    amount: int
    by: str
    at: int


@dataclass(frozen=True)
class About:
    """What receipts group by. ``budgets`` are the run's caps; the last one holds."""

    family: str
    stage: str
    user: str
    cluster: str
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True)
class Account:
    """An experiment with its runs, or with ``experiment`` None a single run."""

    experiment: str | None = None
    budgets: tuple[Budget, ...] = ()
    runs: Mapping[str, About] = field(default_factory=dict)
    entries: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def budget(self) -> int | None:
        """The experiment's cap, None without one."""
        return self.budgets[-1].amount if self.budgets else None

    def budget_of(self, run: str) -> int | None:
        """The run's own cap, None without one."""
        about = self.runs.get(run)
        return about.budgets[-1].amount if about and about.budgets else None

    def of(self, run: str | None) -> list[Entry]:
        """The entries of ``run``, or with None all, by launch."""
        found = [entry for entry in self.entries.values() if run is None or entry.run == run]
        return sorted(found, key=lambda entry: (entry.launched, entry.key))

    def committed(self, run: str | None = None, without: str | None = None) -> int:
        """Micro-dollars spent and reserved: of ``run``, or of all; but not of the entry ``without``."""
        return sum(
            entry.cost
            for entry in self.entries.values()
            if (run is None or entry.run == run) and entry.key != without
        )

    def caps(self, run: str) -> list[tuple[str, int, str | None]]:
        """The caps that the run must keep: whose, micro-dollars, and the run to sum over (None: all)."""
        found: list[tuple[str, int, str | None]] = []
        if (own := self.budget_of(run)) is not None:
            found.append((f"run {run}", own, run))
        if self.budget is not None:
            found.append((f"experiment {self.experiment}", self.budget, None))
        return found

    def left(self, run: str, without: str | None = None) -> int | None:
        """What the tightest cap leaves the run, in micro-dollars, at least 0; None without a cap."""
        rests = [cap - self.committed(over, without) for _, cap, over in self.caps(run)]
        return max(min(rests), 0) if rests else None

    def to_json(self) -> bytes:
        values = {**vars(self), "entries": list(self.entries.values())}
        return json.dumps(values, separators=(",", ":"), default=vars).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Account:
        """Read what ``to_json`` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        values = json.loads(data)
        return cls(
            experiment=values["experiment"],
            budgets=_budgets(values["budgets"]),
            runs={
                run: About(**{**about, "budgets": _budgets(about["budgets"])})
                for run, about in values["runs"].items()
            },
            entries={item["key"]: Entry(**item) for item in values["entries"]},
        )


def charge(price: int, ms: int) -> int:
    """Micro-dollars of ``ms`` milliseconds at ``price`` micro-dollars per hour, rounded up."""
    return -(-price * max(ms, 0) // HOUR_MS)


def affordable_ms(price: int, micros: int) -> int:
    """The longest stay that costs no more than ``micros``. ``price`` is above 0."""
    return micros * HOUR_MS // price


def reserve(account: Account, entry: Entry, about: About) -> Account:
    """Add the entry with its worst case until ``entry.until``. The same key again changes nothing.

    Raises Short, naming the cap, when it does not fit; Refused when a cap is set and a price is unknown.
    """
    if entry.key in account.entries:
        return account
    for whose, cap, over in account.caps(entry.run):
        if entry.price is None:
            raise Refused(
                f"the budget of {whose} cannot be kept: a price is unknown, and unknown is not 0",
                hint=NO_PRICE,
            )
        if other := next((other.run for other in account.of(over) if other.price is None), None):
            raise Refused(
                f"the budget of {whose} cannot be kept: nobody knows what run {other} has cost, and unknown "
                "is not 0",
                hint=f"say what an hour of one of its nodes cost: `nemo-sky cost {other} --price 2.50` (0 "
                "for what is yours); then launch again",
            )
        committed = account.committed(over)
        if committed + entry.cost > cap:
            raise Short(whose, cap, committed, entry.cost)
    runs = {entry.run: about, **account.runs}
    return replace(account, runs=runs, entries={**account.entries, entry.key: entry})


def renew(account: Account, key: str, until: int) -> Account:
    """Move the end of the lease to ``until``, or as near to it as the caps leave; the entry tells.

    What was granted before is never taken back, but its holder may give it up. Raises Closed.
    """
    entry = _find(account, key)
    if entry.ended is not None:
        raise Closed(f"the entry {key} is settled: a later attempt took over")
    left = account.left(entry.run, without=key)
    if left is not None and entry.price:
        affordable = entry.launched + affordable_ms(entry.price, left)
        until = min(until, max(affordable, entry.until))
    return _with(account, replace(entry, until=max(until, entry.launched)))


def adopt(
    account: Account, key: str, attempt: int, place: Mapping[str, str | None], began: int | None = None
) -> Account:
    """An agent takes the entry over, whose nodes are there since ``began`` (milliseconds since the epoch,
    None where nobody knows): what was waited for them has cost nothing.

    Raises Closed when another attempt has it, or it is settled.
    """
    entry = account.entries.get(key)
    if entry is None or entry.ended is not None or entry.attempt not in (None, attempt):
        raise Closed(f"the entry {key} is not free")
    cloud, region, zone = (place.get(name) or getattr(entry, name) for name in ("cloud", "region", "zone"))
    cloud = cloud and cloud.lower()  # SkyPilot's AWS, the profile's aws
    launched = entry.launched if began is None else max(entry.launched, began)
    entry = replace(entry, launched=launched, until=max(entry.until, launched))
    return _with(account, replace(entry, attempt=attempt, cloud=cloud, region=region, zone=zone))


def settle(account: Account, key: str, ended: int) -> Account:
    """Say when the instances ended. Said twice, the later one counts: never short, in whatever order.

    Raises Closed when there is no such entry.
    """
    entry = _find(account, key)
    return _with(account, replace(entry, ended=max(ended, entry.launched, entry.ended or 0)))


def free(account: Account, run: str) -> str | None:
    """The run's newest reservation that no agent has taken over yet, also one whose lease the set-up has
    outlasted; None when there is none."""
    found = [entry for entry in account.of(run) if entry.attempt is None and entry.ended is None]
    return found[-1].key if found else None


def supersede(account: Account, run: str, now: int) -> Account:
    """The run's next attempt begins: those before it are gone, at the latest at the end of their leases."""
    for entry in account.of(run):
        if entry.ended is None:
            account = settle(account, entry.key, min(entry.until, now))
    return account


def settle_run(account: Account, run: str, now: int, ended: int | None = None) -> Account:
    """Nothing of the run is left at ``now``, and its newest attempt ended at ``ended``.

    With None nobody saw its end: then it is what was settled before, or by ``now`` or the end of its lease,
    whichever is first. However late one looks, it costs no more than that.
    """
    entries = account.of(run)
    if not entries:
        return account
    newest = entries[-1]
    account = settle(account, newest.key, min(now, newest.end) if ended is None else ended)
    return supersede(account, run, newest.launched)


def set_price(account: Account, run: str, price: int) -> Account:
    """Say what one node of the run cost, in micro-dollars per hour, in its attempts of which nobody knew it.

    Raises Refused when there is none: what was priced at its launch stays.
    """
    unpriced = [entry for entry in account.of(run) if entry.price is None]
    if not unpriced:
        raise Refused(f"every attempt of {run} has the price of its launch, which stays")
    for entry in unpriced:
        total = price * entry.nodes
        on_demand = total if entry.market == "on-demand" else entry.on_demand
        account = _with(account, replace(entry, price=total, on_demand=on_demand))
    return account


def set_budget(account: Account, run: str | None, amount: int, by: str, at: int) -> Account:
    """Give the run, or with None the experiment, this cap; the latest that was given holds.

    Raises Refused for one below what is spent and reserved already.
    """
    current = account.budget if run is None else account.budget_of(run)
    if current == amount:
        return account
    committed = account.committed(run)
    whose = f"experiment {account.experiment}" if run is None else f"run {run}"
    if amount < committed:
        raise Refused(
            f"a budget of {money(amount)} for {whose} is below the {money(committed)} that it has spent "
            "or reserved",
            hint=f"give more than {money(committed)}",
        )
    new = Budget(amount, by, at)
    if run is None:
        return replace(account, budgets=(*account.budgets, new))
    about = account.runs[run]
    about = replace(about, budgets=(*about.budgets, new))
    return replace(account, runs={**account.runs, run: about})


def micros(dollars: float | None) -> int | None:
    """Micro-dollars; None, which is unknown, stays so."""
    return None if dollars is None else round(dollars * MICROS)


def money(micros: int) -> str:
    """``$12.34``; below a dollar with all its digits, for there cents are coarse."""
    if 0 < micros < MICROS:
        return f"$0.{f'{micros:06d}'.rstrip('0').ljust(2, '0')}"
    return amounts.format_dollars(micros / MICROS)


def _find(account: Account, key: str) -> Entry:
    entry = account.entries.get(key)
    if entry is None:
        raise Closed(f"the ledger has no entry {key}")
    return entry


def _with(account: Account, entry: Entry) -> Account:
    if account.entries[entry.key] == entry:
        return account
    return replace(account, entries={**account.entries, entry.key: entry})


def _budgets(values: list[dict[str, Any]]) -> tuple[Budget, ...]:
    return tuple(Budget(**item) for item in values)
