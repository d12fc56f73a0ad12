"""What earlier runs saw of spot zones: what of it is counted, and that a later run decides by it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.artifacts.store import FileStore
from launcher.money import account as accounts
from launcher.money import availability, recovery, sightings
from launcher.money.account import MICROS, About, Entry
from launcher.money.availability import TICK
from launcher.money.lease import Lease
from launcher.money.ledger import open_ledger
from launcher.money.sightings import Report, Seen
from launcher.skyplugin.decide import decide

LEASE = Lease(setup=600_000, check=60_000, save=60_000, teardown=60_000)
NOW = 1_800_000_000.0
HOUR = 3600.0
A, B = "us-east-1a_h100_8", "us-east-1b_h100_8"
PRIOR = availability.load_prior()


def same(one: availability.Tally, other: availability.Tally) -> bool:
    pairs = [(one.moves, other.moves), (one.flips, other.flips), (one.seen, other.seen)]
    return (
        all((a == b).all() for a, b in pairs)
        and one.ticks == other.ticks
        and one.paid == pytest.approx(other.paid)
    )


def watched(up: list[bool], start: float) -> Report:
    """The events of a run that launches whenever the zone is up and tries at each tick when it is down."""
    seen, before = [], None
    for tick, one in enumerate(up):
        at = start + tick * TICK
        if one and not before:
            seen.append(Seen(at, A, "launched", 10.0))
        elif not one:
            seen.append(Seen(at, A, "lost" if before else "refused", 10.0))
        before = one
    return Report("r", tuple(seen), start + (len(up) - 1) * TICK)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=8), st.integers(0, 10**6))
def test_a_zone_that_is_watched_all_the_time_is_counted_as_the_history_is(
    runs: list[tuple[bool, int]], start: int
) -> None:
    up = [state for state, length in runs for _ in range(length)]
    up += [up[-1]]  # a refusal alone is a tick longer than its moment
    told = sightings.tallies([watched(up, NOW + start)])[A]
    when = datetime.fromtimestamp(NOW + start, UTC)
    assert same(told, availability.tally(np.array(up), np.full(len(up), 10.0), when))


REFUSALS = st.lists(st.floats(0, 20 * HOUR), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(REFUSALS, st.integers(0, 108_000))
def test_a_zone_that_only_refused_never_looks_better_for_it(times: list[float], later: int) -> None:
    reports = [Report("r", tuple(Seen(NOW + at, A, "refused", 10.0) for at in sorted(times)))]
    named = {"a": A, "b": B}
    before, after = (sightings.joined(PRIOR, sightings.tallies(found), named) for found in ([], reports))
    assert availability.chain(after, "a").share < availability.chain(before, "a").share
    now = NOW + max(times) + later
    told = sightings.others(reports, named, "mine", now)
    [alone, _], _ = recovery.offers({"a": 1.0, "b": 1.0}, [], now, 600)
    [offer, _], memory = recovery.offers({"a": 1.0, "b": 1.0}, [], now, 600, told)
    assert offer.up is (later >= 600)
    assert alone.up
    if offer.up:
        assert now - memory["a"].since <= availability.FIRST_AGE


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 10**5),
        st.sampled_from([A, B]),
        st.sampled_from(["launched", "refused", "lost", "left"]),
    ),
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(rows=EVENTS, cut=st.integers(0, 10**5))
def test_nothing_that_comes_later_is_seen(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, cut: int
) -> None:
    store = FileStore(tmp_path_factory.mktemp("s"))
    seen = sorted((Seen(NOW + at, zone, what, 1.0) for at, zone, what in rows), key=lambda one: one.at)
    early = [one for one in seen if one.at <= NOW + cut]
    sightings.keep(store, "whole", NOW, "runs/r", seen)
    whole = sightings.tallies(sightings.read(store, NOW + cut)[0])
    store.delete_prefix("spot")
    sightings.keep(store, "early", NOW, "runs/r", early)
    part = sightings.tallies(sightings.read(store, NOW + cut)[0])
    assert whole.keys() == part.keys()
    assert all(same(whole[zone], part[zone]) for zone in whole)
    assert all(one.ticks <= len(early) * 2 + cut / TICK + 1 for one in part.values())


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    sightings.keep(store, "good", NOW, "runs/good", [Seen(NOW, A, "refused", 1.0)])
    for n, data in enumerate((b"{", b'{"version": 9}', b"[1]", b'{"version": 1, "run": "r", "seen": [[1]]}')):
        store.put_bytes(f"spot/99{n}-bad{n}.json", data)
    reports, trouble = sightings.read(store, NOW)
    assert [report.run for report in reports] == ["good"]
    assert len(trouble) == 4
    assert all(f"bad{3 - n}.json is not a report of spot zones" in text for n, text in enumerate(trouble))
    assert [report.run for report in sightings.read(store, NOW, newest=4)[0]] == []


def test_the_last_stay_of_a_run_is_as_long_as_the_ledger_says(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    begun = round(NOW * 1000)
    entry = Entry("r/1", "r", 10 * MICROS, begun, begun + 36_000_000, attempt=1, ended=begun + 7_200_000)
    about = About("tiny", "pretrain", "me", "aws")
    open_ledger(store).change("runs/r", lambda held: accounts.reserve(held, entry, about))
    sightings.keep(store, "r", NOW, "runs/r", [Seen(NOW + 600, A, "launched", 10.0)])
    [report], _ = sightings.read(store, NOW + 9000)
    assert report.until == NOW + 7200
    assert sightings.read(store, NOW + 3600)[0][0].until == NOW + 3600, "not what was not yet"
    sightings.keep(store, "s", NOW, "runs/s", [Seen(NOW + 600, A, "launched", 10.0)])
    assert sightings.read(store, NOW + 9000)[0][0].until == NOW + 600, "the ledger knows nothing of it"


def test_a_stay_of_this_kind_counts_for_how_long_one_lasts(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    before, by_zone = sightings.mean_stays(store, "h100_8", NOW)
    assert before == pytest.approx(availability.mean_stay(PRIOR), rel=0.01)
    assert by_zone == {}
    seen = [
        Seen(NOW + n * HOUR + (0 if what == "launched" else 600), A, what, 1.0)
        for n in range(48)
        for what in ("launched", "lost")
    ]
    sightings.keep(store, "r", NOW, "runs/r", seen)
    after, by_zone = sightings.mean_stays(store, "h100_8", NOW + 100 * HOUR)
    assert after < 0.9 * before
    assert by_zone == {"us-east-1a": after}
    assert sightings.mean_stays(store, "a100_8", NOW + 100 * HOUR)[0] > after


def test_each_zone_of_a_kind_has_its_own_mean_stay(tmp_path: Path) -> None:
    anywhere, by_zone = sightings.mean_stays(FileStore(tmp_path), "v100_1", NOW)
    assert len(by_zone) == 9
    assert by_zone["us-east-1a"] < anywhere < by_zone["us-west-2b"]


# The process that decides


def question(root: Path, run: str, began: float, **changed: Any) -> dict[str, Any]:
    place = {"cloud": "aws", "region": "us-east-1", "gpu": "H100", "count": 8}
    prices = {"us-east-1a": 30.0, "us-east-1b": 30.2}
    spot = {zone: {"price": price, "zone": zone, **place} for zone, price in prices.items()}
    terms = {"run": run, "artifacts": str(root), "began": began, "lease": asdict(LEASE)}
    terms |= {"deadline": began + 30 * HOUR, "work": 20 * HOUR}
    on_demand = {"price": 98.0, "zone": None, **place}
    asked = {"terms": terms, "spot": spot, "on_demand": on_demand, "nodes": 1, "event": None, "running": None}
    return {**asked, **changed}


def test_the_next_run_plans_with_what_the_one_before_saw(tmp_path: Path) -> None:
    alone = decide(question(tmp_path / "empty", "second", NOW), NOW)
    assert alone["place"] == "us-east-1a"
    decide(question(tmp_path, "first", NOW), NOW)
    refused = {"place": "us-east-1a", "what": "refused"}
    for n in range(3):
        decide(question(tmp_path, "first", NOW, event=refused), NOW + 60 + n * 900)
    now = NOW + 60 + 2 * 900 + 300
    after = decide(question(tmp_path, "second", now), now)
    assert after["place"] == "us-east-1b", after["why"]
    other = question(tmp_path, "third", now, nodes=4)
    assert decide(other, now)["place"] == "us-east-1a", "four nodes are another thing"


def test_a_zone_that_takes_its_nodes_away_each_time_is_left_for_a_dearer_one_the_next_day(
    tmp_path: Path,
) -> None:
    later = NOW + 50 * HOUR
    assert decide(question(tmp_path, "second", later), later)["place"] == "us-east-1a"
    for n in range(24):
        for after, what in ((0, "launched"), (900, "lost")):
            at = NOW + n * HOUR + after
            event = {"place": "us-east-1a", "what": what}
            running = "us-east-1a" if what == "launched" else None
            decide(question(tmp_path, "first", NOW, event=event, running=running), at)
    assert decide(question(tmp_path, "third", later), later)["place"] == "us-east-1b"


def test_a_store_that_fails_there_holds_up_no_decision(tmp_path: Path) -> None:
    (tmp_path / "spot").write_text("not a folder")
    event = {"place": "us-east-1b", "what": "refused"}
    answer = decide(question(tmp_path, "r", NOW, event=event), NOW)
    assert answer["place"] == "us-east-1a"
    assert "no other run knows what this one saw: cannot write" in answer["why"]


def test_a_plan_has_the_history_that_is_shipped_for_its_own_kind() -> None:
    named = {"us-east-2a": "us-east-2a_v100_1", "us-east-2b": "us-east-2b_v100_1"}
    known = sightings.joined(PRIOR, {}, named)
    assert same(known["us-east-2a"], PRIOR["us-east-2a_v100_1"])
    assert same(known["us-east-2a|us-east-2b"], PRIOR["us-east-2a_v100_1|us-east-2b_v100_1"])
    assert known["us-west-2a_v100_1"].ticks == pytest.approx(7 * 86_400 / TICK)
