"""Where a preempted job goes on: what is believed of zones, what is chosen, and that the caps hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.money import availability, recovery
from launcher.money.lease import Lease
from launcher.money.policy import ON_DEMAND, Keep, Launch, Stop, Wait
from launcher.money.recovery import Event, Here, Terms

LEASE = Lease(setup=600_000, check=60_000, save=60_000, teardown=60_000)
SPOT = {"a1": 10.0, "a2": 11.0, "b1": 30.0}
HOUR = 3600.0


def terms(**changed: Any) -> Terms:
    return Terms(**{"run": "r", "artifacts": "/a", "began": 0.0, "lease": LEASE, **changed})


def decided(here: Here, *events: Event, now: float = 5000.0, **changed: Any) -> object:
    return recovery.choose(terms(**changed), here, events, now)[0]


def test_the_cheapest_zone_first_and_not_the_one_just_lost() -> None:
    assert decided(Here(SPOT, None)) == Launch("a1")
    lost = Event(4900, "a1", "lost")
    assert decided(Here(SPOT, None), lost) == Launch("a2")
    assert decided(Here(SPOT, None), lost, now=4900 + 599) == Launch("a2")
    assert decided(Here(SPOT, None), lost, now=4900 + 600) == Launch("a1")


def history(*spells: int) -> availability.Tally:
    """A week of a zone that is up and down in turn, for so many ticks."""
    up = np.resize(np.repeat([True, False], spells), 3000)
    return availability.tally(up, np.ones(len(up)), datetime(2026, 11, 2, tzinfo=UTC))


def test_a_zone_that_lasts_is_worth_its_price() -> None:
    """Of ten minutes of set-up little is left where a zone goes every twenty."""
    flighty, steady = history(6, 6), history(400, 20)
    prior = {"a1": flighty, "a2": steady}
    assert decided(Here(SPOT, None, prior=lambda: prior)) == Launch("a2")
    assert decided(Here({**SPOT, "a1": 1.0}, None, prior=lambda: prior)) == Launch("a1"), "cheap enough"
    assert decided(Here(SPOT, None, prior=lambda: {"a1": steady, "a2": flighty})) == Launch("a1")
    assert decided(Here(SPOT, None, prior=dict)) == Launch("a1"), "nothing is known: by price"
    minutes = Here(SPOT, None, work=60.0, prior=lambda: prior)
    assert decided(minutes) == Launch("a1"), "what is left is done before it goes"


def test_a_zone_that_has_just_come_back_is_not_the_first() -> None:
    near, lost = Here({**SPOT, "a2": 10.2}, None), Event(4900, "a1", "lost")
    assert decided(near) == Launch("a1")
    assert decided(near, lost, now=4900 + 600) == Launch("a2")
    assert decided(near, lost, now=4900 + 600 + 7200) == Launch("a1")


def test_a_zone_that_fails_again_is_left_alone_twice_as_long() -> None:
    events = [Event(0, "a1", "refused"), Event(600, "a1", "refused")]
    up = {offer.zone: offer.up for offer in recovery.offers(SPOT, events, 1799, 600)[0]}
    assert up == {"a1": False, "a2": True, "b1": True}
    assert recovery.offers(SPOT, events, 1800, 600)[0][0].up
    worked = [*events, Event(2000, "a1", "launched"), Event(9000, "a1", "lost")]
    assert not recovery.offers(SPOT, worked, 9599, 600)[0][0].up
    assert recovery.offers(SPOT, worked, 9600, 600)[0][0].up


def test_spot_alone_waits_and_spot_first_goes_on_demand_and_back() -> None:
    all_down = [Event(4900, zone, "refused") for zone in SPOT]
    assert decided(Here(SPOT, None), *all_down) == Wait()
    assert decided(Here(SPOT, 40.0), *all_down) == Launch(ON_DEMAND)
    there = Here(SPOT, 40.0, place=ON_DEMAND)
    assert decided(there, *all_down) == Keep()
    assert decided(there, *all_down, now=5500.0) == Launch("a1")


def test_a_spot_stay_is_kept_without_a_deadline() -> None:
    assert decided(Here(SPOT, 40.0, place="b1")) == Keep()
    assert decided(Here({}, 40.0)) == Launch(ON_DEMAND)


@pytest.mark.parametrize(("room", "expected"), [(2.17, Launch("a1")), (2.16, Stop("budget reached"))])
def test_no_launch_whose_first_lease_cannot_be_paid(room: float, expected: object) -> None:
    # 780 s at $10/h.
    assert decided(Here(SPOT, 40.0, room=room), capped=True) == expected


def test_a_dearer_place_than_the_budget_pays_for_is_waited_out() -> None:
    down = [Event(4900, zone, "refused") for zone in ("a1", "a2")]
    assert decided(Here(SPOT, 40.0, room=3.0), *down, capped=True) == Wait()
    assert decided(Here(SPOT, 40.0, room=7.0), *down, capped=True) == Launch("b1")


def test_the_deadline_goes_through_the_spot_policy() -> None:
    ample = terms(deadline=12 * HOUR, work=4 * HOUR)
    tight = terms(deadline=4.5 * HOUR, work=4 * HOUR)
    here = Here(SPOT, 40.0, work=4 * HOUR)
    assert recovery.choose(ample, here, [], 60.0)[0] == Launch("a1")
    decision, why = recovery.choose(tight, here, [], 1200.0)
    assert decision == Launch(ON_DEMAND)
    assert "4.00 h of work" in why
    late = recovery.choose(tight, here, [], 2 * HOUR)
    assert late[0] == Launch(ON_DEMAND)
    assert "can hardly be met" in late[1]
    assert recovery.choose(tight, here, [], 5 * HOUR)[0] == Stop("deadline reached")
    running = Here(SPOT, 40.0, work=HOUR, place="a1")
    assert recovery.choose(tight, running, [], 5 * HOUR)[0] == Keep()


@pytest.mark.parametrize("events", [(), (Event(-700, "a1", "refused"), Event(-60, "a2", "lost"))])
def test_a_plan_does_not_depend_on_when_the_epoch_began(events: tuple[Event, ...]) -> None:
    """As seconds since 1970 a zone was up since long after the launch, which is 0: it counted as down."""

    def chosen(began: float) -> object:
        asked = terms(began=began, deadline=began + 12 * HOUR, work=4 * HOUR)
        seen = [replace(event, at=began + event.at) for event in events]
        return recovery.choose(asked, Here(SPOT, 40.0, work=4 * HOUR), seen, began)[0]

    weeks = 2976 * 7 * 86_400.0  # the hour and the weekend count, as they are
    assert chosen(weeks) == chosen(0.0) != Wait()


EVENTS = st.lists(
    st.builds(
        Event,
        st.floats(0, 9000),
        st.sampled_from([*SPOT, ON_DEMAND]),
        st.sampled_from(["launched", "refused", "lost", "left"]),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(
    events=EVENTS,
    room=st.none() | st.floats(0, 40),
    place=st.sampled_from([None, *SPOT, ON_DEMAND]),
    on_demand=st.none() | st.just(40.0),
    deadline=st.none() | st.floats(2, 30),
    work=st.none() | st.floats(0, 4),
    now=st.floats(9000, 30000),
)
def test_whatever_happened_only_what_is_offered_and_paid_is_launched(
    events: list[Event],
    room: float | None,
    place: str | None,
    on_demand: float | None,
    deadline: float | None,
    work: float | None,
    now: float,
) -> None:
    asked = terms(
        capped=room is not None,
        deadline=None if deadline is None else deadline * HOUR,
        work=None if work is None else 4 * HOUR,
    )
    here = Here(SPOT, on_demand, place, 0.0, None if work is None else work * HOUR, room)
    decision, why = recovery.choose(asked, here, events, now)
    assert why
    if isinstance(decision, Launch):
        price = on_demand if decision.place == ON_DEMAND else SPOT[decision.place]
        assert price is not None
        assert room is None or recovery.first_cost(price, LEASE) <= room
        assert decision.place != place
    if isinstance(decision, Stop):
        assert place is None
    if isinstance(decision, Keep):
        assert place is not None
