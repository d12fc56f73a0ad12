"""Receipts: sums that add up, groups, and what the journals say was wasted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.artifacts.store import FileStore
from launcher.backends import State
from launcher.cli.main import main
from launcher.errors import Refused, UserError
from launcher.lineage.journal import Journal
from launcher.money import account, booking, page, receipts, story, svg
from launcher.money.account import HOUR_MS, About, Entry
from launcher.money.ledger import Ledger, now_ms, open_ledger
from launcher.money.receipts import Line
from launcher.runs import Run

T = 1_800_000_000_000
ANN, BOB = About("tiny", "pretrain", "ann", "aws"), About("tiny", "sft", "bob", "gcp")
# Ten dollars an hour for half an hour on spot, where on demand is thirty.
SPOT = Entry("r-1", "r", 10_000_000, T, T + HOUR_MS // 2, market="spot", cloud="aws", on_demand=30_000_000)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    made = FileStore(tmp_path / "store")
    ledger = open_ledger(made)
    spot = replace(SPOT, attempt=1)
    after = replace(SPOT, key="r-2", attempt=2, market="on-demand", on_demand=None, launched=T + HOUR_MS)
    after = replace(after, until=T + 2 * HOUR_MS, ended=T + 2 * HOUR_MS)
    ledger.change("experiments/e", lambda held: account.reserve(held, spot, ANN))
    ledger.change("experiments/e", lambda held: account.reserve(held, after, ANN))
    ledger.change("experiments/e", lambda held: account.set_budget(held, None, 20_000_000, "ann", T))
    free = Entry("s-1", "s", None, T + 1, T + HOUR_MS, cloud="gcp")
    ledger.change("runs/s", lambda held: account.reserve(held, free, BOB))
    return made


@pytest.fixture
def ledger(store: FileStore) -> Ledger:
    return open_ledger(store)


def test_totals_add_up_and_unknown_is_not_nothing(ledger: Ledger) -> None:
    found = receipts.lines(ledger)
    assert receipts.totals(found) == {
        "runs": 2, "attempts": 3, "hours": 2.5, "cost_usd": 15.0, "unknown_price": 1, "saved_usd": 10.0,
    }  # fmt: skip
    assert receipts.totals([line for line in found if line.entry.run == "s"])["cost_usd"] is None
    assert receipts.totals([])["cost_usd"] == 0


def test_groups(ledger: Ledger) -> None:
    rows = receipts.by_group(receipts.lines(ledger), ["user", "market"])
    assert [(row["user"], row["market"], row["cost_usd"]) for row in rows] == [
        ("ann", "on-demand", 10.0),
        ("ann", "spot", 5.0),
        ("bob", "on-demand", None),
    ]
    places = receipts.by_group(receipts.lines(ledger), ["place"])
    assert [(row["place"], row["cost_usd"]) for row in places] == [("aws", 15.0), ("gcp", None)]
    with pytest.raises(UserError, match="did you mean 'family'"):
        receipts.by_group([], ["familly"])


def test_attempts_say_how_they_ended(ledger: Ledger) -> None:
    rows = receipts.attempts(receipts.lines(ledger), T + HOUR_MS // 4)
    assert [row["state"] for row in rows] == ["open", "open", "settled"]
    assert [row["cost_usd"] for row in rows] == [5.0, None, 10.0]
    rows = receipts.attempts(receipts.lines(ledger), T + HOUR_MS)
    assert rows[0]["state"] == "to the end of its lease"


@pytest.fixture
def told(store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStore:
    """The store with the journal of the spot attempt, which was lost at minute 30."""
    minute = 60.0
    times = iter([T / 1000 + x * minute for x in (3, 6, 12, 18, 18.1)])
    monkeypatch.setattr("launcher.lineage.journal.time.time", lambda: next(times))
    journal = Journal(tmp_path / "1.jsonl")
    journal.append("attempt_started", attempt=1, run={})
    for step in (1, 2):
        speed = {"key": "tokens_per_second", "value": 1e6, "step": step}
        journal.append("metrics", points=[speed, {"key": "loss", "value": 3.0 / step, "step": step}])
    journal.append("checkpoint", step=2, uri="x", bytes=1, seconds=1)
    store.put_bytes("runs/r/journal/1.jsonl", (tmp_path / "1.jsonl").read_bytes())
    return store


def test_waste_is_set_up_and_work_after_the_last_checkpoint(told: FileStore, ledger: Ledger) -> None:
    found = [line for line in receipts.lines(ledger) if line.entry.key == "r-1"]
    assert receipts.waste(told, found) == {
        "setup_usd": 1.0,  # six minutes at ten dollars an hour
        "lost_work_usd": 2.0,  # from minute 18 to 30
        "usd_per_billion_tokens": round(5 / (1e6 * 360) * 1e9, 4),
    }
    both = [line for line in receipts.lines(ledger) if line.entry.run == "r"]
    assert receipts.waste(told, both) == {
        "setup_usd": 11.0,  # and an hour of an attempt that left no journal
        "lost_work_usd": 2.0,
        "usd_per_billion_tokens": round(15 / (1e6 * 360) * 1e9, 4),
    }
    every = receipts.waste(told, receipts.lines(ledger))
    assert set(every.values()) == {None}, "the price of one is unknown, and unknown is not 0"


def test_tokens_that_were_lost_make_the_others_dearer(told: FileStore, tmp_path: Path) -> None:
    """The attempt went on for another eleven minutes without a checkpoint, and then was lost."""
    speed = {"key": "tokens_per_second", "value": 1e6, "step": 9}
    lost = json.dumps({"seq": 5, "type": "metrics", "ts": T / 1000 + 29 * 60, "points": [speed]})
    old = (tmp_path / "1.jsonl").read_text()
    told.put_bytes("runs/r/journal/1.jsonl", f"{old}{lost}\n".encode())
    found = [line for line in receipts.lines(open_ledger(told)) if line.entry.key == "r-1"]
    # From minute 6 to the checkpoint of minute 18.
    assert receipts.waste(told, found)["usd_per_billion_tokens"] == round(5 / (1e6 * 720) * 1e9, 4)


def test_a_trainer_that_counts_its_tokens_is_believed(told: FileStore, tmp_path: Path) -> None:
    """Up to the last step that was kept, however long it paused."""
    found = [line for line in receipts.lines(open_ledger(told)) if line.entry.key == "r-1"]
    old = (tmp_path / "1.jsonl").read_text()
    for seq, step, tokens, want in ((5, 2, 4e8, 4e8), (6, 9, 9e8, 4e8)):
        count = {"key": "total_tokens", "value": tokens, "step": step}
        more = json.dumps({"seq": seq, "type": "metrics", "ts": T / 1000 + 29 * 60, "points": [count]})
        old += f"{more}\n"
        told.put_bytes("runs/r/journal/1.jsonl", old.encode())
        assert receipts.waste(told, found)["usd_per_billion_tokens"] == round(5 / want * 1e9, 4)


def test_the_receipt_of_a_run_says_where_its_money_went(told: FileStore, ledger: Ledger) -> None:
    run = Run("r", "tiny", "pretrain", "default", "", "aws", "sky", 1, "", "", None, "", "", experiment="e")
    receipt = booking.settle(told, run, State("SUCCEEDED"))
    assert receipt
    first, second = receipt.splitlines()
    assert "cost: $15.00, 2 attempts, 1.50 h, saved $10.00, set-up $11.00, lost work $2.00, " in first
    assert "a billion tokens $41.67" in first
    assert second == "  of it on-demand aws $10.00, spot aws $5.00"
    ledger.change("runs/r", lambda held: account.reserve(held, replace(SPOT, ended=SPOT.until), ANN))
    alone = booking.settle(told, replace(run, experiment=None), State("SUCCEEDED"))
    assert alone
    assert "all of it spot aws (`nemo-sky cost r`)" in alone
    assert len(alone.splitlines()) == 1


def test_saved_against_on_demand_is_known_or_not(ledger: Ledger) -> None:
    spot, unknown, dear = (line.entry for line in receipts.lines(ledger))
    assert receipts.saved_by(spot) == 10_000_000
    assert receipts.saved_by(unknown) is receipts.saved_by(dear) is None
    assert receipts.saved_by(replace(dear, on_demand=dear.price)) == 0
    rows = receipts.attempts(receipts.lines(ledger), T)
    assert [row["saved_usd"] for row in rows] == [10.0, None, None]


def test_an_entry_of_before_on_demand_prices_were_kept_is_read() -> None:
    held = account.reserve(account.Account("e"), SPOT, ANN)
    values = json.loads(held.to_json())
    del values["entries"][0]["on_demand"]
    old = account.Account.from_json(json.dumps(values).encode())
    assert old.entries["r-1"] == replace(SPOT, on_demand=None)
    assert receipts.totals([Line(old.entries["r-1"], ANN, "e")])["saved_usd"] is None


def event(type: str, second: float, **fields: object) -> dict[str, object]:
    return {"type": type, "ts": T / 1000 + second, **fields}


def test_what_went_with_its_last_step_saved_has_lost_nothing() -> None:
    end = T + 60_000
    events = [
        event("attempt_started", 1),
        event("metrics", 5, points=[{"key": "loss", "value": 1.0, "step": 1}]),
        event("metrics", 40, points=[{"key": "loss", "value": 1.0, "step": 9}]),
    ]
    saved, asked = event("checkpoint", 45, step=9), event("attempt_ended", 50, status="budget reached")
    assert receipts.kept_until(events[:1], end) is None
    assert receipts.kept_until([*events, saved, asked], end) == end
    assert receipts.kept_until([*events, saved], end) == T + 45_000, "killed: nobody knows what came after"
    early = event("checkpoint", 20, step=4)
    assert receipts.kept_until([*events, early, asked], end) == T + 20_000
    assert receipts.kept_until([*events, asked], end) == T + 5_000
    done = event("attempt_ended", 50, status="succeeded")
    assert receipts.kept_until([*events, done], end) == end


# The report.


def test_a_story_is_told_from_ledger_and_journal(told: FileStore, ledger: Ledger) -> None:
    spot, unknown, after = story.stays(told, receipts.lines(ledger), T + 3 * HOUR_MS)
    assert (spot.how, spot.begun, spot.checkpoints) == ("lost", T + HOUR_MS // 10, ((T + 18 * 60_000, 2),))
    assert spot.kept == T + 18 * 60_000
    assert [value for _, _, value in spot.loss] == [3.0, 1.5]
    assert (unknown.how, after.how, after.kept) == ("no journal", "no journal", None)
    assert story.stays(told, [spot.line], T + 1)[0].how == "running"
    spending = story.spending(receipts.lines(ledger))
    assert spending[0] == (T, 0)
    assert spending[-1] == (T + 2 * HOUR_MS, 15_000_000), "all that has a price"


def test_the_report_needs_nothing_else_and_adds_up(told: FileStore, ledger: Ledger) -> None:
    odd = '<script>alert(1)</script>&"'
    lines = [Line(replace(line.entry, run=odd), ANN, "e") for line in receipts.lines(ledger)[:1]]
    priced = [line for line in receipts.lines(ledger) if line.entry.price]
    stays = story.stays(told, priced, T + 3 * HOUR_MS) + [story.Stay(line, "lost") for line in lines]
    facts = {**receipts.totals(priced), "budget_usd": 20.0}
    text = page.page(odd, stays, facts, receipts.attempts([*priced, *lines], T), T)
    assert "<script" not in text
    assert not re.search(r"(src|href)=|url\(|@import|<link", text)
    assert set(re.findall(r"https?://[^\"' <]+", text)) == {"http://www.w3.org/2000/svg"}
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) == 3
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert "budget $20.00" in text
    assert ">15<" in text
    assert "checkpoint 2" in text


def test_a_report_without_a_price_or_a_loss_says_so(ledger: Ledger, store: FileStore) -> None:
    free = [line for line in receipts.lines(ledger) if line.entry.price is None]
    stays = story.stays(store, free, T + 3 * HOUR_MS)
    text = page.page("s", stays, receipts.totals(free), receipts.attempts(free, T), T)
    assert "no attempt has a price" in text
    assert "no run with a price has reported a loss" in text
    assert "cost, $<b>unknown</b>" in text


@given(st.lists(st.floats(-1e9, 1e9).filter(lambda x: x == 0 or abs(x) > 1e-9), max_size=5), st.booleans())
def test_an_axis_holds_its_values(values: list[float], zero: bool) -> None:
    axis = svg.numbers(values, str, zero=zero)
    slack = 1e-6
    assert all(-slack <= axis.at(value) <= 1 + slack for value in values)
    assert 2 <= len(axis.ticks) <= 12
    assert not zero or axis.low <= 0


@given(st.integers(0, 4 * 10**12), st.integers(0, 10**12))
def test_a_time_axis_has_a_few_ticks_inside(low: int, span: int) -> None:
    axis = svg.times(low, low + span)
    assert len(axis.ticks) <= 9
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)


def test_many_points_are_thinned_from_end_to_end() -> None:
    points = [(n, n, 1.0) for n in range(5000)]
    kept = page.thin(points)
    assert (len(kept), kept[0], kept[-1]) == (600, points[0], points[-1])
    assert page.thin(points[:10]) == points[:10]


def test_the_command(store: FileStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nemo-sky.yaml").write_text("artifacts: store\n")

    def cost(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["--project", str(tmp_path), "cost", *words])
        printed = capsys.readouterr()
        return printed.out if not ended.value.code else printed.err

    facts = json.loads(cost("--experiment", "e", "--json"))
    assert (facts["total"]["cost_usd"], facts["total"]["budget_usd"], facts["total"]["left_usd"]) == (
        15,
        20,
        5,
    )
    assert [row["attempt"] for row in facts["rows"]] == [1, 2]
    assert "15.000000" in cost()
    assert (
        cost("--by", "cloud", "--csv").splitlines()[0]
        == "cloud,runs,attempts,hours,cost_usd,unknown_price,saved_usd"
    )
    assert json.loads(cost("r", "--json"))["total"]["budget_usd"] is None
    assert "names no run" in cost("x")
    assert "did you mean" not in cost("--experiment", "zzz")
    assert "no experiment 'f' in the ledger" in cost("--experiment", "f")
    assert "add --experiment NAME" in cost("--html", str(tmp_path / "r.html"))
    cost("--experiment", "e", "--html", str(tmp_path / "r.html"), "--plot", str(tmp_path / "r.svg"))
    assert "<title>experiment e</title>" in (tmp_path / "r.html").read_text()
    assert "<svg" in (tmp_path / "r.svg").read_text()
    assert "is not a duration" in cost("--since", "30")
    assert json.loads(cost("--since", "30d", "--json"))["rows"] is not None


def test_a_price_that_nobody_knew_is_said_afterwards_and_its_account_can_be_capped(
    store: FileStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nemo-sky.yaml").write_text("artifacts: store\n")
    ledger = open_ledger(store)
    unknown = Entry("u-1", "u", None, T, T + HOUR_MS, nodes=2, ended=T + HOUR_MS)
    ledger.change("experiments/e", lambda held: account.reserve(replace(held, budgets=()), unknown, BOB))
    ledger.change("experiments/e", lambda held: account.set_budget(held, None, 30_000_000, "ann", T))
    new = replace(unknown, key="v-1", run="v", price=1_000_000)
    with pytest.raises(Refused, match=r"what run u has cost.*\n.*nemo-sky cost u --price"):
        account.reserve(ledger.read("experiments/e"), new, BOB)

    def cost(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["--project", str(tmp_path), "cost", *words])
        printed = capsys.readouterr()
        return printed.out if not ended.value.code else printed.err

    assert "RUN --price" in cost("--price", "2")
    facts = json.loads(cost("u", "--price", "$2.50", "--json"))
    assert (facts["total"]["cost_usd"], facts["total"]["unknown_price"]) == (5, 0)
    assert (facts["rows"][0]["price_per_hour"], facts["rows"][0]["saved_usd"]) == (5, 0)
    assert "price of its launch, which stays" in cost("u", "--price", "0")
    held = ledger.read("experiments/e")
    assert account.reserve(held, new, BOB).committed() == 21_000_000


def test_what_ran_since_then_is_shown_of_runs_that_are_found_whenever_they_began(
    store: FileStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nemo-sky.yaml").write_text("artifacts: store\n")
    now = now_ms()
    running = Entry("long-1", "long", 10_000_000, now - 48 * HOUR_MS, now + HOUR_MS, attempt=1)
    gone = Entry("long-0", "long", 10_000_000, now - 90 * HOUR_MS, now - 60 * HOUR_MS, attempt=0)
    held = account.reserve(account.reserve(account.Account(), gone, ANN), running, ANN)
    open_ledger(store).change("runs/long", lambda _: held)
    old = Entry("old-1", "old", 10_000_000, now - 90 * HOUR_MS, now - 60 * HOUR_MS, attempt=1)
    open_ledger(store).change("experiments/past", lambda held: account.reserve(held, old, ANN))

    def rows(*words: str) -> list[dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            main(["--project", str(tmp_path), "cost", *words, "--since", "1h", "--json"])
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        found: list[dict[str, Any]] = json.loads(printed.out)["rows"]
        return found

    assert [row["attempt"] for row in rows("long")] == [1], "it began two days ago and runs"
    assert rows("--experiment", "past") == []
    for file, said in (
        ("none/report.html", "there is no folder"),
        ("report.html", "nothing ran in the last"),
    ):
        words = ("old", "--since", "1h", "--html", str(tmp_path / file))
        with pytest.raises(SystemExit):
            main(["--project", str(tmp_path), "cost", *words])
        assert said in capsys.readouterr().err
