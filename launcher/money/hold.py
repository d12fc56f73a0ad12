"""An attempt's hold on its entry in the ledger: what its agent does there when it begins, at each look and
when it ends, and until when it may go on.

There is no thread, no fuse and no clock of its own here. ``launcher.agent.purse`` drives it on a node, and
the random histories of the tests drive the same by a virtual clock. Times are milliseconds since the epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from launcher.artifacts.store import StoreError
from launcher.money import account as accounts
from launcher.money import failover
from launcher.money.account import About, Account, Closed, Entry
from launcher.money.lease import Lease

SLOW = "the ledger took too long to answer"
SILENT = "the ledger could not be asked in time"

Change = Callable[[Callable[[Account], Account]], Account]
"""One change of the attempt's account. Raises what the step raises, StoreError, or TimeoutError."""


class Hold:
    """``pattern`` is the entry of an attempt that nobody reserved, with its run, number, nodes, price and
    place; ``reservation`` the launch's entry. ``capped``: whether it keeps to its lease.

    After each ``look``, ``until`` is how far its lease reaches for certain, and ``why`` the reason to stop
    when it must, None for the budget.
    """

    def __init__(
        self, pattern: Entry, about: About, lease: Lease, reservation: str | None, capped: bool
    ) -> None:
        self._pattern, self._about, self._reservation = pattern, about, reservation
        self.lease = lease
        self.capped = capped
        self.entry: Entry | None = None
        self.before = 0  # micro-dollars of the run's other entries
        self.until = 0
        self.why: str | None = None
        self.trouble: Exception | None = None  # of the last look

    def begin(self, held: Account, now: int, began: int | None) -> Account:
        """The account once this attempt, whose nodes are paid for since ``began`` (None: nobody knows), has
        its entry: what the launcher, or the recovery strategy after it, has reserved, unless an attempt had
        it already; else what FAILOVER has launched unasked. Raises Refused when a cap is set and a price is
        unknown."""
        mine = self._pattern
        if any(entry.attempt == mine.attempt for entry in held.of(mine.run)):
            return held  # the reply was lost
        key = accounts.free(held, mine.run) or self._reservation or ""
        assert mine.attempt is not None
        with contextlib.suppress(Closed):
            # Of what was waited for, FAILOVER may have spent some on nodes that none of ours looked from.
            unseen = self.lease.unseen if self.lease.recovery else 0
            paid = None if began is None else began - unseen
            place = {"cloud": mine.cloud, "region": mine.region, "zone": mine.zone}
            taken = accounts.adopt(held, key, mine.attempt, place, paid)
            return accounts.renew(taken, key, self.lease.next(now))
        if first := held.entries.get(key):
            mine = replace(mine, market=first.market, on_demand=first.on_demand)
        mine = replace(mine, launched=now, until=self.lease.next(now))
        booted = now - self.lease.setup if began is None else began
        return failover.enter(held, mine, self._about, self.lease, now, booted)

    def take(self, held: Account) -> None:
        """See what the account says of this attempt now."""
        mine = [e for e in held.of(self._pattern.run) if e.attempt == self._pattern.attempt]
        self.entry = mine[-1]
        self.before = held.committed(self._pattern.run, without=self.entry.key)
        self.capped = bool(held.caps(self._pattern.run))
        self.until = self.entry.until

    def look(self, change: Change, clock: Callable[[], int]) -> None:
        """Renew the lease as far as the caps go. Raises Closed when a later attempt took over."""
        assert self.entry
        key, now = self.entry.key, clock()
        self.trouble = None
        try:
            self.take(change(lambda held: accounts.renew(held, key, self.lease.next(clock()))))
            # Caps alone make a grant shorter than what was asked for.
            self.why = None if self.until < self.lease.next(now) else SLOW
        except (StoreError, TimeoutError) as error:
            # What was granted before still holds: a lease that its holder renews never becomes shorter.
            self.why, self.trouble = SILENT, error

    def lose(self, now: int, why: str) -> None:
        """Another has the entry: this attempt stops."""
        self.until, self.why = now + self.lease.recovery, why

    def settled(self, held: Account, now: int) -> Account:
        """The account once the attempt has ended at ``now``, its nodes a teardown later. Raises Closed."""
        assert self.entry
        return accounts.settle(held, self.entry.key, now + self.lease.teardown)

    def spent(self, now: int) -> tuple[int, int]:
        """Micro-dollars of the attempt until now, and those of the rest of its lease."""
        assert self.entry
        so_far = accounts.charge(self.entry.price or 0, now - self.entry.launched)
        return so_far, max(self.entry.cost - so_far, 0)

    @property
    def own_until(self) -> int:
        """The end of its own part of the lease."""
        return self.lease.own(self.until)

    @property
    def stop_at(self) -> int:
        """When the trainer must be asked to save."""
        return self.lease.stop_at(self.own_until)

    @property
    def dead_at(self) -> int:
        """When the agent ends whatever still runs."""
        return self.lease.dead_at(self.own_until)

    def burns_at(self, deadline: int | None) -> int:
        """When the node's fuse is to burn."""
        last = self.own_until if deadline is None else min(self.own_until, deadline)
        return self.lease.burns_at(last)

    def next_look(self, now: int) -> int:
        """When to look again: twice in every interval, and at the latest when it must stop."""
        again = now + self.lease.check // 2
        return min(again, self.stop_at) if self.capped else again
