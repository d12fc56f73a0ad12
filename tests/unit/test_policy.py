"""The policy's promises, whatever the market does: deadline, budget, truth; and that it is any good."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import Refused, UserError
from launcher.money import availability, policy, program, simulate, traces
from launcher.money.baselines import BASELINES
from launcher.money.policy import ON_DEMAND, Job, Keep, Launch, Memory, Offer, State, Stop, Wait
from launcher.money.traces import Window

FIXTURE = Path(__file__).parents[1] / "fixtures" / "spot-windows"
NOON = datetime(2023, 3, 1, 12)
HOUR = 3600.0


@functools.cache
def small(budget: float | None = None, zones: tuple[str, ...] = ("us-east-2a", "us-west-2b")) -> policy.Plan:
    """Six hours of work in ten, ticks of six minutes, a restart of two ticks."""
    job = Job(work=6 * HOUR, deadline=10 * HOUR, restart=720, on_demand=3.0, budget=budget, tick=360)
    return policy.make_plan(job, zones, availability.load_prior(), NOON, prices=dict.fromkeys(zones, 1.0))


def old(**up: bool) -> dict[str, Memory]:
    return {zone.replace("_", "-"): Memory(value, -30 * HOUR) for zone, value in up.items()}


def offers(**up: bool) -> list[Offer]:
    return [Offer(zone.replace("_", "-"), 1.0, value) for zone, value in up.items()]


def test_it_starts_on_a_lasting_spot_zone_and_stays() -> None:
    plan, here = small(), {"us_east_2a": False, "us_west_2b": True}
    state = State(work=6 * HOUR, memory=old(**here))
    assert policy.decide(plan, state, offers(**here), 0) == Launch("us-west-2b")
    held = State(work=5 * HOUR, place="us-west-2b", memory=old(**here))
    assert policy.decide(plan, held, offers(**here), HOUR) == Keep()


def test_it_waits_early_and_buys_late() -> None:
    plan, here = small(), {"us_east_2a": False, "us_west_2b": False}
    fresh = {zone.replace("_", "-"): Memory(False, 0.0) for zone in here}
    assert policy.decide(plan, State(work=2 * HOUR, memory=fresh), offers(**here), 600) == Wait()
    # 6 h of work and a restart of 0.2 h: after 3.8 h nothing but on-demand is in time.
    state = State(work=6 * HOUR, memory=old(**here))
    assert policy.decide(plan, state, offers(**here), 3.8 * HOUR) == Launch(ON_DEMAND)


def test_it_returns_from_on_demand_to_spot() -> None:
    here = {"us_east_2a": True, "us_west_2b": True}
    state = State(work=4 * HOUR, place=ON_DEMAND, memory=old(**here))
    decision = policy.decide(small(), state, offers(**here), HOUR)
    assert isinstance(decision, Launch)
    assert decision.place != ON_DEMAND


def test_it_takes_the_cheaper_of_two_like_zones() -> None:
    state = State(work=6 * HOUR, memory=old(us_west_2b=True, us_east_2a=True))
    dear = [Offer("us-west-2b", 2.6, True), Offer("us-east-2a", 1.0, True)]
    assert policy.decide(small(), state, dear, 0) == Launch("us-east-2a")


@functools.cache
def dear_and_cheap() -> policy.Plan:
    """The same job where us-east-1f costs twice what us-west-2b does: two pools."""
    job = Job(work=6 * HOUR, deadline=10 * HOUR, restart=720, on_demand=3.0, tick=360)
    prices = {"us-east-1f": 2.0, "us-west-2b": 1.0}
    return policy.make_plan(job, list(prices), availability.load_prior(), NOON, prices=prices)


def test_it_waits_for_the_cheap_zone_while_time_is_ample() -> None:
    market = [Offer("us-east-1f", 2.0, True), Offer("us-west-2b", 1.0, False)]
    seen = {"us-east-1f": Memory(True, -30 * HOUR), "us-west-2b": Memory(False, 0.0)}
    ample, scarce = State(work=HOUR, memory=seen), State(work=6 * HOUR, memory=seen)
    assert policy.decide(dear_and_cheap(), ample, market, 360) == Wait()
    assert policy.decide(dear_and_cheap(), scarce, market, 3 * HOUR) == Launch("us-east-1f")


def test_it_leaves_the_dear_zone_once_the_cheap_one_lasts() -> None:
    market = [Offer("us-east-1f", 2.0, True), Offer("us-west-2b", 1.0, True)]
    state = State(work=5 * HOUR, place="us-east-1f", memory=old(us_east_1f=True, us_west_2b=True))
    assert policy.decide(dear_and_cheap(), state, market, HOUR) == Launch("us-west-2b")
    nearly = replace(state, work=360)  # the restart would cost more than the rest
    assert policy.decide(dear_and_cheap(), nearly, market, 8.5 * HOUR) == Keep()


def test_zones_of_about_one_price_form_a_pool() -> None:
    prices = {"c": 1.05, "a": 1.0, "b": 1.3}
    assert policy.pools_of(prices) == [("a", "c"), ("b",)]
    assert policy.pools_of({"a": 1.0, "c": 1.1}) == [("a", "c")]


def test_a_second_pool_that_is_never_up_changes_nothing() -> None:
    zone = availability.chain(availability.load_prior(), "us-east-2a_v100_1").steps
    never = np.zeros_like(zone)
    never[..., 0] = 1.0
    job = {"cell": availability.cells(NOON, 195, 60), "on_demand": 3.0, "work": 30, "restart": 1}
    alone = program.solve([program.Market(zone, 1.0)], **job)  # type: ignore[arg-type]
    both = program.solve([program.Market(never, 0.1), program.Market(zone, 1.0)], **job)  # type: ignore[arg-type]
    for t in (0, 16, 48):
        want = alone.later[alone.slab[t]]
        got = both.later[both.slab[t]][[0, 1, 3], 0]
        assert got == pytest.approx(want, rel=1e-4)


def test_it_stops_when_done_late_or_out_of_money() -> None:
    here = {"us_east_2a": True, "us_west_2b": True}
    seen = old(**here)
    assert policy.decide(small(), State(work=0, memory=seen), offers(**here), 0) == Stop("done")
    assert policy.decide(small(), State(work=60, memory=seen), offers(**here), 36000) == Stop("deadline")
    broke = State(work=HOUR, place="us-east-2a", spent=4.95, memory=seen)
    assert policy.decide(small(5.0), broke, offers(**here), HOUR) == Stop("budget reached")


def test_a_tight_budget_keeps_off_on_demand() -> None:
    """$8 at $3.00 or about $1.00 an hour, for six hours of work in ten."""
    here = {"us_east_2a": False, "us_west_2b": False}
    state = State(work=6 * HOUR, memory=old(**here))
    assert policy.decide(small(8.0), state, offers(**here), 3.8 * HOUR) == Wait()
    # At the end, money that lasts to the deadline buys work.
    assert policy.decide(small(8.0), state, offers(**here), 8 * HOUR) == Launch(ON_DEMAND)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_deadline_and_budget_hold_in_any_market(data: st.DataObject) -> None:
    budget = data.draw(st.one_of(st.none(), st.floats(1.0, 30.0)))
    seed = data.draw(st.integers(0, 10**6))
    stay = data.draw(st.sampled_from([1, 3, 20, 80]))
    rng = np.random.default_rng(seed)
    flips = rng.random((2, 100)) < 1 / stay
    up = (np.cumsum(flips, axis=1) + rng.integers(0, 2, (2, 1))) % 2 == 0
    price = rng.uniform(0.5, 3.5, (2, 100))
    window = Window(NOON, up, price)
    job = simulate.Setting(60, 100, 2, 360.0, 3.0, budget)
    zones = ("us-east-2a", "us-west-2b")
    got = simulate.replay(window, zones, job, simulate.ours(window, zones, job, {}, plan=small(budget)))
    if budget is None:
        assert got.finished
    else:
        assert got.cost <= budget + 1e-9
        if budget >= 62 * 0.3:  # finishing on-demand is paid for: the job must end, whatever spot does
            assert got.finished


def test_no_plan_without_time_or_sense() -> None:
    with pytest.raises(Refused, match="deadline leaves"):
        policy.make_plan(Job(HOUR, HOUR, 600, 3.0), ["a"], {}, NOON)
    with pytest.raises(UserError, match="work"):
        policy.make_plan(Job(0, HOUR, 600, 3.0), ["a"], {}, NOON)
    with pytest.raises(UserError, match="budget"):
        policy.make_plan(Job(HOUR, 2 * HOUR, 600, 3.0, budget=0), ["a"], {}, NOON)


def test_it_decides_in_far_less_than_ten_milliseconds() -> None:
    plan, here = small(), {"us_east_2a": True, "us_west_2b": True}
    state, market = State(work=5 * HOUR, memory=old(**here)), offers(**here)
    took = []
    for _ in range(50):
        began = time.perf_counter()
        policy.decide(plan, state, market, HOUR)
        took.append(time.perf_counter() - began)
    assert np.median(took) < 0.01


def test_it_beats_the_rules_on_recorded_windows_without_having_seen_them() -> None:
    market = traces.read(FIXTURE).only(["us-east-2a_v100_1"])
    job = simulate.setting(market, work=172800, deadline=216000, restart=780, on_demand=3.06, budget=None)
    prior = {z: one for z, one in availability.load_prior().items() if z not in market.zones}
    mine = simulate.run(market, job, simulate.OURS, lambda _: prior)
    assert all(one.finished for one in mine)
    best = sum(simulate.optima(market, job))
    for name in ("greedy", "uniform-progress"):
        theirs = simulate.run(market, job, name, lambda _: {})
        assert best <= sum(r.cost for r in mine) < sum(r.cost for r in theirs)


@pytest.mark.parametrize(
    ("zone", "budget"), [(0, 30.0), (0, 60.0), (0, 100.0), (1, 30.0), (1, 100.0), (2, 30.0), (None, 30.0)]
)
def test_a_budget_buys_as_much_work_as_any_baseline_gets(zone: int | None, budget: float) -> None:
    """In a zone that comes and goes. With three of one price nothing is left to decide but luck."""
    market = traces.read(FIXTURE)
    if zone is None:
        market = replace(market, windows=market.windows[1:3])
    else:
        market = market.only([market.zones[zone]])
    job = simulate.setting(market, work=172800, deadline=216000, restart=780, on_demand=3.06, budget=budget)
    prior = availability.load_prior()
    mine = simulate.run(market, job, simulate.OURS, lambda _: prior)
    assert all(one.cost <= budget + 1e-9 for one in mine)
    for name in BASELINES:
        theirs = sum(r.done for r in simulate.run(market, job, name, lambda _: {}))
        assert sum(r.done for r in mine) >= theirs * (1 if zone is not None else 0.99), name


def test_history_adds_up_and_survives_a_file(tmp_path: Path) -> None:
    market = traces.read(FIXTURE)
    prior = simulate.pooled(simulate.history(market))
    availability.save_prior(prior, tmp_path / "p.json")
    again = availability.load_prior(tmp_path / "p.json")
    zone = market.zones[0]
    assert again[zone].ticks == 5 * 1107
    assert (again[zone].moves == prior[zone].moves).all()
    assert again[zone].moves.sum() == again[zone].seen.sum() == 5 * 1106
    for chain in (availability.chain(again, zone), availability.chain({}, "nowhere", gap=600)):
        assert chain.steps.sum(axis=2) == pytest.approx(np.ones((16, 12)))
        assert (chain.steps >= 0).all()
    (tmp_path / "p.json").write_text("[1]")
    with pytest.raises(UserError, match=r"p\.json"):
        availability.load_prior(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("us-east-1a_v100_1", "us-east-1"), ("us-central1-a", "us-central1"), ("eu-west-3b", "eu-west-3"),
        ("x", "x"),
    ],
)  # fmt: skip
def test_regions(zone: str, region: str) -> None:
    assert availability.region(zone) == region
