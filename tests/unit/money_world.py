"""One random history of runs under caps: nodes, agents, fuses, SkyPilot's controllers and a store that fails.

The clock is virtual and the documents live in memory. What decides is the real thing: the gate and the
booking of a launch, the agent's hold on its entry, the strategy's question and its reservation, the lease and
the ledger. What is made up is the world around them, which does its worst within what a lease allows for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any

from launcher.artifacts.store import StoreError
from launcher.errors import Refused
from launcher.money import account, booking, gate, recovery
from launcher.money.account import HOUR_MS, MICROS, About, Account, Closed, Entry
from launcher.money.caps import Caps
from launcher.money.hold import Hold
from launcher.money.lease import Lease
from launcher.money.ledger import Ledger, account_name
from launcher.money.policy import Launch
from launcher.money.recovery import Here, Terms
from launcher.skyplugin import decide

ABOUT = About("tiny", "pretrain", "ann", "aws")
LEASE = Lease(check=60_000, save=30_000, teardown=20_000, setup=300_000)
LEASES = {
    "here": replace(LEASE, teardown=0),  # processes of this machine, which go with their agent
    "cluster": LEASE,  # nodes that stay until somebody ends them, of a run that nobody recovers
    "ours": LEASE,  # a managed job that our strategy recovers
    "failover": replace(LEASE, recovery=LEASE.setup + LEASE.teardown),  # one that SkyPilot's own recovers
}
BEFORE_BOOT = 5_000  # an agent takes its machine for older than it is, by no more


class Shaky:
    """Documents in memory whose calls fail before or after they took effect."""

    def __init__(self, chance: random.Random) -> None:
        self.documents: dict[str, tuple[bytes, int]] = {}
        self.chance = chance
        self.trouble = 0.0

    def _maybe(self) -> None:
        if self.trouble and self.chance.random() < self.trouble:
            raise StoreError("lost")

    def read(self, name: str) -> tuple[bytes, str] | None:
        self._maybe()
        found = self.documents.get(name)
        return (found[0], str(found[1])) if found else None

    def swap(self, name: str, data: bytes, tag: str | None) -> bool:
        self._maybe()
        version = self.documents.get(name, (b"", 0))[1]
        if str(version) != (tag or "0"):
            return False
        self.documents[name] = (data, version + 1)
        self._maybe()
        return True

    def names(self) -> list[str]:
        return sorted(self.documents)


@dataclass
class Stay:
    """Nodes that cost from ``began`` to ``ended``, and the agent on them."""

    run: str
    number: int
    price: int
    began: int
    key: str | None  # what was reserved for it; None: nobody asked
    fuse: int | None  # when it burns
    due: int  # when the agent acts next
    agent: str = "boots"  # boots, works, saves, dead
    hold: Hold | None = None
    ended: int | None = None
    looked: bool = False
    said: bool = False  # the ledger was told of its end by its own agent

    def cost(self, now: int) -> Fraction:
        end = now if self.ended is None else self.ended
        return Fraction(self.price * max(end - self.began, 0), HOUR_MS)

    def entry(self, held: Account) -> Entry | None:
        mine = [e for e in held.of(self.run) if e.attempt == self.number]
        return mine[-1] if mine else held.entries.get(self.key or "")


@dataclass
class World:
    """One history."""

    seed: int
    now: int = 1_800_000_000_000
    stays: list[Stay] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)  # managed jobs: the launcher's reservation of each
    events: dict[str, dict[str, Any]] = field(default_factory=dict)  # what became of their last launch
    attempts: int = 0
    launches: int = 0
    refused: int = 0
    recovered: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.cells = Shaky(self.chance)
        self.ledger = Ledger(self.cells)
        self.experiment = self.chance.choice([None, "e"])
        self.modes = {f"r{i}": self.chance.choice(list(LEASES)) for i in range(self.chance.randint(1, 3))}
        self.price = self.chance.choice([1_000_000, 12_290_001, 98_320_000])
        self.budgets = {run: self.chance.choice([None, self.amount()]) for run in self.modes}
        self.shared = self.amount() if self.experiment else None

    def amount(self) -> int:
        """Micro-dollars, from too little for one lease to enough for a few hours."""
        return round(self.price * self.chance.choice([0.1, 0.4, 1.5, 4]) * self.chance.uniform(0.5, 1))

    def account(self, run: str) -> str:
        return account_name(run, self.experiment)

    def lease(self, run: str) -> Lease:
        return LEASES[self.modes[run]]

    def change(self, run: str) -> Callable[[Callable[[Account], Account]], Account]:
        return lambda step: self.ledger.change(self.account(run), step)

    def some(self, most: int) -> int:
        """A duration up to ``most``, also none and all of it."""
        return self.chance.choice([0, most, self.chance.randint(0, most)])

    def play(self, check: Callable[[World], None]) -> None:
        """``check`` is called after every act."""
        acts = [self.launch, self.launch, self.wait, self.wait, self.wait, self.kill, self.preempt]
        acts += [self.wait, self.finish, self.see_the_end, self.give, self.recover]
        for _ in range(self.chance.randint(4, 12)):
            self.cells.trouble = self.chance.choice([0.0, 0.0, 0.05, 0.5, 1.0])
            self.chance.choice(acts)()
            check(self)
        self.cells.trouble = 0.0
        self.advance(self.now + 15 * LEASE.check)
        self.jobs.clear()  # the controllers are dead
        for stay in self.living():
            self.lose(stay)
        if self.chance.random() < 0.3:
            self.see_the_end()
        self.advance(self.now + HOUR_MS)
        if self.chance.random() < 0.3:
            self.see_the_end()

    # What a launcher does

    def launch(self) -> None:
        """Reserve, then start; either may be where the launcher dies. A lost reply is asked for again."""
        run = self.chance.choice(list(self.modes))
        mine = [stay for stay in self.living() if stay.run == run]
        if run in self.jobs or any(stay.agent != "dead" for stay in mine):
            return  # a run that is on is refused before the ledger is asked
        for stay in mine:
            stay.ended = self.now  # its nodes are taken down, or taken over
        self.launches += 1
        key, lease = f"{run}-{self.launches}", self.lease(run)
        caps = Caps(budget=self.budgets[run], experiment=self.experiment, experiment_budget=self.shared)
        entry = Entry(key, run, self.price * self.chance.randint(1, 2), self.now, lease.reserved(self.now))
        order = gate.Order(entry, ABOUT, caps, Caps(), recovery=lease.recovery)
        for _ in range(3):
            try:
                held = booking.reserve(self.ledger, order)
                break
            except StoreError:
                continue
            except Refused:
                self.refused += 1
                return
        else:
            return  # it cannot know whether it reserved: it does not launch
        if self.chance.random() < 0.1:
            return  # died before anything was launched
        if self.modes[run] in ("ours", "failover"):
            self.jobs[run] = key
            self.events.pop(run, None)
        if self.modes[run] == "ours":
            self.ask(run)
        else:
            assert entry.price
            self.start(run, entry.price, key, capped=bool(held.caps(run)))

    def give(self) -> None:
        """The budget of a run is raised by its next launch, or a lower one tried."""
        run = self.chance.choice(list(self.modes))
        by = round(self.price * self.chance.uniform(-0.1, 2))
        if self.budgets[run]:
            self.budgets[run] = max((self.budgets[run] or 0) + by, 1)
        if self.shared and self.chance.random() < 0.3:
            self.shared = max(self.shared + by, 1)

    def see_the_end(self) -> None:
        """A launcher finds a run that has ended, sooner or later, and settles what nobody has."""
        for run in self.modes:
            name = self.account(run)
            if run in self.jobs or any(
                stay.run == run and (stay.ended or self.now) >= self.now for stay in self.stays
            ):
                continue
            if not (self.held()[name].of(run) if name in self.held() else []):
                continue
            try:
                held = self.ledger.change(name, partial(account.settle_run, run=run, now=self.now))
            except StoreError:
                continue
            latest = self.now + self.lease(run).teardown  # that its agent promised
            assert not [e for e in held.of(run) if e.is_open(self.now) or e.end > latest], self.seed
            self.seen += 1

    # What SkyPilot does

    def start(self, run: str, price: int, key: str | None, *, capped: bool) -> None:
        """Nodes come, after a queue, and boot; their set-up arms the fuse, then the agent begins.

        What the fuse allows too much, the boot before it is armed, is part of the teardown.
        """
        self.attempts += 1
        here, lease = self.modes[run] == "here", self.lease(run)
        began = self.now if here else self.now + self.chance.choice([0, 0, 60_000, 1_200_000])
        boot = 0 if here else self.some(lease.teardown // 2)
        burns = None if here or not capped else began + boot + lease.burns_at(lease.first(0))
        due = began + boot + self.some(lease.setup - boot)
        self.stays.append(Stay(run, self.attempts, price, began, key, burns, due))

    def ask(self, run: str) -> None:
        """The controller has our strategy asked; a store that fails it is asked again, by ``recover``."""
        self.now += 1  # it takes a while, and the ledger sorts by time
        lease, seconds = self.lease(run), self.now / 1000
        terms = Terms(
            run, "", seconds, lease, experiment=self.experiment, capped=True, reservation=self.jobs[run]
        )
        dollars = self.price * self.chance.randint(1, 2) / MICROS
        place = {"price": dollars, "cloud": "aws", "region": "r", "zone": "z"}
        event = self.events.pop(run, None)
        try:
            held = self.ledger.change(
                self.account(run), lambda held: decide._without_nodes(held, terms, event, seconds)
            )
            left = held.left(run)
            here = Here(
                spot={"z": dollars},
                on_demand=None,
                room=None if left is None else left / MICROS,
            )
            decision, _ = recovery.choose(terms, here, (), seconds)
            if isinstance(decision, Launch):
                asked = {"on_demand": None, "nodes": 1}
                decide._reserve(self.ledger, self.account(run), terms, "z", place, asked, seconds)
                if self.chance.random() < 0.2:
                    self.events[run] = {"what": "refused", "was_up": False}
                    return
                self.events[run] = {"what": "lost"}
                held = self.held()[self.account(run)]
                key = account.free(held, run)
                assert [e.key for e in held.of(run) if e.is_open(self.now)] == [key], (
                    f"leaked, seed {self.seed}"
                )
                self.start(run, round(dollars * MICROS), key, capped=bool(held.caps(run)))
            else:
                del self.jobs[run]
        except StoreError:
            return
        except Refused:
            del self.jobs[run]

    def recover(self) -> None:
        """The controllers look after their jobs: those whose nodes are gone are begun again."""
        for run in list(self.jobs):
            if any(stay.run == run and (stay.ended is None or stay.ended > self.now) for stay in self.stays):
                continue
            last = next((stay for stay in reversed(self.stays) if stay.run == run), None)
            self.recovered += last is not None
            if self.modes[run] == "ours":
                self.ask(run)
            elif last:  # nobody asks
                self.start(run, last.price, None, capped=last.fuse is not None)

    def living(self) -> list[Stay]:
        return [stay for stay in self.stays if stay.ended is None]

    def wait(self) -> None:
        self.advance(self.now + self.chance.choice([1_000, 60_000, 300_000, 900_000]))
        if self.chance.random() < 0.7:
            self.recover()

    def kill(self) -> None:
        """An agent is killed; its nodes stay until somebody ends them."""
        for stay in self.living()[:1]:
            self.lose(stay)

    def lose(self, stay: Stay) -> None:
        stay.agent = "dead"
        if stay.fuse is None:  # SkyPilot's autodown, or there are no nodes but this machine
            stay.ended = max(self.now, stay.began)

    def preempt(self) -> None:
        """The nodes are gone at once, also those that never came."""
        for stay in self.living()[-1:]:
            stay.agent, stay.ended = "dead", max(self.now, stay.began)
        if self.chance.random() < 0.5:
            self.recover()

    def finish(self) -> None:
        for stay in self.living():
            if stay.agent == "works":
                self.end(stay)
                self.jobs.pop(stay.run, None)
                return

    # What an agent does

    def advance(self, to: int) -> None:
        """Play all that is due until then, in order."""
        while True:
            due = [(self.due(stay), n) for n, stay in enumerate(self.stays) if stay.ended is None]
            when, which = min(due, default=(to + 1, -1))
            if when > to:
                break
            self.now = max(self.now, when)
            self.act(self.stays[which])
        self.now = to

    def due(self, stay: Stay) -> int:
        burns = self.now + 10 * HOUR_MS if stay.fuse is None else stay.fuse
        return burns if stay.agent == "dead" else min(burns, stay.due)

    def act(self, stay: Stay) -> None:
        lease = self.lease(stay.run)
        if stay.fuse is not None and self.now >= stay.fuse:  # nobody says so
            stay.agent, stay.ended = "dead", self.now + self.some(lease.teardown // 2)
        elif stay.agent == "boots":
            self.begin(stay)
        elif stay.agent == "saves":
            assert stay.hold
            self.end(stay)
            if stay.hold.why is None:  # the budget is reached, which nobody tries again
                self.jobs.pop(stay.run, None)
        else:
            self.look(stay)

    def begin(self, stay: Stay) -> None:
        """The agent's first words to the ledger. Under a cap it does not begin without an answer."""
        mine = Entry(f"{stay.run}/attempt-{stay.number}", stay.run, stay.price, 0, 0, attempt=stay.number)
        here, capped = self.modes[stay.run] == "here", stay.fuse is not None or self.shared is not None
        capped = capped or self.budgets[stay.run] is not None
        hold = Hold(mine, ABOUT, self.lease(stay.run), self.jobs.get(stay.run, stay.key), capped)
        began = None if here else stay.began - self.some(BEFORE_BOOT)
        for _ in range(3):
            try:
                hold.take(self.change(stay.run)(lambda held: hold.begin(held, self.now, began)))
                break
            except StoreError:
                continue
        else:
            self.leave(stay)
            return
        stay.hold, stay.agent = hold, "works"
        if hold.capped and self.now >= hold.stop_at:
            self.end(stay)
            self.jobs.pop(stay.run, None)
        else:
            self.look(stay)

    def look(self, stay: Stay) -> None:
        """The agent's check of the ledger, once it has begun and in each interval."""
        hold = stay.hold
        assert hold
        if stay.looked and hold.capped:
            assert self.now <= hold.stop_at, f"asks too late for a save, seed {self.seed}"
        stay.looked = True
        try:
            hold.look(self.change(stay.run), lambda: self.now)
        except Closed as closed:
            hold.lose(self.now, closed.message)
        if hold.capped and stay.fuse is not None:
            stay.fuse = hold.burns_at(None)
        if hold.capped and self.now >= hold.stop_at:
            took = self.chance.choice([1, 1, 20]) * self.some(hold.lease.save)  # one that hangs is cut
            stay.agent, stay.due = "saves", max(min(self.now + took, hold.dead_at), self.now)
        else:
            stay.due = hold.next_look(self.now)

    def end(self, stay: Stay) -> None:
        """The agent ends and says when the nodes will be gone at the latest."""
        assert stay.hold
        hold, ended = stay.hold, self.now
        for _ in range(2):
            try:
                self.change(stay.run)(lambda held: hold.settled(held, ended))
                stay.said = True
                break
            except StoreError:
                continue
        self.leave(stay)

    def leave(self, stay: Stay) -> None:
        stay.agent, stay.ended = "dead", self.now + self.some(self.lease(stay.run).teardown)

    # What the ledger says

    def held(self) -> dict[str, Account]:
        trouble, self.cells.trouble = self.cells.trouble, 0.0
        found = self.ledger.accounts()
        self.cells.trouble = trouble
        return found
