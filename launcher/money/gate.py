"""The gate before a launch: whether it fits its caps, by how much it does not, and what would.

``admit`` is pure: an account and an order in, the account with the launch's reservation out, or a refusal.
``book`` does it in the ledger, where of two launches that together do not fit exactly one is admitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.errors import Refused
from launcher.money.account import (
    HOUR_MS,
    NO_PRICE,
    About,
    Account,
    Entry,
    Short,
    charge,
    money,
    reserve,
    set_budget,
)
from launcher.money.amounts import format_duration
from launcher.money.caps import Caps
from launcher.money.ledger import Ledger, account_name


@dataclass(frozen=True)
class Order:
    """A launch that asks to be let in.

    ``entry`` is its reservation as wanted: ``launched`` is now, ``until`` the end of its first lease.
    ``unsaid`` are the caps where neither the launch nor the ledger gives one. ``hours`` is how long the
    run is expected to take from here, ``spot_price`` (micro-dollars per hour, all nodes) what it would
    cost on spot; None where nobody knows.
    """

    entry: Entry
    about: About
    caps: Caps
    unsaid: Caps
    hours: float | None = None
    spot_price: int | None = None


def admit(account: Account, order: Order) -> Account:
    """The account with the order's caps and reservation. Raises Refused, saying what would be let in."""
    check_price(order)
    check_deadline(order)
    account = with_budgets(account, order)
    entry = order.entry
    if entry.price is not None and order.hours is not None and entry.key not in account.entries:
        needed = charge(entry.price, round(order.hours * HOUR_MS))
        for whose, cap, over in account.caps(entry.run):
            if account.committed(over) + needed > cap:
                raise _too_dear(Short(whose, cap, account.committed(over), needed), order)
    try:
        return reserve(account, entry, order.about)
    except Short as short:
        raise _too_dear(short, order) from short


def check_price(order: Order) -> None:
    """Raises Refused when all nodes together cost more per hour than they may, or nobody knows."""
    limit = order.unsaid.max_hourly if order.caps.max_hourly is None else order.caps.max_hourly
    price, nodes = order.entry.price, order.entry.nodes
    if price is None:
        budgets = (order.caps.budget, order.caps.experiment_budget, order.unsaid.budget)
        if any(cap is not None for cap in (limit, *budgets)):
            raise Refused("it has a cap, and nobody knows what it costs: unknown is not 0", hint=NO_PRICE)
        return
    if limit is not None and price > limit:
        ways = []
        if fewer := min(limit * nodes // price, nodes - 1):
            ways.append(f"--nodes {fewer} costs {money(price * fewer // nodes)}")
        if order.spot_price is not None and order.spot_price <= limit:
            ways.append(f"spot costs {money(order.spot_price)}")
        ways.append(f"--max-hourly {money(price)} would do")
        raise Refused(
            f"{nodes} node{'s' if nodes > 1 else ''} cost {money(price)} per hour, "
            f"{money(price - limit)} more than the {money(limit)} allowed",
            hint="; ".join(ways),
        )


def check_deadline(order: Order) -> None:
    """Raises Refused when the run is expected to take longer than it may."""
    limit = order.unsaid.deadline if order.caps.deadline is None else order.caps.deadline
    if limit is None or order.hours is None or order.hours * 3600 <= limit:
        return
    takes = order.hours * 3600
    raise Refused(
        f"it is expected to take {format_duration(takes)}, {format_duration(takes - limit)} more than the "
        f"deadline of {format_duration(limit)}",
        hint=f"--deadline {format_duration(takes)} would do; more nodes may take less",
    )


def with_budgets(account: Account, order: Order) -> Account:
    """The account with the caps that this launch gives it; a recorded cap stands where it gives none."""
    run, by, at = order.entry.run, order.about.user, order.entry.launched
    account = replace(account, runs={run: order.about, **account.runs})
    caps, unsaid = order.caps, order.unsaid
    if caps.budget is not None:
        account = set_budget(account, run, caps.budget, by, at)
    elif account.budget_of(run) is None and unsaid.budget is not None:
        account = set_budget(account, run, unsaid.budget, "nemo-sky.yaml", at)
    if account.experiment is None:
        return account
    if caps.experiment_budget is not None:
        account = set_budget(account, None, caps.experiment_budget, by, at)
    elif account.budget is None and unsaid.experiment_budget is not None:
        account = set_budget(account, None, unsaid.experiment_budget, "nemo-sky.yaml", at)
    return account


def book(ledger: Ledger, order: Order) -> Account:
    """Reserve the order in the ledger. Raises Refused when it is not let in; then nothing is reserved."""
    name = account_name(order.entry.run, order.caps.experiment)
    return ledger.change(name, lambda account: admit(account, order))


def _too_dear(short: Short, order: Order) -> Refused:
    """The refusal of a launch for its cost, with the nearest that would be let in."""
    flag = "--budget" if short.whose.startswith("run ") else "--experiment-budget"
    left = short.cap - short.committed
    entry, ways = order.entry, []
    fewer = min(left * entry.nodes // short.needed, entry.nodes - 1)
    if order.hours is None and fewer > 0:
        ways.append(f"--nodes {fewer} would begin")
    if order.spot_price is not None and entry.price:
        on_spot = short.needed * order.spot_price // entry.price
        if on_spot <= left:
            ways.append(f"on spot it needs {money(on_spot)}")
    ways.append(f"{flag} {money(short.committed + short.needed)} would do")
    what = "the first lease: set-up, one check, a save" if order.hours is None else "the whole run"
    return Refused(f"{short.message} ({what})", hint="; ".join(ways))
