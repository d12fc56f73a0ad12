"""Receipts: sums that add up, groups, and what the journals say was wasted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.artifacts.store import FileStore
from launcher.cli.main import main
from launcher.errors import UserError
from launcher.lineage.journal import Journal
from launcher.money import account, receipts
from launcher.money.account import HOUR_MS, About, Entry
from launcher.money.ledger import Ledger, open_ledger

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
    assert len(receipts.lines(ledger, since=T + HOUR_MS)) == 1


def test_groups(ledger: Ledger) -> None:
    rows = receipts.by_group(receipts.lines(ledger), ["user", "market"])
    assert [(row["user"], row["market"], row["cost_usd"]) for row in rows] == [
        ("ann", "on-demand", 10.0),
        ("ann", "spot", 5.0),
        ("bob", "on-demand", None),
    ]
    with pytest.raises(UserError, match="did you mean 'family'"):
        receipts.by_group([], ["familly"])


def test_attempts_say_how_they_ended(ledger: Ledger) -> None:
    rows = receipts.attempts(receipts.lines(ledger), T + HOUR_MS // 4)
    assert [row["state"] for row in rows] == ["open", "open", "settled"]
    assert [row["cost_usd"] for row in rows] == [5.0, None, 10.0]
    rows = receipts.attempts(receipts.lines(ledger), T + HOUR_MS)
    assert rows[0]["state"] == "to the end of its lease"


def test_waste_is_set_up_and_work_after_the_last_checkpoint(
    store: FileStore, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minute = 60.0
    times = iter([T / 1000 + x * minute for x in (3, 6, 12, 18, 18.1)])
    monkeypatch.setattr("launcher.lineage.journal.time.time", lambda: next(times))
    journal = Journal(tmp_path / "1.jsonl")
    journal.append("attempt_started", attempt=1, run={})
    journal.append("metrics", points=[{"key": "tokens_per_second", "value": 1e6, "step": 1}])
    journal.append("metrics", points=[{"key": "tokens_per_second", "value": 1e6, "step": 2}])
    journal.append("checkpoint", step=2, uri="x", bytes=1, seconds=1)
    store.put_bytes("runs/r/journal/1.jsonl", (tmp_path / "1.jsonl").read_bytes())
    found = [line for line in receipts.lines(ledger) if line.entry.key == "r-1"]
    assert receipts.waste(store, found) == {
        "setup_usd": 1.0,  # six minutes at ten dollars an hour
        "lost_work_usd": 2.0,  # from minute 18 to 30
        "usd_per_billion_tokens": round(5 / (1e6 * 360) * 1e9, 4),
    }


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
    assert "is not a duration" in cost("--since", "30")
    assert json.loads(cost("--since", "30d", "--json"))["rows"] is not None
