"""Jobs that SkyPilot's own FAILOVER recovers: nobody asks the ledger before it launches; the cap holds."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.agent import fuse
from launcher.agent.ends import BUDGET, DEADLINE, Ended
from launcher.agent.job import Job, Node, Terms
from launcher.agent.purse import Purse
from launcher.agent.rendezvous import Attempt
from launcher.agent.stop import Stop
from launcher.artifacts.store import open_store
from launcher.errors import Refused
from launcher.money import account as accounts
from launcher.money import failover, gate
from launcher.money.account import HOUR_MS, MICROS, About, Account, Closed, Entry, charge
from launcher.money.caps import Caps
from launcher.money.hold import Hold
from launcher.money.lease import Lease
from launcher.money.ledger import Ledger, account_name, now_ms, open_ledger
from tests.unit.money_world import Shaky

MINUTE = 60_000
LEASE = Lease(setup=20 * MINUTE, check=MINUTE, save=3 * MINUTE, teardown=5 * MINUTE, recovery=25 * MINUTE)
ABOUT = About("tiny", "pretrain", "me", "aws")
PRICE = 120 * MICROS


def with_budget(amount: int) -> Account:
    return accounts.set_budget(Account(runs={"r": ABOUT}), "r", amount, "me", 0)


# Histories


@dataclass
class Failover:
    """One job with a cap: where its nodes really are, and what its ledger says. Clock in milliseconds."""

    seed: int
    now: int = 1_800_000_000_000
    real: int = 0
    lost_setups: int = 0  # ended before their agent began: nobody can have entered them

    def play(self) -> tuple[int, Account]:
        chance = random.Random(self.seed)
        cap = chance.randint(110, 600) * MICROS
        first = Entry("r/first", "r", PRICE, self.now, LEASE.reserved(self.now))
        held = accounts.reserve(with_budget(cap), first, ABOUT)
        booted, attempt = self.now + chance.choice([0, 5, 600]) * MINUTE, 0
        while True:
            setup = chance.randint(0, LEASE.setup)
            if attempt and chance.random() < 0.2:
                self.lost_setups += charge(PRICE, setup)
                booted += setup + chance.choice([0, 5, 60, 600]) * MINUTE
                continue
            attempt += 1
            self.now = booted + setup
            held, ended = self.attempt(held, attempt, booted, chance)
            self.real += charge(PRICE, self.now - booted)
            if ended:
                return cap, held
            booted = self.now + chance.choice([1, 5, 60, 600]) * MINUTE

    def attempt(self, held: Account, number: int, booted: int, chance: random.Random) -> tuple[Account, bool]:
        """From the agent's first look to the end of the nodes; whether it ended by the budget."""
        key = accounts.free(held, "r")
        if key:
            taken = accounts.adopt(held, key, number, {}, booted - LEASE.recovery)
            held = accounts.renew(taken, key, LEASE.next(self.now))
        else:
            key = f"r/attempt-{number}"
            entry = Entry(key, "r", PRICE, self.now, LEASE.next(self.now), attempt=number)
            held = failover.enter(held, entry, ABOUT, LEASE, self.now, booted)
        preempted = self.now + chance.choice([1, 10, 60, 300]) * chance.randint(1, MINUTE)
        began = self.now
        while self.now < LEASE.stop_at(LEASE.own(held.entries[key].until)):
            if self.now >= preempted:
                return held, False
            self.now += LEASE.check // 2
            held = accounts.renew(held, key, LEASE.next(self.now))
        self.now += chance.randint(0, LEASE.save) if self.now > began else 0
        held = accounts.settle(held, key, self.now + LEASE.teardown)
        self.now += chance.randint(0, LEASE.teardown)
        return held, True


def test_a_job_that_failover_recovers_keeps_its_cap() -> None:
    """Whatever it waits between two places, and though no launch was asked for; but for set-ups that were
    lost before any of ours ran."""
    interval = charge(PRICE, LEASE.check)
    recovered = 0
    for seed in range(400):
        history = Failover(seed)
        cap, held = history.play()
        assert history.real <= cap + interval, f"seed {seed}"
        assert held.committed("r") <= cap + interval, f"seed {seed}"
        assert history.real <= held.committed("r") + len(held.entries), f"counted short, seed {seed}"
        recovered += len(held.entries) > 2
    assert recovered > 100


def test_what_was_spent_before_anybody_could_ask_is_entered_above_the_cap_too() -> None:
    held = with_budget(10 * MICROS)
    spent = Entry("r/1", "r", PRICE, 0, 5 * MINUTE, attempt=1, ended=5 * MINUTE)
    held = accounts.reserve(held, spent, ABOUT)
    now = HOUR_MS
    entry = Entry("r/attempt-2", "r", PRICE, now, LEASE.next(now), attempt=2)
    entered = failover.enter(held, entry, ABOUT, LEASE, now, now - 10 * MINUTE)
    mine = entered.entries["r/attempt-2"]
    assert (mine.launched, mine.until) == (now - 10 * MINUTE, now + LEASE.teardown)
    assert entered.committed("r") == 40 * MICROS


MINUTES = st.integers(0, 40).map(lambda minutes: minutes * MINUTE)


@settings(max_examples=200)
@given(
    setup=MINUTES,
    check=st.integers(1, 10**6),
    save=MINUTES,
    teardown=MINUTES,
    failover_s=st.booleans(),
    price=st.integers(1, 500 * MICROS),
    short=st.integers(-3, 3),
    part=st.floats(0, 1),
)
def test_whom_the_gate_admits_the_first_look_does_not_end(
    setup: int, check: int, save: int, teardown: int, failover_s: bool, price: int, short: int, part: float
) -> None:
    """At the price of its reservation, whenever within its set-up that look is."""
    lease = Lease(setup, check, save, teardown, setup + teardown if failover_s else 0)
    entry = Entry("r/first", "r", price, 0, lease.reserved(0))
    budget = Caps(budget=max(entry.cost - short, 0))
    order = gate.Order(entry, ABOUT, budget, Caps(), recovery=lease.recovery)
    if short > 0:
        with pytest.raises(Refused) as refused:
            gate.admit(Account(), order)
        assert ("for the set-up of the next nodes" in refused.value.message) == (lease.recovery > 0)
        return
    held = gate.admit(Account(), order)
    look = round(part * lease.setup)
    held = accounts.renew(accounts.adopt(held, entry.key, 1, {}), entry.key, lease.next(look))
    assert look < lease.stop_at(lease.own(held.entries[entry.key].until))


def test_a_budget_between_one_set_up_and_two_is_refused_by_what_is_missing() -> None:
    """29 minutes at $120/h for itself, 25 for the next nodes."""
    entry = Entry("r/first", "r", PRICE, 0, LEASE.reserved(0), market="spot")
    order = gate.Order(entry, ABOUT, Caps(budget=60 * MICROS), Caps(), recovery=LEASE.recovery)
    with pytest.raises(
        Refused, match=r"\$108.00 more is \$48.00 too much .* \$50.00 for the set-up"
    ) as refused:
        gate.admit(Account(), order)
    assert "with it $58.00 would begin" in (refused.value.hint or "")
    ours = Entry("r/first", "r", PRICE, 0, replace(LEASE, recovery=0).reserved(0))
    assert gate.admit(Account(), gate.Order(ours, ABOUT, Caps(budget=60 * MICROS), Caps())).entries


# The purse itself, on this machine


def test_an_attempt_whose_entry_another_took_over_stops_at_its_next_look() -> None:
    ledger = Ledger(Shaky(random.Random(0)))
    mine = Entry("r/attempt-1", "r", PRICE, 0, 0, attempt=1)
    ledger.change("runs/r", lambda _: with_budget(900 * MICROS))
    hold = Hold(mine, ABOUT, LEASE, None, capped=True)
    hold.take(ledger.change("runs/r", lambda held: hold.begin(held, HOUR_MS, HOUR_MS)))
    assert hold.stop_at > HOUR_MS
    ledger.change("runs/r", lambda held: accounts.supersede(held, "r", HOUR_MS))
    with pytest.raises(Closed) as closed:
        hold.look(lambda step: ledger.change("runs/r", step), lambda: HOUR_MS)
    hold.lose(HOUR_MS, closed.value.message)
    assert hold.stop_at <= HOUR_MS
    assert hold.dead_at <= HOUR_MS + LEASE.check // 2
    assert hold.why == "the entry r/attempt-1 is settled: a later attempt took over"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What the agent's Stop does to this process's signals is undone."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def purse_of(
    root: Path, number: int, cloud: str | None = None, nodes: int = 1, lease: Lease = LEASE, **terms: Any
) -> Purse:
    facts: dict[str, Any] = dict.fromkeys(("s3_endpoint", "tracking", "output", "keep"))
    money = Terms(**{"capped": True, "lease": lease, **terms})
    job = Job("r", "tiny", "pretrain", "tiny", str(root), inputs={}, price_per_hour=120.0, provenance={},
              config={}, money=money, **facts)  # fmt: skip
    node = Node(0, nodes, ("127.0.0.1",), root / "work", root / "config.yaml", {"cloud": cloud})
    return Purse(job, node, Attempt(open_store(str(root)), "r", number), Stop())


def preempted(root: Path, dollars_left: float) -> None:
    """The ledger of a run whose first attempt was lost ten minutes ago."""
    lost = now_ms() - 10 * MINUTE
    entry = Entry("r/1", "r", PRICE, lost - HOUR_MS, LEASE.next(lost), attempt=1)
    cap = charge(PRICE, LEASE.own(entry.until) - entry.launched) + round(dollars_left * MICROS)
    held = replace(with_budget(max(cap, entry.cost)), entries={entry.key: entry})
    about = replace(ABOUT, budgets=(accounts.Budget(cap, "me", 0),))
    held = replace(held, runs={"r": about})
    open_ledger(open_store(str(root))).change(account_name("r", None), lambda _: held)


def entries(root: Path) -> list[Entry]:
    return open_ledger(open_store(str(root))).read(account_name("r", None)).of("r")


YEAR = 365 * 24 * HOUR_MS


def reserved(root: Path, launched: int, budget: int = 180) -> None:
    """The launcher has reserved its first lease at $120 an hour, since when its nodes are waited for."""
    entry = Entry("r/first", "r", PRICE, launched, LEASE.reserved(launched))
    held = accounts.reserve(with_budget(budget * MICROS), entry, ABOUT)
    open_ledger(open_store(str(root))).change(account_name("r", None), lambda _: held)


def adopted(root: Path, **facts: Any) -> int:
    """When the entry that an attempt takes over has begun to cost, in milliseconds since the epoch."""
    purse = purse_of(root, 1, **facts)
    purse.open()
    purse.close()
    (entry,) = entries(root)
    assert entry.attempt == 1
    return entry.launched


OURS = replace(LEASE, recovery=0)


def test_a_day_in_slurm_s_queue_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At $120/h it would have been the budget sixteen times over: the run would end before it trains."""
    reserved(tmp_path, now_ms() - 24 * HOUR_MS)
    began = int(time.time()) - 120
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(began))
    assert adopted(tmp_path, cloud="Slurm", lease=OURS) == began * 1000


def test_an_older_slurm_is_asked_when_the_allocation_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved(tmp_path, now_ms() - 24 * HOUR_MS)
    began = int(time.time()) - 120
    said = time.strftime("JobId=77 JobName=x\n   StartTime=%Y-%m-%dT%H:%M:%S EndTime=x", time.gmtime(began))
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/bash\n[ "$TZ $*" != "UTC show job 77" ] || echo "{said}"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    monkeypatch.delenv("SLURM_JOB_START_TIME", raising=False)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    assert adopted(tmp_path, cloud="Slurm", lease=OURS) == began * 1000


def test_an_instance_costs_from_shortly_before_it_started(tmp_path: Path) -> None:
    reserved(tmp_path, now_ms() - 30 * YEAR, budget=10**9)
    started = now_ms() - 1000 * float(Path("/proc/uptime").read_text().split()[0])
    assert adopted(tmp_path, cloud="aws", lease=OURS) == pytest.approx(started - 120_000, abs=5000)


def test_of_several_nodes_and_of_what_failover_may_have_lost_none_is_counted_short(tmp_path: Path) -> None:
    """Node 0 need not be the oldest, and nodes that were lost in their set-up have left no entry."""
    reserved(tmp_path, now_ms() - 50 * YEAR, budget=10**9)
    slow = Lease(setup=20 * YEAR, check=MINUTE, save=MINUTE, teardown=MINUTE, recovery=HOUR_MS)
    earliest = now_ms() - slow.setup - slow.unseen
    assert adopted(tmp_path, cloud="aws", nodes=2, lease=slow) == pytest.approx(earliest, abs=5000)


@pytest.mark.parametrize("cloud", [None, "kubernetes", "aws"])
def test_no_attempt_begins_before_it_was_launched(tmp_path: Path, cloud: str | None) -> None:
    """Though the machine is up for longer, as one that others share."""
    launched = now_ms() - 2000
    reserved(tmp_path, launched)
    assert adopted(tmp_path, cloud=cloud) == launched


def test_a_recovery_that_the_cap_does_not_pay_ends_at_once_and_is_in_the_ledger(tmp_path: Path) -> None:
    preempted(tmp_path, 1.67)
    purse = purse_of(tmp_path, 2)
    with pytest.raises(Ended, match="budget reached") as ended:
        purse.open()
    assert ended.value.code == BUDGET
    purse.close()
    first, second = entries(tmp_path)
    assert first.ended == LEASE.own(first.until), "what it kept for this set-up is given back"
    assert second.attempt == 2
    assert second.launched == first.ended
    assert second.ended is not None
    assert second.ended - now_ms() <= LEASE.teardown


def test_a_recovery_that_is_paid_goes_on_and_keeps_room_for_the_next(tmp_path: Path) -> None:
    preempted(tmp_path, 200.0)
    purse = purse_of(tmp_path, 2)
    purse.open()
    second = entries(tmp_path)[1]
    assert second.until == pytest.approx(LEASE.next(now_ms()), abs=30_000)
    purse.close()


def test_a_fuse_that_is_there_goes_by_the_deadline_and_soon_after_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a budget too: who hangs past the deadline is taken down, and who ends leaves no idle nodes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    file = fuse.file_of("r")
    file.parent.mkdir(parents=True)
    file.write_text("0\n")
    deadline = now_ms() + 5 * HOUR_MS
    purse = purse_of(tmp_path, 1, capped=False, deadline=deadline)
    purse.open()
    assert float(file.read_text()) == pytest.approx(LEASE.burns_at(deadline) / 1000, abs=1)
    purse.close()
    assert float(file.read_text()) - time.time() == pytest.approx(LEASE.teardown / 2000, abs=5)


def test_a_set_up_that_came_after_the_deadline_is_in_the_ledger(tmp_path: Path) -> None:
    preempted(tmp_path, 200.0)
    purse = purse_of(tmp_path, 2, deadline=now_ms())
    with pytest.raises(Ended, match="deadline reached") as ended:
        purse.open()
    assert ended.value.code == DEADLINE
    purse.close()
    assert [entry.attempt for entry in entries(tmp_path)] == [1, 2]
