"""How long a reservation lasts, and what its end means to whoever holds it. All in milliseconds.

    setup      from the launch of the instances to the agent's first look at the ledger
    check      between two looks
    save       for the trainer to save and the agent to commit what it saved
    teardown   from the agent's end to the instances'
    recovery   for the set-up and teardown of nodes that nobody asks the ledger for: those that SkyPilot's own
               FAILOVER launches after a preemption. 0 where nothing does, or our strategy reserves it

At each look the agent leases ``check + save + teardown`` from now, and ``recovery`` beyond its own end. When
the ledger grants it less, there is still time to save and go before its own part ends; so a cap is kept
though nobody else is alive.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lease:
    """The durations of one run, in milliseconds."""

    setup: int
    check: int
    save: int
    teardown: int
    recovery: int = 0

    def first(self, launched: int) -> int:
        """The end of the lease that a launch needs: until the first check and the save after it."""
        return launched + self.setup + self.check + self.save + self.teardown

    @property
    def unseen(self) -> int:
        """The longest that nodes run with no agent's look, until they are gone by their fuse. It is armed
        once they have booted, for which the teardown has room."""
        return self.burns_at(self.first(0)) + self.teardown

    def reserved(self, launched: int) -> int:
        """The end of what a launch reserves: its first lease, and ``recovery`` beyond it, which the agent's
        first look asks for."""
        return self.first(launched) + self.recovery

    def next(self, now: int) -> int:
        """The end of the lease that running on until the next check needs."""
        return now + self.check + self.save + self.teardown + self.recovery

    def own(self, until: int) -> int:
        """How much of a lease that ends at ``until`` its agent may use; the times below count from it."""
        return until - self.recovery

    def stop_at(self, until: int) -> int:
        """When the trainer must be asked to save, for the nodes to be gone by ``until``."""
        return until - self.save - self.teardown

    def dead_at(self, until: int) -> int:
        """When the agent ends whatever still runs: a save may take half an interval more, and to end it all
        takes less than the other half."""
        return until - self.teardown + self.check // 2

    def burns_at(self, until: int) -> int:
        """When the node's fuse takes it down: after the agent's own last resort, and before ``until`` by what
        is left of the teardown."""
        return until - self.teardown + self.check


# Of a task that nemo-sky did not launch itself, and that no cap is on: only for the record.
UNCAPPED_LEASE = Lease(setup=0, check=60_000, save=180_000, teardown=0)
