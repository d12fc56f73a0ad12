"""Random histories of launches, with any of the launcher, the agent, the controller and the store failing at
any moment: what a run or an experiment really costs never passes its cap by more than one interval.

The clock is virtual and the documents live in memory; the ledger, the gate and the leases are the real ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

from launcher.artifacts.store import StoreError
from launcher.errors import Refused
from launcher.money import account, booking, gate
from launcher.money.account import HOUR_MS, About, Account, Closed, Entry
from launcher.money.caps import Caps
from launcher.money.lease import Lease
from launcher.money.ledger import Ledger, account_name

HISTORIES = 10_000
LEASE = Lease(check=60_000, save=30_000, teardown=20_000, setup=300_000)
ABOUT = About("tiny", "pretrain", "ann", "aws")


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
    """What really happens: nodes that cost from ``launched`` to ``ended``, and the agent on them."""

    key: str
    run: str
    price: int
    launched: int
    until: int  # the lease as its holder knows it
    # The cluster's own fuse fires this much after the lease's end. Without one, as on the launcher's own
    # machine, the nodes' processes go with the agent.
    fuse_late: int | None
    agent: str = "boots"  # boots, works, saves, dead
    due: int = 0  # when the agent acts next
    refused: bool = False
    ended: int | None = None
    truly_settled: bool = False

    def cost(self, now: int) -> Fraction:
        end = now if self.ended is None else self.ended
        return Fraction(self.price * (end - self.launched), HOUR_MS)


@dataclass
class World:
    """One history."""

    seed: int
    now: int = 1_800_000_000_000
    stays: list[Stay] = field(default_factory=list)
    count: int = 0
    refused: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.cells = Shaky(self.chance)
        self.ledger = Ledger(self.cells)
        self.experiment = self.chance.choice([None, "e"])
        self.runs = [f"r{i}" for i in range(self.chance.randint(1, 3))]
        self.budgets = {run: self.chance.choice([None, self.amount()]) for run in self.runs}
        self.shared = self.amount() if self.experiment else None
        self.price = self.chance.choice([1_000_000, 12_290_001, 98_320_000])

    def amount(self) -> int:
        """From too little for one lease to enough for a few hours."""
        return self.chance.randint(100_000, 12_000_000)

    def account(self, run: str) -> str:
        return account_name(run, self.experiment)

    def play(self) -> None:
        for _ in range(self.chance.randint(3, 9)):
            self.cells.trouble = self.chance.choice([0.0, 0.0, 0.05, 0.5, 1.0])
            act: Callable[[], None] = self.chance.choice(
                [
                    self.launch,
                    self.launch,
                    self.wait,
                    self.wait,
                    self.kill,
                    self.preempt,
                    self.finish,
                    self.see_the_end,
                    self.give,
                ]
            )
            act()
            self.check()
        self.cells.trouble = 0.0
        self.advance(self.now + 10 * LEASE.check)
        for stay in self.living():
            self.lose(stay)
        if self.chance.random() < 0.3:
            self.see_the_end()
        self.advance(self.now + HOUR_MS)
        if self.chance.random() < 0.3:
            self.see_the_end()
        self.check_end()

    # What the launcher and the controller do

    def launch(self) -> None:
        """Reserve, then start; either may be where the launcher dies. A lost reply is asked for again."""
        run = self.chance.choice(self.runs)
        mine = [stay for stay in self.living() if stay.run == run]
        if any(stay.agent != "dead" for stay in mine):
            return  # a run that is on is refused before the ledger is asked
        for stay in mine:
            stay.ended = self.now  # its nodes are taken down, or taken over
        self.count += 1
        key = f"{run}-{self.count}"
        caps = Caps(budget=self.budgets[run], experiment=self.experiment, experiment_budget=self.shared)
        price = self.price * self.chance.randint(1, 2)
        entry = Entry(key, run, price, self.now, LEASE.first(self.now))
        order = gate.Order(entry, ABOUT, caps, Caps())
        for _ in range(3):
            try:
                booking.reserve(self.ledger, order)
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
        late = self.chance.choice([None, self.chance.randint(0, LEASE.check)])
        boots = self.now + self.chance.randint(0, LEASE.setup if late is None else 2 * LEASE.setup)
        self.stays.append(Stay(key, run, price, self.now, entry.until, late, due=boots))

    def give(self) -> None:
        """The budget of a run is raised by its next launch, or a lower one tried."""
        run = self.chance.choice(self.runs)
        if self.budgets[run]:
            self.budgets[run] = max((self.budgets[run] or 0) + self.chance.randint(-500_000, 20_000_000), 1)
        if self.shared and self.chance.random() < 0.3:
            self.shared = max(self.shared + self.chance.randint(-500_000, 20_000_000), 1)

    def see_the_end(self) -> None:
        """A launcher finds a run that has ended, sooner or later, and settles what nobody has."""
        for run in self.runs:
            if any(stay.run == run and (stay.ended or self.now) >= self.now for stay in self.stays):
                continue
            entries = self.held()[self.account(run)].of(run) if self.account(run) in self.held() else []
            if not entries or any(entry.ended is None for entry in entries[:-1]):
                continue  # two launches at once: which of them ended when is not known
            settled = partial(account.settle_run, run=run, now=self.now)
            try:
                held = self.ledger.change(self.account(run), settled)
            except StoreError:
                continue
            assert not [e for e in held.of(run) if e.is_open(self.now) or e.end > self.now], self.seed
            self.seen += 1

    def living(self) -> list[Stay]:
        return [stay for stay in self.stays if stay.ended is None]

    def wait(self) -> None:
        self.advance(self.now + self.chance.choice([1_000, 60_000, 300_000, 900_000]))

    def kill(self) -> None:
        """An agent is killed; its nodes stay until somebody ends them."""
        for stay in self.living()[:1]:
            self.lose(stay)

    def lose(self, stay: Stay) -> None:
        stay.agent = "dead"
        if stay.fuse_late is None:
            stay.ended = self.now

    def preempt(self) -> None:
        """The nodes are gone; the controller, if it lives, says so, and launches again."""
        for stay in self.living()[-1:]:
            stay.agent, stay.ended = "dead", self.now
            if self.chance.random() < 0.5:
                self.settle(stay, self.now)
                self.launch()

    def finish(self) -> None:
        for stay in self.living():
            if stay.agent == "works":
                self.end(stay)
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
        return min(self.fuse(stay), stay.due) if stay.agent != "dead" else self.fuse(stay)

    def fuse(self, stay: Stay) -> int:
        return self.now + 10 * HOUR_MS if stay.fuse_late is None else stay.until + stay.fuse_late

    def act(self, stay: Stay) -> None:
        if self.now >= self.fuse(stay):
            stay.agent, stay.ended = "dead", self.now  # the fuse: nobody says so
        elif stay.agent == "saves":
            self.end(stay)
        else:
            self.look(stay)

    def look(self, stay: Stay) -> None:
        """The agent's check of the ledger, at its start and each interval."""
        stay.agent = "works"
        wanted = LEASE.next(self.now)
        try:
            renewed = self.ledger.change(
                self.account(stay.run), lambda held: account.renew(held, stay.key, wanted)
            )
            stay.until = renewed.entries[stay.key].until
        except StoreError:
            stay.until = LEASE.at_worst(stay.until, self.now)
        except Closed:
            stay.until = min(stay.until, self.now)
        stop = LEASE.stop_at(stay.until)
        if self.now >= stop:
            took = self.chance.choice([1, 1, 20]) * self.chance.randint(
                0, LEASE.save
            )  # one that hangs is cut
            stay.agent, stay.due = "saves", min(self.now + took, max(LEASE.dead_at(stay.until), self.now))
        else:
            stay.due = min(self.now + LEASE.check // 2, stop)

    def end(self, stay: Stay) -> None:
        """The agent ends and says when the nodes will be gone; that is true."""
        stay.agent = "dead"
        stay.ended = min(self.now + self.chance.randint(0, LEASE.teardown), self.fuse(stay))
        self.settle(stay, stay.ended)

    def settle(self, stay: Stay, ended: int) -> None:
        for _ in range(2):
            try:
                self.ledger.change(self.account(stay.run), lambda held: account.settle(held, stay.key, ended))
                stay.truly_settled = True
                return
            except StoreError:
                continue

    # What must be true

    def held(self) -> dict[str, Account]:
        trouble, self.cells.trouble = self.cells.trouble, 0.0
        found = self.ledger.accounts()
        self.cells.trouble = trouble
        return found

    def check(self) -> None:
        """Really spent, run by run and for all: no more than the cap and one interval of what ran last."""
        for held in self.held().values():
            for whose, cap, over in {cap for run in held.runs for cap in held.caps(run)}:
                mine = [stay for stay in self.stays if stay.run in held.runs and over in (None, stay.run)]
                spent = sum((stay.cost(self.now) for stay in mine), Fraction(0))
                assert held.committed(over) <= cap + self.interval(mine), f"{whose}, seed {self.seed}"
                assert spent <= cap + self.interval(mine), f"{whose}, seed {self.seed}"

    def interval(self, stays: list[Stay]) -> Fraction:
        """What one interval costs of the stays that ran past their lease, of which each may by one."""
        over = [s for s in stays if (self.now if s.ended is None else s.ended) > s.until]
        return sum((Fraction(s.price * LEASE.check, HOUR_MS) for s in over), Fraction(0))

    def check_end(self) -> None:
        self.check()
        for name, held in self.held().items():
            assert Account.from_json(held.to_json()) == held, name
            costs = {run: held.committed(run) for run in held.runs}
            assert sum(costs.values()) == held.committed() == sum(e.cost for e in held.entries.values())
            for entry in held.entries.values():
                there = [stay for stay in self.stays if stay.key == entry.key]
                gone = max((stay.ended or self.now for stay in there), default=entry.launched)
                longest = LEASE.first(0) if gone < LEASE.first(entry.launched) else LEASE.next(0)
                assert entry.end - gone <= longest, f"more than a lease leaked, seed {self.seed}"
        for stay in self.stays:
            entry = self.held()[self.account(stay.run)].entries[stay.key]
            real = stay.cost(self.now)
            assert stay.ended is not None
            if stay.truly_settled:
                assert 0 <= entry.cost - real < 1, f"to the micro-dollar, seed {self.seed}"
            late = max(stay.ended - entry.end, 0)
            assert late <= LEASE.check, f"counted short, seed {self.seed}"


def test_no_history_passes_a_cap_by_more_than_an_interval() -> None:
    admitted = refused = stopped = seen = 0
    for seed in range(HISTORIES):
        world = World(seed)
        world.play()
        admitted += len(world.stays)
        refused += world.refused
        stopped += sum(stay.truly_settled for stay in world.stays)
        seen += world.seen
    assert min(admitted, refused, stopped, seen) > HISTORIES / 20, (admitted, refused, stopped, seen)
