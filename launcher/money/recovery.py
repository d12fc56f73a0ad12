"""Where a preempted job goes on: the spot policy fed with what a recovery strategy can know. Pure.

Nobody says whether a zone has spot instances: that shows only in our own launches. A zone counts as up until
it refuses a launch or takes instances away; then as down for a set-up's time, twice that after the next
failure in a row, and so on; what other runs saw there since counts too. With a deadline, a known amount of
work and leave to use on-demand, ``policy.decide`` chooses, the very function that ``nemo-sky simulate``
replays. Otherwise: stay where it is, the zone that is up whose working hour costs least, with the restart
spread over the time that it is expected to last, else on-demand where that is allowed, and back to spot once
a zone is up.

No launch is chosen whose first lease (set-up, one check, a save, teardown) the caps cannot pay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from launcher.errors import Refused
from launcher.money import availability, policy
from launcher.money.account import HOUR_MS, MICROS, charge
from launcher.money.availability import Prior
from launcher.money.lease import Lease
from launcher.money.policy import ON_DEMAND, Decision, Job, Keep, Launch, Memory, Offer, State, Stop, Wait

DOUBLINGS = 5
"""A zone is left alone at most 2^5 times as long as after its first failure."""
PLAN_TICKS = 360
"""A plan has at most so many ticks (60 h in steps of ten minutes): solving one takes a second or two."""
FAILED = ("refused", "lost")


@dataclass(frozen=True)
class Terms:
    """What the launch tells the strategy, as ``nemo_sky`` in the task's ``job_recovery``.

    ``began`` and ``deadline`` are in seconds since the epoch, ``work`` in seconds at full speed, ``price`` in
    dollars per hour of all nodes where the profile says one. ``reservation`` is the launcher's entry in the
    ledger. None: no such thing, or nobody knows. ``no_retry`` are the recipe's own exit codes of failures
    that are final.
    """

    run: str
    artifacts: str
    began: float
    lease: Lease
    s3_endpoint: str | None = None
    experiment: str | None = None
    capped: bool = False
    price: float | None = None
    deadline: float | None = None
    work: float | None = None
    reservation: str | None = None
    no_retry: Sequence[int] = ()


@dataclass(frozen=True)
class Event:
    """What became of a stay at ``at`` (seconds since the epoch): it was ``launched`` in ``place`` (a zone or
    ``ON_DEMAND``), or that was ``refused``; it was ``lost``, or ``left``: to move, or as the job failed.
    ``price`` in $/h of all nodes; ``zone`` is the place's name in a prior, None where nobody says of what
    kind its instances are."""

    at: float
    place: str
    what: str
    zone: str | None = None
    price: float = 0.0


@dataclass(frozen=True)
class Here:
    """The situation. ``spot`` ($/h of all nodes by zone) and ``on_demand`` (None: not allowed) are what may
    be launched, at 0 for one's own and, without a cap, where nobody knows the price; ``place`` is where it
    runs, since ``since``, None for nowhere. ``work`` left in seconds, None when nobody knows; ``room`` in
    dollars, None without a cap. ``others`` are what other runs saw of these zones;
    ``prior`` gives what is known of them, and is asked only where that is needed."""

    spot: Mapping[str, float]
    on_demand: float | None
    place: str | None = None
    since: float = 0.0
    work: float | None = None
    room: float | None = None
    others: Sequence[Event] = ()
    prior: Callable[[], Prior] = availability.load_prior


def offers(
    spot: Mapping[str, float],
    events: Sequence[Event],
    now: float,
    patience: float,
    others: Sequence[Event] = (),
    place: str | None = None,
) -> tuple[list[Offer], dict[str, Memory]]:
    """What the zones of ``spot`` are taken to be at ``now``, and since when, by the launches of the past.

    ``patience`` is how long, in seconds, a zone is left alone after a failure. One of another run, of
    ``others``, doubles nothing: else many runs that wait would hold each other up for half a day. It says
    nothing of ``place``, where the job runs.
    """
    found, memory = [], {}
    for zone, price in spot.items():
        up, since, failures, heard = True, now - availability.FIRST_AGE, 0, -math.inf
        for event in sorted((one for one in events if one.place == zone), key=lambda one: one.at):
            if event.what in FAILED:
                up, since, failures = False, event.at if up else since, failures + 1
                back = event.at + patience * 2 ** min(failures - 1, DOUBLINGS)
            elif event.what == "launched" and failures:
                up, since, failures = True, event.at, 0
            heard = event.at
        if failures and now >= back:
            up, since = True, back
        theirs = [one for one in others if one.place == zone and one.what in (*FAILED, "launched")]
        last = max(theirs, key=lambda one: one.at, default=None)
        if last and last.at > heard and zone != place:
            if last.what == "launched":
                up, since = True, last.at if not up else since
            elif now < last.at + patience:
                up, since = False, last.at if up else since
        if up and zone != place:
            # Nobody has looked since: it is no better known than a zone that is looked at for the first time.
            since = max(since, now - availability.FIRST_AGE)
        found.append(Offer(zone, price, up))
        memory[zone] = Memory(up, since)
    return found, memory


def first_cost(price: float, lease: Lease) -> float:
    """Dollars of a launch at ``price`` $/h until its first check and what may follow it."""
    return charge(round(price * MICROS), lease.first(0)) / MICROS


def choose(terms: Terms, here: Here, events: Sequence[Event], now: float) -> tuple[Decision, str]:
    """What to do at ``now`` (seconds since the epoch), and why, in words. With a stay running, Launch means
    to move there, Wait to leave and hold nothing; a running stay is never stopped."""
    if here.place is None:
        if terms.deadline is not None and now >= terms.deadline:
            return Stop("deadline reached"), "the deadline has passed"
        if not any(_pays(terms, here, place) for place in (*here.spot, ON_DEMAND)):
            return Stop("budget reached"), _too_little(terms, here)
    patience = terms.lease.setup / 1000
    market, memory = offers(here.spot, events, now, patience, here.others, here.place)
    if terms.deadline is None or here.work is None or here.on_demand is None or not here.spot:
        decision, why = _simple(terms, here, market, memory, now)
    elif here.on_demand <= min(here.spot.values()):
        decision, why = _no_dearer(terms, here, market, memory, events, now)
    else:
        decision, why = _planned(terms, here, market, memory, now)
    if isinstance(decision, Stop) and here.place is not None:
        return Keep(), f"{why}; what runs may end"
    if isinstance(decision, Launch) and not _pays(terms, here, decision.place):
        if here.place is not None:
            return Keep(), f"{why}, but the budget does not pay for a move"
        return Wait(), f"{why}, but the budget pays for a cheaper place only"
    return decision, why


def _simple(
    terms: Terms, here: Here, market: Sequence[Offer], memory: Mapping[str, Memory], now: float
) -> tuple[Decision, str]:
    up = [offer for offer in market if offer.up and _pays(terms, here, offer.zone)]
    if here.place in here.spot or (here.place is not None and not up):
        return Keep(), "it runs"
    if up:
        costs = _by_work(terms, here, up, memory, now)
        best = min(up, key=lambda offer: (costs[offer.zone], offer.price, offer.zone))
        return Launch(best.zone), (
            f"${best.price:.2f}/h, ${costs[best.zone]:.2f} by the hour of work: the least of the zones that "
            "are not known to be short of spot instances"
        )
    if _pays(terms, here, ON_DEMAND):
        return Launch(ON_DEMAND), "no zone is known to have spot instances"
    return Wait(), "no zone that the budget pays for is known to have instances"


def _no_dearer(
    terms: Terms,
    here: Here,
    market: Sequence[Offer],
    memory: Mapping[str, Memory],
    events: Sequence[Event],
    now: float,
) -> tuple[Decision, str]:
    """On-demand costs no more than spot, as where a profile says one price for both, or the nodes are one's
    own: then nothing is to be weighed, and it is not taken away."""
    if here.place is not None:
        return Keep(), "it runs"
    last = next((event for event in reversed(events) if event.place == ON_DEMAND), None)
    if last is not None and last.what == "refused":
        return _simple(terms, here, market, memory, now)
    return Launch(ON_DEMAND), "on-demand costs no more than spot"


def _by_work(
    terms: Terms, here: Here, up: Sequence[Offer], memory: Mapping[str, Memory], now: float
) -> dict[str, float]:
    """$/h of work in a new stay in each of these zones. Those of which nothing is known last as the others
    do, so that of these the cheapest has the least."""
    if len(up) == 1:
        return {up[0].zone: up[0].price}
    prior, tick = here.prior(), availability.TICK
    restart = terms.lease.setup / 1000 / tick
    most = math.inf if here.work is None else here.work / tick + restart
    found = {}
    for offer in up:
        chain, age = availability.chain(prior, offer.zone), now - memory[offer.zone].since
        if age < availability.FIRST_AGE:  # it has come up since somebody looked
            at = availability.state_of(True, age) - availability.CLASSES
            life = float(availability.lives(chain)[at])
        else:
            life = availability.life_of_any(chain)
        found[offer.zone] = policy.worn(offer.price, min(life, most), restart)
    return found


def _planned(
    terms: Terms, here: Here, market: Sequence[Offer], memory: Mapping[str, Memory], now: float
) -> tuple[Decision, str]:
    assert terms.deadline is not None
    assert here.work is not None
    assert here.on_demand is not None
    elapsed, restart = max(now - terms.began, 0.0), terms.lease.setup / 1000
    horizon = terms.deadline - terms.began
    job = Job(
        work=max(terms.work or 0.0, here.work, 1.0),
        deadline=horizon,
        restart=restart,
        on_demand=here.on_demand,
        budget=None if here.room is None else max(here.room, 1e-6),  # from now on
        tick=max(terms.lease.check / 1000, horizon / PLAN_TICKS),
    )
    left = max(here.work, 1.0)
    try:
        plan = policy.make_plan(
            job,
            sorted(here.spot),
            here.prior(),
            datetime.fromtimestamp(now, UTC),
            prices=here.spot,
            began=elapsed,
            work=left,
        )
    except Refused as short:
        why = f"the deadline can hardly be met: {short.message}"
        return (Launch(ON_DEMAND) if here.place is None else Keep()), why
    overhead = max(restart - (now - here.since), 0.0) if here.place else 0.0
    since_launch = {zone: Memory(one.up, one.since - terms.began) for zone, one in memory.items()}
    state = State(left, here.place, overhead, memory=since_launch)
    decision = policy.decide(plan, state, market, elapsed)
    slack = terms.deadline - now - left
    return decision, f"the policy: {left / 3600:.2f} h of work, {slack / 3600:.2f} h more than that left"


def _pays(terms: Terms, here: Here, place: str) -> bool:
    price = here.on_demand if place == ON_DEMAND else here.spot.get(place)
    if price is None:
        return False
    return here.room is None or first_cost(price, terms.lease) <= here.room


def _too_little(terms: Terms, here: Here) -> str:
    prices = [*here.spot.values(), *([] if here.on_demand is None else [here.on_demand])]
    if not prices:
        return "there is no place to launch it, or nobody knows what it costs there"
    need = first_cost(min(prices), terms.lease)
    hours = terms.lease.first(0) / HOUR_MS
    return (
        f"${here.room or 0:.4f} is left, and a launch needs ${need:.4f}: "
        f"{hours:.2f} h for set-up, one check, a save and teardown"
    )
