"""One decision of the strategy, in a process of its own: ``python -m launcher.skyplugin.decide``.

    stdin    {terms, spot {zone: place}, on_demand place or null, nodes, event or null, running or null}
             a place is {price, cloud, region, zone, gpu, count}, its price in $/h for all nodes, 0 where
             nobody knows it; a node has ``count`` GPUs, or none and ``gpu`` is the instance type
             an event is {place, what}, and of a launch that was refused {was_up}: whether a node may have run
    stdout   {do: launch | keep | wait | stop, place, why, step}      step: newest committed checkpoint

So neither NumPy nor boto3 nor a store that hangs is in SkyPilot's controller, which serves all jobs, and
the store is opened with the job's own credentials. What was seen so far is ``runs/RUN/recovery.json`` in the
store: a controller that is started again goes on from there. Later runs learn from ``spot/`` what this
one saw (``launcher.money.sightings``), as this one does from those before; when that fails, the decision is
made without it, and its words say so. A launch is reserved in the ledger before it is answered, at the price
of its place; the agent takes that reservation over. One that was refused is settled before anything else, so
that waiting for another costs nothing.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from launcher.agent.ends import BUDGET_REACHED
from launcher.artifacts import checkpoints
from launcher.artifacts.deadline import within
from launcher.artifacts.store import Store, StoreError, open_store
from launcher.errors import Refused, UserError
from launcher.lineage import sync
from launcher.money import account as accounts
from launcher.money import availability, recovery, sightings
from launcher.money.account import MICROS, About, Account, Entry
from launcher.money.lease import Lease
from launcher.money.ledger import Ledger, account_name, open_ledger
from launcher.money.policy import ON_DEMAND, Keep, Launch, Wait
from launcher.money.recovery import Event, Here, Terms
from launcher.money.sightings import Report, Seen

_KEPT = 500  # events
_SHARED_S = 10.0  # for other runs to be told


def terms_of(values: Mapping[str, Any]) -> Terms:
    """The terms as they were written into ``job_recovery``."""
    return Terms(**{**values, "lease": Lease(**values["lease"])})


def decide(asked: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Carry out one question at ``now`` (seconds since the epoch). Raises StoreError."""
    terms = terms_of(asked["terms"])
    store = open_store(terms.artifacts, terms.s3_endpoint)
    named = _named(asked)
    events = _remember(store, terms.run, asked, named, now)
    ledger, name = open_ledger(store), account_name(terms.run, terms.experiment)
    running = asked["running"]
    if running is None:
        held = ledger.change(name, lambda held: _without_nodes(held, terms, asked["event"], now))
    else:
        held = ledger.read(name)
    left = held.left(terms.run)
    on_demand = asked["on_demand"]
    # Under a cap unknown is not 0: where nobody knows the price, nothing is launched.
    prices = {zone: _price(terms, place) for zone, place in asked["spot"].items()}
    otherwise = _price(terms, on_demand) if on_demand else None
    here = Here(
        spot={zone: price or 0.0 for zone, price in prices.items() if price is not None or left is None},
        on_demand=0.0 if on_demand and otherwise is None and left is None else otherwise,
        place=running,
        since=max((event.at for event in events if event.what == "launched"), default=now),
        work=None if terms.work is None else max(terms.work - _done(store, terms.run), 0.0),
        room=None if left is None else left / MICROS,
    )
    reports, trouble = _share(store, terms, name, events if asked["event"] else None, now)
    here = replace(
        here,
        others=sightings.others(reports, named, terms.run, now),
        prior=lambda: sightings.joined(availability.load_prior(), sightings.tallies(reports), named),
    )
    decision, why = recovery.choose(terms, here, events, now)
    why = "; ".join([why, *trouble])
    if isinstance(decision, Launch):
        place = on_demand if decision.place == ON_DEMAND else asked["spot"][decision.place]
        try:
            if running is None:
                _reserve(ledger, name, terms, decision.place, place, asked, now)
        except StoreError:
            raise
        except Refused as short:
            return {"do": "stop", "place": None, "why": f"{BUDGET_REACHED}: {short.message}", "step": None}
        return {"do": "launch", "place": decision.place, "why": why, "step": _step(store, terms.run)}
    if isinstance(decision, (Keep, Wait)):
        word = type(decision).__name__.lower()
        return {"do": word, "place": None, "why": why, "step": _step(store, terms.run)}
    return {"do": "stop", "place": None, "why": f"{decision.reason}: {why}", "step": None}


def _price(terms: Terms, place: Mapping[str, Any]) -> float | None:
    """Dollars per hour of all nodes there: the profile's, else the catalog's; None where neither knows."""
    return terms.price if terms.price is not None else place["price"] if place["price"] > 0 else None


def _named(asked: Mapping[str, Any]) -> dict[str, str]:
    """The names in a prior of the zones that are asked about. A controller that runs since before an upgrade
    does not say what instances they have."""
    return {
        zone: f"{zone}_{sightings.kind(place['gpu'], place['count'] or 0, asked['nodes'])}"
        for zone, place in asked["spot"].items()
        if place.get("gpu")
    }


def _share(
    store: Store, terms: Terms, account: str, events: Sequence[Event] | None, now: float
) -> tuple[list[Report], list[str]]:
    """Write down for other runs what this launch has seen, unless ``events`` is None: nothing new. Returns
    what all have seen, and in words what of that went wrong: no decision waits for it."""
    trouble = []
    if events is not None:
        seen = [
            Seen(one.at, one.zone, one.what, one.price)
            for one in events
            if one.zone and one.at >= terms.began
        ]
        try:
            within(_SHARED_S, lambda: sightings.keep(store, terms.run, terms.began, account, seen))
        except (StoreError, TimeoutError) as error:
            trouble = [f"no other run knows what this one saw: {error}"]
    reports, more = sightings.read_soon(store, now)
    return reports, trouble + more


def _remember(
    store: Store, run: str, asked: Mapping[str, Any], named: Mapping[str, str], now: float
) -> list[Event]:
    """What was seen of the market in this run, with the event that is ``asked`` about added."""
    event = asked["event"]
    key = f"runs/{run}/recovery.json"
    data = store.get_bytes(key)
    events = [Event(**item) for item in json.loads(data)] if data else []
    if event:
        place = event["place"]
        price = asked["spot"].get(place, {}).get("price", 0.0)
        events = [*events, Event(now, place, event["what"], named.get(place), price)][-_KEPT:]
        store.put_bytes(key, json.dumps([asdict(item) for item in events]).encode())
    return events


def _done(store: Store, run: str) -> float:
    """Seconds of work that are safe: of each attempt, from the trainer's first sign, after inputs, restore
    and model, to the save of its last committed checkpoint. The steps before that sign are left out."""
    done = 0.0
    for events in sync.attempts(store, run):
        signs = [float(event["ts"]) for event in events if event["type"] in ("metrics", "checkpoint")]
        saved = [event["ts"] - event["seconds"] for event in events if event["type"] == "checkpoint"]
        done += max(saved[-1] - signs[0], 0.0) if saved else 0.0
    return done


def _step(store: Store, run: str) -> int | None:
    newest = checkpoints.newest(store, run)
    return newest.step if newest else None


def _without_nodes(held: Account, terms: Terms, event: Mapping[str, Any] | None, now: float) -> Account:
    """The account when no node of the run is left at ``now``. What no node ever ran for costs nothing: the
    launcher's own reservation, instead of which each launch here has one, and a launch that was refused. A
    controller that runs since before an upgrade does not say ``was_up``."""
    run = terms.run
    own = held.entries.get(terms.reservation or "")
    if own and own.attempt is None and own.ended is None:
        held = accounts.settle(held, own.key, own.launched)
    if (
        event
        and event["what"] == "refused"
        and not event.get("was_up", True)
        and (key := accounts.free(held, run))
    ):
        held = accounts.settle(held, key, held.entries[key].launched)
    return accounts.supersede(held, run, round(now * 1000))


def _reserve(
    ledger: Ledger,
    name: str,
    terms: Terms,
    where: str,
    place: Mapping[str, Any],
    asked: Mapping[str, Any],
    now: float,
) -> None:
    """Reserve the launch's first lease. Raises Refused when a cap does not pay it."""
    at = round(now * 1000)
    price = _price(terms, place)
    # Of what a profile's price would be on-demand nobody knows; the catalog's is of other nodes.
    on_demand = asked["on_demand"] if terms.price is None else None
    otherwise = price if where == ON_DEMAND else _price(terms, on_demand) if on_demand else None
    entry = Entry(
        f"{terms.run}/{uuid.uuid4().hex[:8]}",
        terms.run,
        accounts.micros(price),
        at,
        terms.lease.first(at),
        nodes=asked["nodes"],
        market="on-demand" if where == ON_DEMAND else "spot",
        cloud=place["cloud"],
        region=place["region"],
        zone=place["zone"],
        on_demand=accounts.micros(otherwise),
    )

    def step(held: Account) -> Account:
        about = held.runs.get(terms.run) or About("unknown", "unknown", "unknown", "unknown")
        return accounts.reserve(held, entry, about)

    ledger.change(name, step)


def main() -> None:
    try:
        print(json.dumps(decide(json.load(sys.stdin), time.time())))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
