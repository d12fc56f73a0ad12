"""The gate before a launch: whether it fits its caps, by how much it does not, and what would.

``admit`` is pure: an account and an order in, the account with the launch's reservation out, or a refusal.
``booking.reserve`` does it in the ledger: of two launches that together do not fit exactly one is let in.
Held against the caps are the first lease, exactly, and what the work that is left is expected to take where
that costs least, as far as anybody knows (``launcher.money.expect``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.errors import Refused
from launcher.money.account import (
    MICROS,
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
from launcher.money.amounts import enough_duration, format_duration
from launcher.money.caps import Caps, hourly

ESTIMATE = "it is an estimate: `--work TIME` says how long it works in all, --ignore-estimates passes over it"


class TooDear(Refused):
    """The caps leave less than the launch needs; what other runs give back may make room for it."""


@dataclass(frozen=True)
class Way:
    """One place and market that can do what is left of the work: ``hours`` from the launch to the end and
    ``cost`` in micro-dollars, both means, were there no cap. ``in_time``: more likely than not done by the
    deadline. ``chance`` of that and of staying within the budget, None without either. ``asked``: the launch
    may go there; the others are only named. ``source`` says in words where the duration is from."""

    where: str
    hours: float
    cost: int
    source: str
    in_time: bool = True
    chance: float | None = None
    asked: bool = True


@dataclass(frozen=True)
class Expected:
    """``ways`` to do what is left; none where the duration or the price is not known, and ``unknown`` says
    why. ``trouble``: what could not be asked for it, in words."""

    ways: tuple[Way, ...]
    unknown: str = ""
    trouble: tuple[str, ...] = ()

    @property
    def best(self) -> Way | None:
        """The cheapest that the launch may take and that is in time; else the fastest."""
        asked = [way for way in self.ways if way.asked]
        timely = [way for way in asked if way.in_time]
        if timely:
            return min(timely, key=lambda way: (way.cost, way.hours))
        return min(asked, key=lambda way: (way.hours, way.cost), default=None)


@dataclass(frozen=True)
class Order:
    """A launch that asks to be let in.

    ``entry`` is its reservation as wanted: ``launched`` is now, ``until`` the end of its first lease, and
    ``recovery`` milliseconds beyond it for the next nodes, where SkyPilot's FAILOVER launches them unasked.
    ``unsaid`` are the caps where neither the launch nor the ledger gives one. ``expected`` is what is left
    of the run, None where that shall not count. ``spot_price`` is micro-dollars per hour of all nodes on
    spot, for a launch that asks for on-demand; None where there is none or nobody knows. ``least_price``: the
    same of the place that costs least, where ``--max-hourly`` leaves none. ``tail``: the
    milliseconds of a save and the teardown, which every attempt keeps back from its work; ``spot_recovery``:
    what FAILOVER would have it lease on spot, beyond its own ``recovery``. ``ends`` is the
    moment of the deadline in milliseconds since the epoch, None for one that counts from this launch;
    ``before``: the seconds of it that other stages are expected to take first.
    """

    entry: Entry
    about: About
    caps: Caps
    unsaid: Caps
    expected: Expected | None = None
    spot_price: int | None = None
    least_price: int | None = None
    recovery: int = 0
    tail: int = 0
    spot_recovery: int = 0
    ends: int | None = None
    before: float = 0.0

    @property
    def kept(self) -> int:
        """Micro-dollars that the run needs beyond what its work costs: an attempt that its caps leave less
        saves and ends, whatever it has still to do."""
        return charge(self.entry.price or 0, self.recovery + self.tail)

    @property
    def given(self) -> float | None:
        """The deadline as it was given, in seconds, None without one."""
        return self.unsaid.deadline if self.caps.deadline is None else self.caps.deadline

    @property
    def deadline(self) -> float | None:
        """Seconds from the launch that the deadline leaves it, below 0 when it is past; None without one."""
        given = self.given
        if given is None:
            return None
        return (given if self.ends is None else (self.ends - self.entry.launched) / 1000) - self.before


def admit(account: Account, order: Order) -> Account:
    """The account with the order's caps and reservation. Raises Refused, saying what would be let in."""
    check_price(order)
    check_deadline(order)
    account = with_budgets(account, order)
    entry = order.entry
    try:
        reserved = reserve(account, entry, order.about)
    except Short as short:
        raise _lease_too_dear(short, order) from short
    if entry.key not in account.entries:
        check_expected(account, order)
    return reserved


def check_expected(account: Account, order: Order) -> None:
    """Raises Refused when what is left is expected to cost more than a cap leaves, where it costs least."""
    expected = order.expected
    best = expected.best if expected else None
    if expected is None or best is None:
        return
    for whose, cap, over in account.caps(order.entry.run):
        committed, needed = account.committed(over), best.cost + order.kept
        if committed + needed > cap:
            raise _too_dear(Short(whose, cap, committed, needed), order, expected, best)


def check_price(order: Order) -> None:
    """Raises Refused when all nodes together cost more per hour than they may, or nobody knows."""
    limit = hourly(order.caps, order.unsaid)
    price, nodes = order.entry.price, order.entry.nodes
    if price is None:
        budgets = (order.caps.budget, order.caps.experiment_budget, order.unsaid.budget)
        if any(cap is not None for cap in (limit, *budgets)):
            raise Refused("it has a cap, and nobody knows what it costs: unknown is not 0", hint=NO_PRICE)
        return
    if limit is not None and price > limit:
        ways, price = [], price if order.least_price is None else order.least_price
        if fewer := min(limit * nodes // price, nodes - 1):
            ways.append(f"--nodes {fewer} costs {money(price * fewer // nodes)}")
        if order.spot_price is not None and order.spot_price <= limit:
            ways.append(f"spot costs {money(order.spot_price)}")
        ways.append(f"--max-hourly {_typed(price)} would do")
        raise Refused(
            f"{nodes} node{'s' if nodes > 1 else ''} cost {money(price)} per hour"
            f"{'' if order.least_price is None else ' where they cost least'}, "
            f"{money(price - limit)} more than the {money(limit)} allowed",
            hint="; ".join(ways),
        )


def check_deadline(order: Order) -> None:
    """Raises Refused when not even the first lease ends by the deadline, or the work is expected not to."""
    limit, entry = order.deadline, order.entry
    if limit is None:
        return
    lease = (entry.until - entry.launched - order.recovery) / 1000
    if lease > limit:
        raise Refused(
            f"{_time_left(order)} is {format_duration(lease - limit)} shorter than "
            f"set-up, one check and a save may take ({format_duration(lease)})",
            hint=f"--deadline {enough_duration(order.before + lease)} would do; money.setup in nemo-sky.yaml "
            "says how long set-up takes",
        )
    best = order.expected.best if order.expected else None
    if order.expected is None or best is None or best.in_time:
        return
    ways = [f"--deadline {enough_duration(order.before + best.hours * 3600)} would do"]
    if others := [way for way in order.expected.ways if way.in_time]:
        other = min(others, key=lambda way: (way.cost, way.hours))
        ways.append(f"{other.where} takes {format_duration(other.hours * 3600)}")
    takes = best.hours * 3600
    raise Refused(
        f"what is left is expected to take {format_duration(takes)} where it is fastest ({best.where}), "
        f"{format_duration(takes - limit)} more than {_time_left(order)}: {best.source}",
        hint="; ".join([*ways, "more or faster GPUs take less", ESTIMATE]),
    )


def _time_left(order: Order) -> str:
    """The deadline in words, and what of it is left where that is less."""
    given, left = order.given or 0.0, max(order.deadline or 0.0, 0.0)
    words = f"the deadline of {format_duration(given)}"
    if order.before:
        return f"what the stages before it are expected to leave of {words} ({format_duration(left)})"
    if format_duration(left) == format_duration(given):
        return words
    return f"what is left of {words} ({format_duration(left)})"


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


def _lease_too_dear(short: Short, order: Order) -> TooDear:
    """The refusal of a launch whose first lease does not fit, with the nearest that would be let in."""
    left, nodes, ways = short.cap - short.committed, order.entry.nodes, []
    if (fewer := min(left * nodes // short.needed, nodes - 1)) > 0:
        ways.append(f"--nodes {fewer} would begin")
    if order.spot_price is not None and order.entry.price:
        on_spot = short.needed * order.spot_price // order.entry.price
        on_spot += charge(order.spot_price, order.spot_recovery)
        if on_spot <= left:
            ways.append(f"on spot it needs {money(on_spot)}")
    ways.append(f"{_flag(short)} {_enough(short)} would do")
    what = "the first lease: set-up, one check, a save"
    if order.recovery:
        rest = charge(order.entry.price or 0, order.recovery)
        what += f"; and {money(rest)} for the set-up of the next nodes, which FAILOVER launches unasked"
        if order.entry.market != "on-demand" and short.needed - rest <= left:
            ways.append(
                f"our strategy asks before: with it {money(short.needed - rest)} would begin "
                "(`nemo-sky plugin install`)"
            )
    return TooDear(f"{short.message} ({what})", hint="; ".join(ways))


def _too_dear(short: Short, order: Order, expected: Expected, best: Way) -> TooDear:
    """The refusal of a launch that is expected to cost too much, with what would fit."""
    left = short.cap - short.committed - order.kept
    ways = [f"{_flag(short)} {_enough(short)} would do"]
    others = [way for way in expected.ways if way.cost <= left and way is not best]
    if others:
        other = min(others, key=lambda way: (not way.asked, not way.in_time, way.cost))
        takes = format_duration(other.hours * 3600)
        enough = enough_duration(order.before + other.hours * 3600)
        late = "" if other.in_time else f", and needs --deadline {enough}"
        ways.append(f"{other.where} costs {money(other.cost)} and takes {takes}{late}")
    kept = f", and {money(order.kept)} that it must have left to save and go" if order.kept else ""
    return TooDear(
        f"{short.message} (what is left of the work, where it costs least: "
        f"{format_duration(best.hours * 3600)} at {best.where}{kept}; {best.source})",
        hint="; ".join([*ways, ESTIMATE]),
    )


def _flag(short: Short) -> str:
    return "--budget" if short.whose.startswith("run ") else "--experiment-budget"


def _enough(short: Short) -> str:
    """The cap that would do, in whole cents from a dollar on: written as it is, it is enough."""
    needed = short.committed + short.needed
    return _typed(needed if needed < MICROS else -(-needed // 10_000) * 10_000)


def _typed(micros: int) -> str:
    """An amount to be typed: a shell takes ``$10`` for a variable."""
    return money(micros).removeprefix("$")
