"""Reading windows, the exact optimum, the replay's accounts and the command."""

from __future__ import annotations

import functools
import gzip
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cli.main import main
from launcher.errors import UserError
from launcher.money import availability, simulate, traces
from launcher.money.baselines import BASELINES, IDLE, ON_DEMAND
from launcher.money.optimum import optimum
from launcher.money.traces import Market, Window

FIXTURE = Path(__file__).parents[1] / "fixtures" / "spot-windows"


def brute(up: Any, price: Any, work: int, deadline: int, restart: int, on_demand: float) -> float:
    """The least cost by trying every sequence of choices."""

    @functools.cache
    def best(t: int, current: int, overhead: int, left: int) -> float:
        if left == 0:
            return 0.0
        if t == deadline:
            return float("inf")
        costs = []
        for choice in (IDLE, ON_DEMAND, *range(len(up))):
            if choice >= 0 and not up[choice][t]:
                continue
            if choice == IDLE:
                costs.append(best(t + 1, IDLE, 0, left))
                continue
            pending = overhead if choice == current else restart
            paid = on_demand if choice == ON_DEMAND else price[choice][t]
            costs.append(
                paid
                + (best(t + 1, choice, pending - 1, left) if pending else best(t + 1, choice, 0, left - 1))
            )
        return min(costs)

    return best(0, IDLE, 0, work)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_optimum_is_that_of_trying_everything(data: st.DataObject) -> None:
    ticks = data.draw(st.integers(1, 7))
    zones = data.draw(st.integers(1, 2))
    work = data.draw(st.integers(1, ticks))
    restart = data.draw(st.integers(0, 3))
    bits = data.draw(st.lists(st.booleans(), min_size=zones * ticks, max_size=zones * ticks))
    prices = data.draw(st.lists(st.integers(1, 9), min_size=zones * ticks, max_size=zones * ticks))
    up, price = np.array(bits).reshape(zones, ticks), np.array(prices, float).reshape(zones, ticks)
    found = optimum(up[None], price[None], work=work, deadline=ticks, restart=restart, on_demand=6.0)[0]
    assert found == pytest.approx(brute(up.tolist(), price.tolist(), work, ticks, restart, 6.0))


def window(*zones: str, price: float = 1.0) -> Market:
    up = np.array([[c == "1" for c in zone] for zone in zones])
    one = Window(datetime(2023, 3, 1), up, np.full(up.shape, price))
    return Market(3600.0, tuple(f"us-east-{i + 1}a" for i in range(len(zones))), (one,))


def test_a_stay_pays_its_restart_and_a_preemption_ends_it() -> None:
    market = window("1101111111")
    job = simulate.setting(market, work=4 * 3600, deadline=36000, restart=3600, on_demand=3.0, budget=None)
    got = simulate.replay(market.windows[0], market.zones, job, BASELINES["failover"])
    # Two ticks (one works), a gap, then one of restart and three of work: six ticks paid.
    assert got.choices == (0, 0, IDLE, 0, 0, 0, 0)
    assert (got.cost, got.done, got.stays, got.finished) == (6.0, 4, 2, True)


def test_sticky_never_leaves_on_demand_and_greedy_has_its_net() -> None:
    market = window("0011111111")
    job = simulate.setting(market, work=4 * 3600, deadline=36000, restart=3600, on_demand=3.0, budget=None)
    sticky = simulate.replay(market.windows[0], market.zones, job, BASELINES["sticky"])
    assert set(sticky.choices) == {ON_DEMAND}
    dead = window("0000000000")
    greedy = simulate.replay(dead.windows[0], dead.zones, job, BASELINES["greedy"])
    assert greedy.choices == (IDLE,) * 4 + (ON_DEMAND,) * 5
    assert greedy.finished


def test_a_policy_cannot_have_what_is_not_there() -> None:
    market = window("0111")
    job = simulate.setting(market, work=3600, deadline=14400, restart=0, on_demand=3.0, budget=None)
    with pytest.raises(ValueError, match="is down"):
        simulate.replay(market.windows[0], market.zones, job, lambda seen: 0)


@pytest.mark.parametrize("name", list(BASELINES))
def test_no_baseline_passes_a_budget_or_beats_the_optimum(name: str) -> None:
    market = traces.read(FIXTURE)
    free = simulate.setting(market, work=172800, deadline=216000, restart=780, on_demand=3.06, budget=None)
    best = simulate.optima(market, free)
    for i, one in enumerate(market.windows):
        got = simulate.replay(one, market.zones, free, BASELINES[name])
        assert not got.finished or got.cost >= best[i] - 1e-6
        assert got.finished or name in ("failover", "eager-next-region")
        capped = simulate.replay(one, market.zones, replace(free, budget=30.0), BASELINES[name])
        assert capped.cost <= 30.0 + 1e-9


def test_windows_survive_writing_and_reading(tmp_path: Path) -> None:
    market = traces.read(FIXTURE)
    for name in ("a.json", "b.json.gz"):
        traces.write(market, tmp_path / name)
    again = traces.read(tmp_path)
    assert again.zones == market.zones
    assert len(again.windows) == 2 * len(market.windows)
    for one, other in zip(market.windows * 2, again.windows, strict=True):
        assert one.start == other.start
        assert (one.up == other.up).all()
        assert (one.price == other.price).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gap_seconds": 0}, "above 0"),
        ({"zones": ["a", "b"]}, "b"),
        ({"windows": []}, "a window"),
        ({"available": {"a": "10x"}}, "0 and 1"),
        ({"available": {"a": "10"}}, "2 ticks"),
        ({"price": {"a": [[3, 0]]}}, "not above 0"),
        ({"price": {"a": "x"}}, "price"),
        ({"start_time": "yesterday"}, "yesterday"),
    ],
)
def test_damaged_windows_are_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    one: dict[str, Any] = {
        "start_time": "2023-03-01T00:00:00", "available": {"a": "101"}, "price": {"a": [[3, 0.5]]}
    }  # fmt: skip
    raw: dict[str, Any] = {"gap_seconds": 195, "zones": ["a"], "windows": [one]}
    for key, value in change.items():
        (raw if key in raw else one)[key] = value
    file = tmp_path / "w.json"
    file.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=said) as error:
        traces.read(file)
    assert "w.json" in str(error.value)


def test_unreadable_files_and_unknown_zones(tmp_path: Path) -> None:
    (tmp_path / "w.json.gz").write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(UserError, match=r"w\.json\.gz"):
        traces.read(tmp_path / "w.json.gz")
    with pytest.raises(UserError, match="no windows at"):
        traces.read(tmp_path / "none.json")
    market = traces.read(FIXTURE)
    with pytest.raises(UserError, match="did you mean"):
        market.only([market.zones[0][:-1]])


def test_windows_that_share_time_are_held_out() -> None:
    one = window("1111").windows[0]
    later = Window(datetime(2023, 3, 1, 3), one.up, one.price)
    apart = Window(datetime(2023, 3, 1, 4), one.up, one.price)
    market = Market(3600.0, ("z",), (one, later, apart))
    past = simulate.history(market)
    assert simulate.held_out(market, past, 0)["z"].ticks == 4  # only `apart`
    assert "z" not in simulate.held_out(market, past, 1)
    assert simulate.held_out(market, past, 0, without=["z"]) == {}


def test_the_command_writes_a_trace_that_prices_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trace.json"
    with pytest.raises(SystemExit) as stop:
        main(
        ["simulate", "--windows", str(FIXTURE), "--policy", "nemo-sky", "--zone", "us-east-2a_v100_1",
         "--trace", str(out), "--plot", str(tmp_path / "costs.svg"), "--json"]
    )  # fmt: skip
    assert stop.value.code == 0
    printed = capsys.readouterr()
    assert "--history held-out is fair" in printed.err, "the shipped history is of these very windows"
    rows = json.loads(printed.out)["results"]
    assert [row["policy"] for row in rows] == ["optimum", "nemo-sky"]
    assert rows[1]["finished"] == 5
    assert rows[1]["slowest_decision_ms"] < 5000  # the plan is made within the first one
    assert (tmp_path / "costs.svg").stat().st_size > 1000
    market = traces.read(FIXTURE)
    zone = market.zones.index("us-east-2a_v100_1")
    written = json.loads(out.read_text())
    assert written["zones"] == ["us-east-2a_v100_1"]
    costs = []
    for one, chosen in zip(market.windows, written["windows"], strict=True):
        assert len(chosen["choice"]) == 1107
        prices = {"-": np.zeros(1107), "o": np.full(1107, 3.06), "0": one.price[zone]}
        assert all(one.up[zone][t] for t, c in enumerate(chosen["choice"]) if c == "0")
        costs.append(sum(prices[c][t] for t, c in enumerate(chosen["choice"])) * 195 / 3600)
    assert np.mean(costs) == pytest.approx(rows[1]["cost"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "gredy"], "did you mean 'greedy'"),
        (["--work", "48"], "not a duration"),
        (["--work", "59h", "--deadline", "59h"], "deadline"),
        (["--zone", "us-east-2z_v100_1"], "did you mean"),
        (["--trace", "t.json"], "one policy"),
        (["--plot", "costs.bmp", "--policy", "greedy"], "png"),
        (["--budget", "0"], "--budget: '0' is not an amount of dollars"),
        (["--deadline", "36"], "--deadline: '36' is not a duration"),
        (["--history", "shiped"], "did you mean 'shipped'"),
        (["--policy", "greedy", "--trace", "/nonexistent/x.json"], "there is no folder /nonexistent"),
        (["--policy", "greedy", "--trace", "/tmp"], "--trace /tmp is a folder"),
    ],
)
def test_the_command_refuses(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["simulate", "--windows", str(FIXTURE), *words])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_the_shipped_history_knows_the_recorded_zones() -> None:
    prior = availability.load_prior()
    assert len([name for name in prior if "|" not in name]) == 9
    assert prior["us-west-2b_v100_1"].paid / prior["us-west-2b_v100_1"].ticks == pytest.approx(
        0.947, abs=0.01
    )
