"""The plugin's line in SkyPilot's file, and one decision of the strategy with a real store and ledger."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from launcher.artifacts.store import open_store
from launcher.errors import UserError
from launcher.money import account as accounts
from launcher.money.account import MICROS, About
from launcher.money.lease import Lease
from launcher.money.ledger import account_name, open_ledger
from launcher.skyplugin import files
from launcher.skyplugin.decide import _done, decide

LEASE = Lease(setup=600_000, check=60_000, save=60_000, teardown=60_000)
NOW = 1_000_000.0
ABOUT = About("tiny", "pretrain", "me", "aws")


def test_the_plugin_is_listed_once_and_others_stay(tmp_path: Path) -> None:
    file = tmp_path / ".sky" / "plugins.yaml"
    assert files.add(file)
    assert not files.add(file)
    assert files.is_listed(file)
    assert files.remove(file)
    assert not file.exists()
    file.write_text("controller_wheel_path: /w\nplugins:\n- class: other.Plugin\n  parameters: {a: 1}\n")
    before = file.read_text()
    assert files.add(file)
    assert "other.Plugin" in file.read_text()
    assert files.remove(file)
    assert not files.remove(file)
    assert files._read(file) == {
        "controller_wheel_path": "/w",
        "plugins": [{"class": "other.Plugin", "parameters": {"a": 1}}],
    }
    assert before


@pytest.mark.parametrize("text", ["[", "- a\n", "plugins: {a: b}\n", "plugins: [1]\n", "3"])
def test_a_file_that_is_none_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    file = tmp_path / "plugins.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"plugins\.yaml"):
        files.add(file)
    assert file.read_text() == text


def question(root: Path, **changed: Any) -> dict[str, Any]:
    place = {"cloud": "aws", "region": "us-east-1"}
    spot = {zone: {"price": price, "zone": zone, **place} for zone, price in (("a1", 10.0), ("a2", 11.0))}
    terms = {"run": "r", "artifacts": str(root), "began": NOW, "lease": asdict(LEASE), "capped": True}
    asked = {"terms": terms, "spot": spot, "on_demand": None, "nodes": 2, "event": None, "running": None}
    return {**asked, **changed}


def with_budget(root: Path, dollars: float) -> None:
    def step(held: accounts.Account) -> accounts.Account:
        held = replace(held, runs={"r": ABOUT})
        return accounts.set_budget(held, "r", round(dollars * MICROS), "me", 0)

    open_ledger(open_store(str(root))).change(account_name("r", None), step)


def test_a_launch_is_reserved_before_it_is_answered_and_the_budget_ends_the_job(tmp_path: Path) -> None:
    with_budget(tmp_path, 4.0)
    ledger, name = open_ledger(open_store(str(tmp_path))), account_name("r", None)
    assert decide(question(tmp_path), NOW)["place"] == "a1"
    (entry,) = ledger.read(name).of("r")
    assert (entry.market, entry.zone, entry.nodes, entry.price) == ("spot", "a1", 2, 10 * MICROS)
    assert accounts.free(ledger.read(name), "r") == entry.key

    lost = {"place": "a1", "what": "lost"}
    again = decide(question(tmp_path, event=lost), NOW + 300)
    assert (again["do"], again["place"]) == ("launch", "a2")
    held = ledger.read(name)
    assert [entry.zone for entry in held.of("r")] == ["a1", "a2"]
    assert held.of("r")[0].ended == round((NOW + 300) * 1000)
    assert accounts.free(held, "r") == held.of("r")[1].key
    assert accounts.free(accounts.adopt(held, held.of("r")[1].key, 2, {}), "r") is None

    ended = decide(question(tmp_path, event={"place": "a2", "what": "lost"}), NOW + 900)
    assert ended["do"] == "stop"
    assert ended["why"].startswith("budget reached: $")
    assert ledger.read(name).committed("r") <= 4 * MICROS
    seen = json.loads((tmp_path / "runs/r/recovery.json").read_text())
    assert [(event["place"], event["what"]) for event in seen] == [("a1", "lost"), ("a2", "lost")]


def test_the_launcher_s_own_reservation_costs_nothing_once_there_is_one_of_each_launch(
    tmp_path: Path,
) -> None:
    """An hour passed until SkyPilot's controller asked for the first time, and none of it had a node."""
    with_budget(tmp_path, 4.0)
    ledger, name = open_ledger(open_store(str(tmp_path))), account_name("r", None)
    at = round((NOW - 3600) * 1000)
    own = accounts.Entry("r/own", "r", 10 * MICROS, at, at + 20 * 60_000)
    ledger.change(name, lambda held: accounts.reserve(held, own, ABOUT))
    terms = {**question(tmp_path)["terms"], "reservation": "r/own"}
    assert decide(question(tmp_path, terms=terms), NOW)["do"] == "launch"
    first, launched = ledger.read(name).of("r")
    assert (first.key, first.cost, first.ended) == ("r/own", 0, at)
    assert launched.zone == "a1"
    assert decide(question(tmp_path, terms=terms), NOW + 60)["do"] == "launch"
    assert ledger.read(name).entries["r/own"] == first


def test_a_look_at_the_market_reserves_nothing(tmp_path: Path) -> None:
    with_budget(tmp_path, 4.0)
    on_demand = {"price": 40.0, "zone": None, "cloud": "aws", "region": "us-east-1"}
    looked = decide(question(tmp_path, on_demand=on_demand, running="on-demand"), NOW)
    assert (looked["do"], looked["place"], looked["step"]) == ("launch", "a1", None)
    assert open_ledger(open_store(str(tmp_path))).read(account_name("r", None)).of("r") == []


def test_a_launch_that_was_refused_costs_nothing_however_long_the_next_is_waited_for(tmp_path: Path) -> None:
    """Four zones at $100/h, refused after a minute each time: the budget is whole for who gets through."""
    with_budget(tmp_path, 400.0)
    ledger, name = open_ledger(open_store(str(tmp_path))), account_name("r", None)
    place = {"cloud": "aws", "region": "us-east-1"}
    spot = {zone: {"price": 100.0, "zone": zone, **place} for zone in ("a1", "a2", "a3", "a4")}
    event: dict[str, Any] | None = None
    now, launches, waited = NOW, 0, 0
    while now < NOW + 86_400:
        answer = decide(question(tmp_path, spot=spot, event=event), now)
        assert answer["do"] in ("launch", "wait"), answer["why"]
        event = None
        if answer["do"] == "launch":
            launches, now = launches + 1, now + 60
            event = {"place": answer["place"], "what": "refused", "was_up": False}
        else:
            waited, now = waited + 1, now + 195
            assert ledger.read(name).committed("r") == 0
    assert launches > 20
    assert waited > 20


KUBERNETES = {"price": 0.0, "zone": None, "cloud": "kubernetes", "region": "here"}


def first_entry(root: Path, **asked: Any) -> accounts.Entry:
    assert decide(question(root, **asked), NOW)["do"] == "launch"
    (entry,) = open_ledger(open_store(str(root))).read(account_name("r", None)).of("r")
    return entry


@pytest.mark.parametrize("price", [None, 0.0])
def test_of_what_has_no_price_nothing_is_launched_under_a_cap(tmp_path: Path, price: float | None) -> None:
    with_budget(tmp_path, 4.0)
    asked = question(tmp_path, spot={"here": KUBERNETES}, on_demand=KUBERNETES)
    asked["terms"]["price"] = price
    answer = decide(asked, NOW)
    if price is None:
        assert answer["do"] == "stop"
        assert "nobody knows what it costs" in answer["why"]
    else:
        assert (answer["do"], answer["place"]) == ("launch", "here"), "the profile says that it is one's own"


def test_a_cap_leaves_the_place_that_has_a_price(tmp_path: Path) -> None:
    with_budget(tmp_path, 4.0)
    spot = {"here": KUBERNETES, **question(tmp_path)["spot"]}
    entry = first_entry(tmp_path, spot=spot)
    assert (entry.zone, entry.price) == ("a1", 10 * MICROS)


def test_what_nobody_knows_the_price_of_is_written_down_so(tmp_path: Path) -> None:
    entry = first_entry(tmp_path, spot={"here": KUBERNETES}, on_demand=KUBERNETES)
    assert (entry.cloud, entry.price, entry.on_demand) == ("kubernetes", None, None)


def test_a_price_of_the_profile_is_charged_and_says_nothing_of_what_was_saved(tmp_path: Path) -> None:
    on_demand = {"price": 40.0, "zone": None, "cloud": "aws", "region": "us-east-1"}
    terms = {**question(tmp_path)["terms"], "price": 2.5}
    entry = first_entry(tmp_path, terms=terms, on_demand=on_demand)
    assert (entry.market, entry.price, entry.on_demand) == ("spot", 2_500_000, None)


@pytest.mark.parametrize("price", [None, 0.0, 2.5])
def test_one_s_own_nodes_with_a_deadline_are_decided_about(tmp_path: Path, price: float | None) -> None:
    """Their price in SkyPilot's catalog is 0, of which no policy can be made; on-demand stays."""
    terms = {**question(tmp_path)["terms"], "price": price, "deadline": NOW + 43_200, "work": 14_400.0}
    entry = first_entry(tmp_path, terms=terms, spot={"here": KUBERNETES}, on_demand=KUBERNETES)
    assert entry.market == "on-demand"
    assert entry.price == (None if price is None else round(price * MICROS))
    refused = {"place": "on-demand", "what": "refused", "was_up": False}
    asked = question(tmp_path, terms=terms, spot={"here": KUBERNETES}, on_demand=KUBERNETES, event=refused)
    assert decide(asked, NOW + 60)["place"] == "here"


@pytest.mark.parametrize("said", [{"was_up": True}, {}])
def test_a_launch_of_which_a_node_ran_is_counted_until_it_was_given_up(
    tmp_path: Path, said: dict[str, bool]
) -> None:
    ledger, name = open_ledger(open_store(str(tmp_path))), account_name("r", None)
    spot = {"a1": {"price": 10.0, "zone": "a1", "cloud": "aws", "region": "us-east-1"}}
    decide(question(tmp_path, spot=spot), NOW)
    refused = {"place": "a1", "what": "refused", **said}
    assert decide(question(tmp_path, spot=spot, event=refused), NOW + 90)["do"] == "wait"
    (entry,) = ledger.read(name).of("r")
    assert (entry.ended, entry.cost) == (round((NOW + 90) * 1000), 250_000)


def test_work_is_done_from_the_first_step_to_what_the_last_checkpoint_has_saved(tmp_path: Path) -> None:
    def attempt(number: int, *events: tuple[str, float]) -> None:
        lines = [
            {"type": what, "ts": NOW + at, "seconds": 20.0, "seq": n}
            for n, (what, at) in enumerate(events, 1)
        ]
        folder = tmp_path / "runs" / "r" / "journal"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    store = open_store(str(tmp_path))
    assert _done(store, "r") == 0.0
    start = (("attempt_started", 0.0), ("system", 30.0), ("restored", 600.0))
    attempt(1, *start, ("metrics", 700.0), ("checkpoint", 1320.0), ("metrics", 1500.0))
    assert _done(store, "r") == 600.0
    attempt(2, *start, ("metrics", 700.0))
    assert _done(store, "r") == 600.0, "nothing of it is kept"
    attempt(3, *start, ("checkpoint", 700.0), ("checkpoint", 1000.0), ("metrics", 1001.0))
    assert _done(store, "r") == 880.0
