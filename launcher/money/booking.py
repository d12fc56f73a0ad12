"""A launch and its money: what it reserves in the ledger, what travels to the node, and how it is settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from launcher import strategy
from launcher.errors import Refused
from launcher.money import account as accounts
from launcher.money import caps, gate, orders, places
from launcher.money.account import MICROS, Account, Entry, money
from launcher.money.amounts import format_duration
from launcher.money.lease import Lease
from launcher.money.ledger import Ledger, account_name, now_ms, open_ledger

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.backends import State
    from launcher.money.tariff import Table
    from launcher.plan import Plan, Request
    from launcher.project import Project
    from launcher.runs import Run
    from launcher.task import Task


@dataclass(frozen=True)
class Booking:
    """What a launch has reserved: an entry of the account ``name``. ``deadline``: when its nodes must be
    gone, in milliseconds since the epoch. ``longest``: the milliseconds of nodes that the
    tightest cap pays for, None without one."""

    name: str
    entry: Entry
    experiment: str | None
    capped: bool
    lease: Lease
    deadline: int | None = None
    longest: int | None = None

    @property
    def limited(self) -> bool:
        """Whether it may reach a budget or a deadline, at which no other attempt must begin."""
        return self.capped or self.deadline is not None

    @property
    def job(self) -> dict[str, Any]:
        """What job.yaml tells the agent."""
        price = self.entry.price
        terms = {
            "experiment": self.experiment,
            "reservation": self.entry.key,
            "capped": self.capped,
            "deadline": self.deadline,
        }
        return {
            "price_per_hour": None if price is None else price / MICROS,
            "money": {**terms, "lease": asdict(self.lease)},
        }


@dataclass(frozen=True)
class Foretold:
    """What a launch would book and say, or the ``refusal`` that it would meet."""

    booking: Booking
    lines: tuple[str, ...] = ()
    refusal: Refused | None = None


def check(plan: Plan, request: Request, project: Project, task: Task) -> None:
    """Refuse what no ledger is needed for: flags above the project's limits, and prices."""
    caps.within(request.caps, project.money)
    lease, capped = orders.lease_of(plan, project, task, ours=True), orders.is_capped(request, project)
    gate.check_price(orders.of_launch(plan, request, project, task, plan.name, capped, lease))


def deadline_at(request: Request, project: Project) -> int | None:
    """When the deadline of a launch that begins now is, in milliseconds since the epoch; None without one."""
    given = request.caps.deadline
    seconds = caps.unsaid(project.money).deadline if given is None else given
    return None if seconds is None else now_ms() + round(1000 * seconds)


def foresee(
    beginning: Sequence[tuple[Plan, Task]],
    request: Request,
    project: Project,
    store: Store,
    *,
    ask: bool = True,
) -> dict[str, float]:
    """Refuse, before the first stage starts, stages that are expected not to fit: each of those that begin
    anew against its own budget, and all of them together against the experiment's and the deadline, with the
    first lease that its booking will ask for. Asks SkyPilot's API server which strategy will recover a job on
    spot; without ``ask`` nobody, and it is taken to be FAILOVER. Returns, of those whose duration counts and
    is known, the seconds that each takes at least."""
    needs: dict[str, float] = {}
    if request.goes_on or not orders.is_capped(request, project):
        return needs
    name = request.caps.experiment
    held = open_ledger(store).read(account_name("", name)) if name else Account()
    # Not yet counted down: the checks before took seconds, and a deadline is named as it was given.
    request = replace(request, deadline_at=None)
    for plan, task in beginning:
        lease = orders.lease_of(plan, project, task, ask and strategy.is_ours(plan, lambda _: None))
        order = orders.of_launch(plan, request, project, task, plan.name, capped=True, lease=lease)
        order = replace(order, before=sum(needs.values()))
        limits = gate.with_budgets(held, order)
        left = limits.left(plan.name)
        if left is None and order.deadline is None:
            continue
        seen = orders.expected(plan, request, store, task, order, left, None)
        gate.admit(held, replace(order, expected=seen))
        if best := seen.best:
            # What it is expected to cost is not there for the stages after it.
            now = order.entry.launched
            whole = Entry(plan.name, plan.name, best.cost, now, now + accounts.HOUR_MS)
            held = accounts.reserve(limits, whole, order.about)
            needs[plan.name] = 3600 * min(way.hours for way in seen.ways if way.asked)
    return needs


def leaving(request: Request, seconds: float) -> Request:
    """The request of a stage after which others need ``seconds`` of the deadline of all: a run on spot would
    wait for a cheaper hour as long as it may."""
    if request.deadline_at is None:
        return request
    return replace(request, deadline_at=request.deadline_at - round(1000 * seconds))


def book(
    plan: Plan,
    run: Run,
    request: Request,
    project: Project,
    store: Store,
    task: Task,
    say: Callable[[str], None],
    ours: bool = False,
) -> Booking:
    """Reserve the launch in the ledger; ``ours`` says that our own strategy recovers it. Raises Refused, and
    nothing is reserved, when it is not let in."""
    from launcher.money import tariff

    ledger, name = open_ledger(store), account_name(run.run_id, run.experiment)
    # Nobody may have seen an earlier launch's end, and this one's table replaces its.
    table, rates = tariff.read(store, run.run_id), tariff.of(plan.profile, task)
    before = tariff.apply(table, ledger.read(name), run.run_id)
    lease = orders.lease_of(plan, project, task, ours)
    order = orders.expecting(
        plan, run.run_id, run.experiment, request, project, task, lease, before, store, True
    )
    held = reserve(ledger, order, table)
    booked = _booking(name, run.experiment, order, lease, held, plan, request)
    if rates or table:  # an old one says nothing of this launch
        try:
            tariff.keep(store, run.run_id, order.entry.launched, rates)
        except BaseException:
            withdraw(store, booked)
            raise
    once = [] if ours or not booked.limited else orders.begun_once(plan, request)
    for line in [*orders.said(before, held, run.run_id), *once, *orders.foreseen(order)]:
        say(f"  {line}")
    return booked


def reserve(ledger: Ledger, order: gate.Order, table: Table | None = None) -> Account:
    """Let the order in, and end the run's attempts before it in the ledger, at the prices of their ``table``.
    Of two launches that together do not fit exactly one is let in; one that was is let in again. Raises
    Refused, and then nothing is reserved; StoreError, and then it may be."""
    name = account_name(order.entry.run, order.caps.experiment)
    return ledger.change(name, lambda held: _admitted(held, order, table))


def _admitted(held: Account, order: gate.Order, table: Table | None = None) -> Account:
    from launcher.money import tariff

    if order.entry.key in held.entries:  # the reply was lost: its own reservation is no attempt before it
        return held
    held = tariff.apply(table, held, order.entry.run)
    return gate.admit(accounts.supersede(held, order.entry.run, order.entry.launched), order)


def foretell(
    plan: Plan, run_id: str, request: Request, project: Project, store: Store, task: Task, ours: bool
) -> Foretold:
    """What ``book`` would do and say of a launch of the plan as the new run ``run_id``, or of the run to
    resume; nothing is said without a cap. Reserves nothing, and asks no ledger that it needs not.

    Raises Refused for a cap below what is spent; StoreError, which is one, where a cap is shared and the
    store fails.
    """
    from launcher import runs
    from launcher.money import tariff

    whose, experiment = request.resume or plan.name, request.caps.experiment
    if request.resume:
        experiment = runs.load(project.runs, request.resume).experiment
    shared = request.resume is not None or experiment is not None
    before = open_ledger(store).read(account_name(whose, experiment)) if shared else Account()
    before = tariff.apply(tariff.read(store, whose), before, whose) if request.resume else before
    lease = orders.lease_of(plan, project, task, ours)
    begun = request.resume is not None
    order = orders.expecting(plan, whose, experiment, request, project, task, lease, before, store, begun)
    now = order.entry.launched
    caps_of = gate.with_budgets(accounts.supersede(before, whose, now), order)
    booked = _booking(account_name(run_id, experiment), experiment, order, lease, caps_of, plan, request)
    entry = replace(booked.entry, run=run_id, key=booked.entry.key.replace(whose, run_id, 1))
    booked = replace(booked, entry=entry)
    if not orders.is_capped(request, project) and not before.caps(whose):
        return Foretold(booked)
    try:
        held = _admitted(before, order)
    except Refused as refusal:
        return Foretold(booked, refusal=refusal)
    of = "" if order.entry.price is None else f" at {money(order.entry.price)}/h: {money(order.entry.cost)}"
    first = f"a launch would reserve {format_duration((order.entry.until - now) / 1000)}{of}"
    once = [] if ours or not booked.limited else orders.begun_once(plan, request)
    return Foretold(booked, (first, *orders.said(before, held, whose), *once, *orders.foreseen(order)))


def _booking(
    name: str,
    experiment: str | None,
    order: gate.Order,
    lease: Lease,
    held: Account,
    plan: Plan,
    request: Request,
) -> Booking:
    """The booking of ``order`` in the account ``held``, which has its caps."""
    end = None if order.deadline is None else order.entry.launched + round(1000 * order.deadline)
    # Of the whole caps: what others hold of an experiment's now may become free.
    price, whole = order.entry.price, [cap for _, cap, _ in held.caps(order.entry.run)]
    longest = accounts.affordable_ms(price, min(whole)) if price and whole else None
    if request.detach and not plan.managed and plan.profile.backend == "sky" and not whole and end is None:
        # Without a fuse, and with nobody to take them down, its nodes stay until SkyPilot's skylet has seen
        # them idle for so long, and looks.
        idle = (plan.profile.idle_minutes + 1) * 60_000
        lease = replace(lease, teardown=max(lease.teardown, idle))
    return Booking(name, order.entry, experiment, bool(whole), lease, end, longest)


def withdraw(store: Store, booking: Booking) -> None:
    """Nothing was launched."""
    entry = booking.entry
    open_ledger(store).change(booking.name, lambda held: accounts.settle(held, entry.key, entry.launched))


def settle(store: Store, run: Run, state: State, *, gone: bool = True) -> str | None:
    """The run has ended: its newest attempt ended when the backend says, or never began; else when its agent
    said. Otherwise, if its nodes are ``gone`` now, at the latest at the end of its lease; if nobody has seen
    to that, it stays as it is reserved. May be repeated, however late.

    Returns the receipt in a line or, of a run in several places, two; None for a run that the ledger does not
    know.
    """
    from launcher.money import receipts, tariff

    run_id, now = run.run_id, now_ms()
    ends = [attempt.ended_at for attempt in state.attempts[-1:] if attempt.ended_at]
    ended = round(datetime.fromisoformat(ends[0]).timestamp() * 1000) if ends else None
    refused = state.status == "FAILED" and any(words in (state.reason or "") for words in places.NO_NODES)
    table = tariff.read(store, run_id)

    def settled(held: Account) -> Account:
        if refused and (key := accounts.free(held, run_id)):
            held = accounts.settle(held, key, held.entries[key].launched)
        newest = held.of(run_id)[-1:]
        if ended is None and not gone and newest and newest[0].is_open(now):
            return held
        held = accounts.settle_run(held, run_id, now, ended)
        return tariff.apply(table, held, run_id)

    held = open_ledger(store).change(account_name(run_id, run.experiment), settled)
    return receipts.receipt(store, held, run_id)
