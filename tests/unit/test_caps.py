"""Caps from flags and the project file, and the gate: what it refuses, by how much, and what would do."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import yamlfile
from launcher.errors import Refused, UserError
from launcher.money import account, caps, gate
from launcher.money.account import HOUR_MS, About, Account, Entry
from launcher.money.amounts import parse_dollars, parse_duration
from launcher.money.caps import Caps, Settings
from launcher.money.gate import Expected, Way

T = 1_800_000_000_000
ABOUT = About("tiny", "pretrain", "ann", "aws")
# Four nodes at $10 an hour each; the first lease is 15 minutes, ten dollars.
ENTRY = Entry("r-1", "r", 40_000_000, T, T + HOUR_MS // 4, nodes=4)


def order(
    given: Caps, unsaid: Caps | None = None, ways: tuple[Way, ...] = (), spot: int | None = None
) -> gate.Order:
    return gate.Order(ENTRY, ABOUT, given, unsaid or Caps(), Expected(ways) if ways else None, spot)


def read(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "nemo-sky.yaml").write_text(text)
    return caps.settings(yamlfile.read(tmp_path / "nemo-sky.yaml"))


# Where caps come from


def test_flags_as_people_write_them() -> None:
    assert caps.from_flags("$1.5k", "50", "2d", "sweep-1", "2,000") == Caps(
        1_500_000_000, 50_000_000, 172_800, "sweep-1", 2_000_000_000
    )
    assert caps.from_flags() == Caps()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"budget": "lots"}, "--budget: 'lots' is not an amount of dollars"),
        ({"budget": "0"}, "--budget: '0'"),
        ({"deadline": "36"}, "--deadline: '36' is not a duration"),
        ({"max_hourly": "-3"}, "--max-hourly: '-3'"),
        ({"experiment": "a/b"}, "--experiment: 'a/b' cannot name"),
        ({"experiment_budget": "5"}, "which?"),
    ],
)
def test_a_wrong_flag_is_named(flags: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        caps.from_flags(**flags)


def test_the_project_gives_defaults_and_limits(tmp_path: Path) -> None:
    text = "  defaults: {budget: $200, deadline: 3d}\n  limits: {budget: 1k, max_hourly: 98.5}\n  setup: 0\n"
    found = read(tmp_path, f"money:\n{text}")
    assert found.defaults == Caps(budget=200_000_000, deadline=259_200)
    assert (found.check_every, found.setup, found.teardown) == (60, 0, None)
    assert found.checkpoint_every == "auto"
    assert read(tmp_path, "money: {checkpoint_every: 30m}\n").checkpoint_every == 1800
    assert read(tmp_path, "money: {checkpoint_every: recipe}\n").checkpoint_every is None
    assert caps.unsaid(found) == Caps(budget=200_000_000, max_hourly=98_500_000, deadline=259_200)
    caps.within(Caps(budget=1_000_000_000), found)
    with pytest.raises(UserError, match=r"--budget \$1,001.00 is above this project's limit of \$1,000.00"):
        caps.within(Caps(budget=1_001_000_000), found)
    assert read(tmp_path, "") == Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("money: 5\n", ":1: money must be a table"),
        ("money:\n  limit: {}\n", ":2: unknown key money.limit; did you mean 'limits'"),
        ("money:\n  limits:\n    bugdet: 5\n", ":3: unknown key money.limits.bugdet; did you mean 'budget'"),
        ("money:\n  defaults: {budget: soon}\n", ":2: money.defaults.budget: 'soon' is not an amount"),
        ("money:\n  check_every: 5\n", ":2: money.check_every: '5' is not a duration"),
        ("money:\n  checkpoint_every: atuo\n", ":2: money.checkpoint_every: 'atuo' is not a duration"),
        ("money:\n  check_every: 0\n", ":2: money.check_every must not be 0"),
        ("money:\n  defaults: {budget: 5}\n  limits: {budget: 4}\n", ":2: money.defaults.budget is above"),
    ],
)
def test_a_wrong_project_file_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)


# The gate


def refusal(asked: gate.Order, held: Account | None = None) -> str:
    with pytest.raises(Refused) as caught:
        gate.admit(held or Account(), asked)
    return str(caught.value)


def test_a_launch_without_caps_is_written_down() -> None:
    held = gate.admit(Account(), order(Caps()))
    assert held.committed("r") == 10_000_000
    assert gate.admit(held, order(Caps())) == held, "asked again after a lost reply"


def test_the_first_lease_must_fit() -> None:
    assert gate.admit(Account(), order(Caps(budget=10_000_000))).left("r") == 0
    said = refusal(order(Caps(budget=5_000_000), spot=20_000_000))
    assert "$10.00 more is $5.00 too much" in said
    assert "--nodes 2 would begin; on spot it needs $5.00; --budget 10.00 would do" in said


DEAR = Way("aws/us-east-1 on on-demand", 10.0, 400_000_000, "run q: 1 tokens/s")
CHEAP = Way("aws/us-east-2 on on-demand", 12.0, 390_000_000, "run q: 1 tokens/s")
SPOT = Way("aws/us-east-2 on spot", 30.0, 130_000_000, "run q: 1 tokens/s", asked=False)


def test_the_cheapest_way_must_fit() -> None:
    ways = (DEAR, CHEAP, SPOT)
    assert gate.admit(Account(), order(Caps(budget=390_000_000), ways=ways)).left("r") == 380_000_000
    said = refusal(order(Caps(budget=389_000_000), ways=ways))
    assert "$390.00 more is $1.00 too much (what is left of the work, where it costs least: " in said
    assert "12h at aws/us-east-2 on on-demand; run q: 1 tokens/s)" in said
    assert "--budget 390.00 would do; aws/us-east-2 on spot costs $130.00 and takes 1d6h" in said
    assert "--work TIME" in said
    assert "--nodes" not in said, "fewer nodes take longer: no cheaper"


def test_what_no_attempt_can_work_for_must_fit_too() -> None:
    """Six minutes of save and teardown, and a quarter of an hour of FAILOVER's next nodes: at $390 the work
    would have ended as budget reached with $14 of it undone."""
    asked = replace(order(Caps(budget=390_000_000), ways=(CHEAP, SPOT)), recovery=900_000, tail=360_000)
    said = refusal(asked)
    assert "$404.00 more is $14.00 too much" in said
    assert "and $14.00 that it must have left to save and go" in said
    assert "--budget 404.00 would do" in said
    assert gate.admit(Account(), replace(asked, caps=Caps(budget=404_000_000)))
    assert "aws/us-east-2 on spot" not in refusal(replace(asked, caps=Caps(budget=143_000_000)))
    assert "aws/us-east-2 on spot costs $130" in refusal(replace(asked, caps=Caps(budget=144_000_000)))


def test_on_spot_the_next_nodes_are_leased_too() -> None:
    asked = replace(order(Caps(budget=7_000_000), spot=20_000_000), spot_recovery=360_000)
    assert "on spot it needs $7.00;" in refusal(asked)
    assert "on spot it needs" not in refusal(replace(asked, caps=Caps(budget=6_990_000)))


def test_what_is_spent_already_counts() -> None:
    held = gate.admit(Account(), order(Caps(budget=400_000_000)))
    again = replace(order(Caps(), ways=(replace(CHEAP, cost=395_000_000),)), entry=replace(ENTRY, key="r-2"))
    assert "$10.00 is spent or reserved: $395.00 more is $5.00 too much" in refusal(again, held)


def test_a_deadline_can_make_it_dear() -> None:
    """The cheap way is too late: what the timely one costs is held against the budget."""
    ways = (DEAR, replace(CHEAP, in_time=False), replace(SPOT, in_time=False))
    caps = Caps(budget=395_000_000, deadline=39_600)
    said = refusal(order(caps, ways=ways))
    assert "$400.00 more is $5.00 too much" in said
    assert "aws/us-east-2 on on-demand costs $390.00 and takes 12h, and needs --deadline 12h" in said


@given(
    st.lists(
        st.builds(
            Way, st.just("x"), st.floats(0.01, 90), st.integers(10**7, 2 * 10**9), st.just("s"),
            st.booleans(), st.none(), st.booleans(),
        ),
        max_size=6,
    ),
    st.integers(11_000_000, 10**9),
    st.floats(1000, 3e5),
    st.integers(0, 10**6),
)  # fmt: skip
def test_what_the_gate_says_would_do_does(ways: list[Way], budget: int, deadline: float, tail: int) -> None:
    """It refuses exactly what cannot fit, and is content with the cap that it names."""
    ways = [replace(way, in_time=way.hours * 3600 <= deadline) for way in ways]
    asked = replace(order(Caps(budget=budget, deadline=deadline), ways=tuple(ways)), tail=tail)
    fits = [way for way in ways if way.asked and way.in_time and way.cost + asked.kept <= budget]
    try:
        gate.admit(Account(), asked)
    except Refused as refused:
        assert not fits
        assert any(way.asked for way in ways), "nothing is known: the first lease fits"
        if found := re.search(r"--budget (\S+) would do", str(refused)):
            enough = round(parse_dollars(found[1]) * 1_000_000)
            assert budget < enough
            again = replace(asked, caps=replace(asked.caps, budget=enough))
        else:
            found = re.search(r"--deadline (\S+) would do", str(refused))
            assert found
            enough_s = parse_duration(found[1])
            assert enough_s > deadline
            later = tuple(replace(way, in_time=way.hours * 3600 <= enough_s) for way in ways)
            assert any(way.asked and way.in_time for way in later)
            again = replace(order(Caps(budget=10**12, deadline=enough_s), ways=later), tail=tail)
        gate.admit(Account(), again)
    else:
        assert fits or not any(way.asked for way in ways)


def test_the_hourly_cap_knows_what_would_fit() -> None:
    assert gate.admit(Account(), order(Caps(max_hourly=40_000_000)))
    said = refusal(order(Caps(max_hourly=25_000_000), spot=12_000_000))
    assert "4 nodes cost $40.00 per hour, $15.00 more than the $25.00 allowed" in said
    assert "--nodes 2 costs $20.00; spot costs $12.00; --max-hourly 40.00 would do" in said
    cheaper = refusal(replace(order(Caps(max_hourly=25_000_000)), least_price=31_500_000))
    assert "4 nodes cost $31.50 per hour where they cost least, $6.50 more than the $25.00" in cheaper
    assert "--nodes 3 costs $23.62; --max-hourly 31.50 would do" in cheaper
    assert "more than the $30.00" in refusal(order(Caps(), Caps(max_hourly=30_000_000))), "the project's"


def test_an_unknown_price_fits_under_no_cap() -> None:
    unknown = replace(order(Caps(max_hourly=1_000_000)), entry=replace(ENTRY, price=None))
    assert "price_per_hour" in refusal(unknown)
    assert "price_per_hour" in refusal(replace(unknown, caps=Caps(budget=1_000_000_000)))
    assert gate.admit(Account(), replace(unknown, caps=Caps())).entries["r-1"].price is None


def test_the_deadline_is_held_against_the_expected_hours() -> None:
    assert gate.admit(Account(), order(Caps(deadline=36_000), ways=(DEAR,)))
    late = (replace(DEAR, in_time=False), replace(CHEAP, in_time=False))
    said = refusal(order(Caps(deadline=7200), ways=late))
    assert "expected to take 10h where it is fastest (aws/us-east-1 on on-demand), 8h more than the" in said
    assert "--deadline 10h would do" in said
    other = replace(SPOT, in_time=True, hours=1.5)
    assert "aws/us-east-2 on spot takes 1h30m" in refusal(order(Caps(deadline=7200), ways=(*late, other)))


def test_a_deadline_before_the_first_lease_ends_is_refused_whatever_is_known() -> None:
    said = refusal(order(Caps(deadline=600)))
    assert "the deadline of 10m is 5m shorter than set-up, one check and a save may take (15m)" in said
    assert "--deadline 15m would do" in said
    assert gate.admit(Account(), order(Caps(deadline=900)))
    assert "deadline of 10m" in refusal(order(Caps(), Caps(deadline=600))), "the project's"


def test_a_recorded_budget_stands_until_another_is_given() -> None:
    project = Caps(budget=50_000_000, experiment_budget=90_000_000)
    held = gate.admit(Account("e"), order(Caps(budget=30_000_000, experiment="e"), project))
    assert (held.budget_of("r"), held.budget) == (30_000_000, 90_000_000)
    again = replace(order(Caps(experiment="e"), project), entry=replace(ENTRY, key="r-2"))
    held = gate.admit(held, again)
    assert held.budget_of("r") == 30_000_000, "the default is for runs without one"
    more = replace(
        order(Caps(budget=60_000_000, experiment="e", experiment_budget=95_000_000)),
        entry=replace(ENTRY, key="r-3"),
    )
    held = gate.admit(held, more)
    assert (held.budget_of("r"), held.budget) == (60_000_000, 95_000_000)
    assert [budget.by for budget in held.budgets] == ["nemo-sky.yaml", "ann"]
    said = refusal(replace(more, caps=Caps(budget=20_000_000)), held)
    assert "below the $30.00 that it has spent or reserved" in said


def test_an_experiment_is_shared() -> None:
    held = gate.admit(Account("e"), order(Caps(experiment="e", experiment_budget=15_000_000)))
    other = replace(order(Caps(experiment="e")), entry=replace(ENTRY, key="s-1", run="s"))
    said = refusal(other, held)
    assert "budget of experiment e is $15.00, of which $10.00 is spent or reserved" in said
    assert "--experiment-budget 20.00 would do" in said
    early = account.settle(held, "r-1", T + HOUR_MS // 8)
    assert gate.admit(early, other).committed() == 15_000_000, "what was not used is there for others"
