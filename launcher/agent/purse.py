"""Keeps the attempt within its budget and its deadline, with the launcher and everybody else dead.

At every check the lease of the attempt in the ledger is renewed (``launcher.money.hold``). When the caps
grant less than the next interval needs, the trainer is asked to save and the attempt ends as ``budget
reached``, in time for what is granted. When the ledger cannot be asked, a capped attempt goes on only as far
as it was granted before. What still runs when its lease is over ends there and then.

A deadline needs no ledger: the trainer is asked to save in time for the nodes to be gone by then.

An attempt without a cap is written down alike, but no trouble with the ledger stops it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.agent import fuse
from launcher.agent.ends import (
    BUDGET,
    BUDGET_REACHED,
    DEADLINE,
    DEADLINE_REACHED,
    INTERRUPTED,
    NO_STORE,
    START_RETRY_S,
    Ended,
    Once,
    Outcome,
    insist,
    say,
)
from launcher.agent.job import Job, Node
from launcher.agent.output import Clock, Spent
from launcher.agent.rendezvous import STOP, Attempt
from launcher.agent.stop import Stop
from launcher.artifacts.deadline import within
from launcher.artifacts.store import StoreError
from launcher.errors import Refused
from launcher.money.account import MICROS, About, Account, Closed, Entry, micros, money
from launcher.money.hold import Hold
from launcher.money.ledger import account_name, now_ms, open_ledger

_LEAST_WAIT_S = 2.0  # for one call to the ledger, however short the interval
_POLL_S = 1.0
_SEEN_S = 60.0  # for whoever watches the job to see its end
_LOOK_MS = 60_000  # a machine that sleeps, or whose clock is set, is not late by more
_SHARED = ("local", "fake", "kubernetes", "ssh")  # an uptime there is not of our instance
_BEFORE_BOOT_MS = 120_000  # that an instance may be paid for before its kernel runs


class Purse:
    """The attempt's entry in the ledger, from ``open`` to ``close``."""

    def __init__(self, job: Job, node: Node, attempt: Attempt, stop: Stop) -> None:
        self._attempt, self._stop = attempt, stop
        self._ledger = open_ledger(attempt.store)
        self._name = account_name(job.run_id, job.money.experiment)
        self._lease = job.money.lease
        self._hold = _hold(job, node, attempt.number)
        self._fuse = fuse.file_of(job.run_id)
        self._deadline = job.money.deadline
        self._began = _began(node, now_ms(), self._lease.setup)
        self._trouble = Once()
        self._ending, self._closing = threading.Event(), threading.Event()
        self._asking = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="purse", daemon=True)

    def open(self) -> None:
        """Take over what was reserved, or enter what a recovery has cost already; then watch over it.

        Raises Ended when the budget or the deadline does not allow another attempt, or the ledger fails
        under a cap. What the set-up has cost is in the ledger all the same.
        """
        hold = self._hold
        late = self._deadline is not None and now_ms() >= self._lease.stop_at(self._deadline)
        if self._deadline is not None and not late:
            if not hold.capped:  # until a renewal says otherwise
                fuse.move(self._fuse, self._lease.burns_at(self._deadline) / 1000)
            threading.Thread(target=self._watch_deadline, name="deadline", daemon=True).start()
        try:
            hold.take(insist(lambda: self._ledger.change(self._name, self._begin), START_RETRY_S))
        except StoreError as error:
            if hold.capped and not late:
                raise Ended(NO_STORE, f"a budget is set, but {error.message}") from error
            say(f"this attempt is not in the ledger: {error.message}")
        except Refused as refused:
            raise Ended(BUDGET, refused.message) from refused
        if late:
            raise Ended(DEADLINE, f"{DEADLINE_REACHED} before the attempt began")
        if hold.entry is None:
            return
        if hold.capped and now_ms() >= hold.stop_at:
            raise Ended(BUDGET, self._why().reason or BUDGET_REACHED)
        self._thread.start()

    def clock(self, clock: Clock) -> Clock:
        """The clock that counts from the launch of the instances, after what the ledger knows of before."""
        entry = self._hold.entry
        if entry is None or entry.price is None:
            return clock
        before = Spent(clock.before.hours, self._hold.before / MICROS)
        price = entry.price / MICROS
        return replace(clock, began=entry.launched / 1000, before=before, price_per_hour=price)

    def close(self) -> None:
        """The attempt is over; the entry ends now, and the nodes soon, should nobody take them down."""
        self._closing.set()
        self.settle()
        fuse.move(self._fuse, time.time() + max(self._lease.teardown / 2000, _SEEN_S))

    def settle(self) -> None:
        """What is left to do takes no money worth a lease: the entry ends now, as far as can be said. One
        that cannot be settled counts to the end of its lease."""
        self._ending.set()
        if self._hold.entry is None:
            return
        if self._thread.is_alive() and self._closing.is_set():
            self._thread.join()
        try:
            self._settle()
        except (StoreError, TimeoutError, Closed) as error:
            say(f"the ledger counts this attempt to the end of its lease: {error}")

    def _begin(self, held: Account) -> Account:
        return self._hold.begin(held, now_ms(), self._began)

    def _watch(self) -> None:
        """Renew the lease twice in every interval; stop when it cannot reach the next one."""
        hold = self._hold
        wait_ms = 0
        while not self._ending.wait(wait_ms / 1000):
            try:
                hold.look(self._change, now_ms)
            except Closed as error:
                if self._ending.is_set():
                    break
                hold.lose(now_ms(), error.message)
            if hold.trouble:
                self._trouble.trouble(f"the ledger cannot be used now: {hold.trouble}")
            else:
                self._trouble.over()
            if hold.capped:
                fuse.move(self._fuse, hold.burns_at(self._deadline) / 1000)
            now = now_ms()
            if hold.capped and now >= hold.stop_at:
                self._ask(self._why())
                break
            wait_ms = hold.next_look(now) - now
        self._end_by(hold.dead_at if hold.capped else None, self._why())

    def _watch_deadline(self) -> None:
        """Stop when the deadline leaves no more than a save and the teardown."""
        assert self._deadline is not None
        stop_at = self._lease.stop_at(self._deadline)
        while (left := stop_at - now_ms()) > 0:
            if self._ending.wait(min(left, _LOOK_MS) / 1000):
                return
        why = Outcome(DEADLINE_REACHED, DEADLINE, DEADLINE_REACHED)
        self._ask(why)
        self._end_by(self._lease.dead_at(self._deadline), why)

    def _end_by(self, dead_at: int | None, why: Outcome) -> None:
        """Wait for the attempt to be over. What still runs at ``dead_at`` ends there and then."""
        if self._closing.wait(None if dead_at is None else max(dead_at - now_ms(), 0) / 1000):
            return
        say(f"{why.reason}, and the time to save is over")
        with contextlib.suppress(StoreError, TimeoutError, Closed):
            if self._hold.entry:
                self._settle()
        os._exit(why.code)  # the command's guard ends what is left

    def _ask(self, why: Outcome) -> None:
        """Ask every node to save, once: a second signal would kill what saves."""
        if not self._asking.acquire(blocking=False):
            return
        with contextlib.suppress(StoreError, TimeoutError):
            within(_LEAST_WAIT_S, lambda: self._attempt.stop(why.status, why.code, why.reason))
        self._stop.ask(why)

    def _settle(self) -> None:
        now = now_ms()
        self._change(lambda held: self._hold.settled(held, now))

    def _change(self, step: Callable[[Account], Account]) -> Account:
        """One change of the account, which a store that hangs does not hold up."""
        seconds = max(_LEAST_WAIT_S, self._lease.check / 2000)
        return within(seconds, lambda: self._ledger.change(self._name, step))

    def _why(self) -> Outcome:
        """How the attempt ends when its lease does."""
        if self._hold.why:
            return Outcome("interrupted", INTERRUPTED, self._hold.why)
        assert self._hold.entry
        spent, kept = self._hold.spent(now_ms())
        words = f"{money(spent)} this attempt, {money(kept)} kept to save and to go"
        return Outcome(BUDGET_REACHED, BUDGET, f"{BUDGET_REACHED} ({words})")


def _hold(job: Job, node: Node, number: int) -> Hold:
    place, now = node.place, now_ms()
    pattern = Entry(
        f"{job.run_id}/attempt-{number}",
        job.run_id,
        micros(job.price_per_hour),
        now,
        now,
        nodes=node.count,
        cloud=place.get("cloud"),
        region=place.get("region"),
        zone=place.get("zone"),
        attempt=number,
    )
    facts, terms = job.provenance, job.money
    user, cluster = str(facts.get("user") or "unknown"), str(facts.get("cluster") or "unknown")
    about = About(job.family, job.stage, user, cluster)
    return Hold(pattern, about, terms.lease, terms.reservation, terms.capped)


def obey(attempt: Attempt, stop: Stop, noticed: Callable[[str, float], None] = lambda *_: None) -> None:
    """Stop when node 0's purse is empty, when the run is cancelled, or when an instance is to go, of which
    ``noticed`` gets the reason and the time. Watches in a thread: after a notice also for the others."""

    def watch() -> None:
        waiting = False
        while True:
            with contextlib.suppress(StoreError):
                if facts := look(attempt, stop):
                    if facts.get("leaves_at") is None:
                        return
                    if not waiting:
                        noticed(facts["reason"], facts["leaves_at"])
                    waiting = True
            time.sleep(_POLL_S)

    threading.Thread(target=watch, name="obey", daemon=True).start()


def look(attempt: Attempt, stop: Stop) -> dict[str, Any] | None:
    """Whether every node is to stop now, and why. The command here may end, well or badly, because another
    node's was asked first: then the reason is in the store already. Raises StoreError."""
    if facts := attempt.read(STOP):
        stop.ask(Outcome(facts["status"], facts["code"], facts["reason"]), facts.get("leaves_at"))
    return facts


def _began(node: Node, now: int, setup: int) -> int | None:
    """Since when the nodes of this attempt are paid for, in milliseconds since the epoch, and rather too
    early; None where nobody knows.

    On Slurm that is when the allocation began. On a cloud it is when this machine started, less what may be
    paid before; of several nodes the first need not be the oldest, so there it is a set-up ago at the latest.
    A machine that others share has been up for long: no entry begins before it was launched.
    """
    cloud = (node.place.get("cloud") or "local").lower()
    if cloud == "slurm":
        started = fuse.started()
        return None if started is None else round(1000 * started)
    if cloud in _SHARED:
        return None
    booted = now - round(1000 * float(Path("/proc/uptime").read_text().split()[0])) - _BEFORE_BOOT_MS
    return booted if node.count == 1 else min(booted, now - setup)
