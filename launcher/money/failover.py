"""An attempt that nobody reserved: its nodes were launched by SkyPilot's own FAILOVER, which knows no ledger.

So each attempt of such a job leases, beyond its own end, the set-up of the one after it (``Lease.recovery``),
and an attempt that begins gives back what of that was not used, and enters what its own set-up has cost.
"""

from __future__ import annotations

from dataclasses import replace

from launcher.money import account as accounts
from launcher.money.account import About, Account, Entry, Short
from launcher.money.lease import Lease


def enter(held: Account, entry: Entry, about: About, lease: Lease, now: int, booted: int) -> Account:
    """The account with ``entry`` of an attempt that begins at ``now``, on instances that have run since
    ``booted``.

    Its lease is as long as the caps leave, but never shorter than what it takes to go: that money is spent,
    whatever the caps say. Raises Refused when a cap is set and a price is unknown.
    """
    for old in held.of(entry.run):
        if old.ended is None:
            until = old.until if old.attempt is None else lease.own(old.until)
            held = accounts.settle(held, old.key, min(until, now))
    launched = min(now, max([booted, *(old.end for old in held.of(entry.run))]))
    until, left = lease.next(now), held.left(entry.run)
    if left is not None and entry.price:
        until = min(until, launched + accounts.affordable_ms(entry.price, left))
    cloud = entry.cloud and entry.cloud.lower()  # SkyPilot's AWS, the profile's aws
    entry = replace(entry, launched=launched, until=max(until, now + lease.teardown), cloud=cloud)
    try:
        return accounts.reserve(held, entry, about)
    except Short:
        runs = {entry.run: about, **held.runs}
        return replace(held, runs=runs, entries={**held.entries, entry.key: entry})
