"""What a launch is expected to take and cost: from its config and the catalogs, less what is done already."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import clusters
from launcher.money import estimate, expect
from launcher.money.estimate import Past, Work
from launcher.money.expect import Limits
from launcher.money.gate import Expected
from tests.unit.test_quote import CATALOGS, NANO3

TASK: dict[str, Any] = {"num_nodes": 2, "resources": {"accelerators": "H100:8", "infra": "aws"}}
AWS = clusters.Profile("aws", (), infra="aws")
OWN = clusters.Profile("desk", (), backend="local", price_per_hour=10.0)


NO_LIMITS = Limits()


def seen(work: Work, limits: Limits = NO_LIMITS, **resources: Any) -> Expected:
    task = {**TASK, "resources": {**TASK["resources"], **resources}}
    return expect.expected(AWS, task, work, limits)


@pytest.fixture(autouse=True)
def catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_SKY_CATALOGS", str(CATALOGS))


def test_the_market_that_is_not_asked_for_is_only_named() -> None:
    found = seen(Work(hours=10.0))
    assert found.best
    assert found.best.where.endswith(" on on-demand")
    assert {way.where.rpartition(" on ")[2] for way in found.ways if not way.asked} == {"spot"}
    spot = seen(Work(hours=10.0), use_spot=True)
    assert spot.best
    assert spot.best.where.endswith(" on spot")
    assert spot.best.cost < found.best.cost


def test_a_checkpoint_leaves_only_the_rest() -> None:
    whole = estimate.work_of(NANO3)
    rest = estimate.from_step(whole, 1500)
    assert rest.left == 0.25
    hours = {n: seen(work).best for n, work in (("all", whole), ("rest", rest))}
    assert hours["all"]
    assert hours["rest"]
    setup = 0.2
    assert hours["rest"].hours - setup == pytest.approx((hours["all"].hours - setup) / 4)
    assert "25% of it is left" in hours["rest"].source
    assert estimate.from_step(whole, 5000).left == 0, "a shorter config than the checkpoint's"


def test_what_is_not_known_is_not_invented() -> None:
    unknown = seen(Work())
    assert (unknown.best, unknown.ways) == (None, ())
    assert "number of tokens is not known" in unknown.unknown
    lost = seen(estimate.from_step(Work(hours=3.0), 10))
    assert lost.best is None
    assert "does not say of how many steps" in lost.unknown
    free = clusters.Profile("local", (), backend="local")
    nowhere = expect.expected(free, {"num_nodes": 1}, Work(hours=1.0), NO_LIMITS)
    assert nowhere.unknown == "no place has a price"


def test_one_s_own_machine_needs_no_set_up() -> None:
    found = expect.expected(OWN, {"num_nodes": 2}, Work(hours=1.0), NO_LIMITS)
    assert found.best
    assert found.best.hours == pytest.approx(1.0, rel=0.01)
    assert found.best.cost == pytest.approx(20_000_000, rel=0.01)
    assert (found.best.where, found.best.chance) == ("desk", None)


def test_spot_alone_may_be_too_late_and_spot_first_is_not() -> None:
    limits = Limits(deadline=12.0)
    alone = seen(Work(hours=10.0), limits, use_spot=True).best
    both = seen(Work(hours=10.0), limits, any_of=[{"use_spot": True}, {"use_spot": False}]).best
    assert alone
    assert not alone.in_time
    assert both
    assert both.in_time
    assert both.hours <= 12


@settings(max_examples=25)
@given(
    hours=st.floats(0.5, 60), deadline=st.floats(1, 200), budget=st.floats(1, 1e5), spot=st.booleans()
)  # fmt: skip
def test_the_chance_agrees_with_what_is_said(
    hours: float, deadline: float, budget: float, spot: bool
) -> None:
    for way in seen(Work(hours=hours), Limits(deadline, budget), use_spot=spot).ways:
        assert way.cost > 0
        assert way.chance is not None
        assert 0 <= way.chance <= 1
        if not way.in_time:
            assert way.hours > deadline
            assert way.chance < expect.EVEN


def test_an_earlier_run_of_another_length_is_scaled() -> None:
    past = (Past("r", None, 0, 1, None, 2.0, steps=100),)
    longer = estimate.estimate(Work(steps=300, past=past), None, 0, 1)
    assert longer.hours == 6.0
    assert "2 h for 100 of 300 steps" in longer.source
    assert estimate.estimate(Work(past=past), None, 0, 1).hours == 2.0
