"""A run with a budget, from launch to receipt: it stops at the cap with a checkpoint, and goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launcher import history, launch, plan, project, runs
from launcher.errors import BudgetReached, Refused
from launcher.money import account as accounts
from launcher.money import caps
from launcher.money.account import MICROS, About, Account, Entry, money
from launcher.money.ledger import account_name, now_ms, open_ledger
from tests.mlflow_runs import in_mlflow
from tests.rig import stage_of_trainer

HEAD = """# /// script
# [tool.runspec]
# name = "demo/train"
# [tool.runspec.run]
# launch = "direct"
# [tool.runspec.resources]
# gpus_per_node = 0
# [tool.nemo_sky]
# checkpoint_dir = "checkpoints"
# [tool.nemo_sky.output]
# name = "demo-model"
# type = "model"
# ///
import sys
sys.argv = [sys.argv[0], "{steps}", "sleep=0.1", "save=1000"]
"""
# Ten cents a second; the first lease is 20 s of set-up, 2 s to the first check, 8 s to save.
PRICE, FIRST_LEASE = 360, 3.0
CHECK_USD = 0.2
PROJECT = "artifacts: store\ntracking: sqlite:///ml.db\nmoney: {check_every: 2s, setup: 20s}\n"
PROFILE = 'extends: {base}\nprice_per_hour: 360\nenv: {{NEMO_SKY_GRACE_S: "4"}}\n'


@dataclass
class Place:
    """A project, and what launches in it said."""

    project: project.Project
    said: list[str] = field(default_factory=list)

    def launch(self, cluster: str = "priced", **given: str) -> list[launch.Outcome]:
        self.said.clear()
        request = plan.Request(
            "demo", "train", cluster=cluster, caps=caps.from_flags(**given), command="test"
        )
        return launch.launch(request, self.project, self.said.append, self.said.append)

    def newest(self) -> runs.Run:
        return runs.every(self.project.runs)[0]

    def account(self) -> Account:
        run = self.newest()
        store = launch.open_store(self.project)
        return open_ledger(store).read(account_name(run.run_id, run.experiment))

    def shown(self) -> dict[str, Any]:
        return history.show(self.project, self.newest().run_id)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("NEMO_SKY_ARTIFACTS", "NEMO_SKY_TRACKING", "AWS_ENDPOINT_URL", "NEMO_SKY_FAKE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nemo-sky.yaml").write_text(PROJECT)
    (tmp_path / "clusters").mkdir()
    for name, base in (("priced", "local"), ("faked", "fake")):
        (tmp_path / "clusters" / f"{base}.yaml").write_text(
            f"backend: {base}\npython: current\ncontainers: false\n"
        )
        (tmp_path / "clusters" / f"{name}.yaml").write_text(PROFILE.format(base=base))
    folder = tmp_path / "recipes" / "demo" / "train"
    (folder / "config").mkdir(parents=True)
    (folder / "train.py").write_text(stage_of_trainer(HEAD.format(steps=450)))
    (folder / "config" / "default.yaml").write_text("lr: 0.5\n")
    return Place(project.read(tmp_path))


def test_it_stops_at_the_cap_with_a_checkpoint_and_more_money_finishes_it(place: Place) -> None:
    with pytest.raises(BudgetReached, match="reached its budget") as stopped:
        place.launch(budget="$4")
    assert stopped.value.exit_code == 5
    shown = place.shown()
    assert shown["status"] == "BUDGET_REACHED"
    (first,) = shown["attempt_list"]
    assert first["status"] == "budget reached"
    (step,) = first["checkpoints"]
    assert 0 < step < 450, "it was asked to save"
    held, run = place.account(), place.newest()
    spent = held.committed(run.run_id) / MICROS
    assert 2.5 < spent <= 4 + CHECK_USD, "the money was used, and no more"
    assert any(line.startswith(f"  cost: {money(round(spent * MICROS))} of $4.00") for line in place.said)
    assert shown["cost_usd"] == pytest.approx(spent, abs=1e-6), "runs show says what the ledger says"
    tracked, (attempt,) = in_mlflow(place.project.tracking, run.run_id)
    assert (attempt.info.status, attempt.data.tags["status"]) == ("KILLED", "budget reached")
    assert tracked.data.metrics["cost_usd"] == attempt.data.metrics["cost_usd"] == spent

    with pytest.raises(Refused, match="too much") as refused:
        place.launch(budget="4.5")
    enough = re.search(r"--budget ([\d.]+) would do", str(refused.value))
    assert enough
    assert float(enough[1]) == pytest.approx(spent + FIRST_LEASE, abs=0.011), "rounded up to a cent"
    (outcome,) = place.launch(budget="$60")
    assert (outcome.status, outcome.run_id) == ("made", run.run_id), "the fingerprint knows nothing of money"
    assert outcome.output
    assert outcome.output.metadata["step"] == 450
    attempts = place.shown()["attempt_list"]
    assert attempts[1]["restored_from"] == step
    held = place.account()
    assert [budget.amount // MICROS for budget in held.runs[run.run_id].budgets] == [4, 60]
    assert [(e.attempt, e.ended is not None) for e in held.of(run.run_id)] == [(1, True), (2, True)]
    total = held.committed(run.run_id) / MICROS
    assert total > spent
    assert place.shown()["cost_usd"] == pytest.approx(total, abs=1e-6)
    # The nodes cost until they are let go, which a busy machine takes seconds for.
    assert 0.5 * total < outcome.output.producer["cost_usd"] <= total


def test_what_does_not_fit_leaves_no_run_behind(place: Place) -> None:
    with pytest.raises(Refused, match=r"\$3.00 more is \$1.00 too much"):
        place.launch(budget="2")
    with pytest.raises(Refused, match=r"1 node cost \$360.00 per hour"):
        place.launch(max_hourly="100")
    with pytest.raises(Refused, match="unknown is not 0"):
        place.launch(cluster="local", budget="100")
    assert runs.every(place.project.runs) == []


def test_a_launch_that_is_broken_off_holds_no_money(place: Place) -> None:
    def say(line: str) -> None:
        if line.startswith("  run "):
            raise KeyboardInterrupt

    request = plan.Request("demo", "train", cluster="priced", caps=caps.from_flags("$4"), command="test")
    with pytest.raises(KeyboardInterrupt):
        launch.launch(request, place.project, say, say)
    held = place.account()
    assert (len(held.of(None)), held.committed()) == (1, 0)


def test_what_runs_show_says_is_the_ledgers_with_what_no_attempt_took(place: Place) -> None:
    with pytest.raises(BudgetReached):
        place.launch(budget="$4")
    spent, run = place.account().committed(), place.newest()
    lost = Entry("lost", run.run_id, 1_000_000, now_ms() - 7_200_000, now_ms() - 3_600_000)
    about = About("demo", "train", "ann", "priced")
    name = account_name(run.run_id, None)
    ledger = open_ledger(launch.open_store(place.project))
    ledger.change(name, lambda held: accounts.set_budget(held, run.run_id, 9 * MICROS, "ann", 0))
    ledger.change(name, lambda held: accounts.reserve(held, lost, about))
    assert place.shown()["cost_usd"] == pytest.approx((spent + MICROS) / MICROS, abs=1e-9)


def test_a_recovery_is_an_entry_of_its_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are killed in the middle; the fake cloud begins again, and the agent reserves for itself."""
    monkeypatch.setenv("NEMO_SKY_FAKE", "preempt@starts at 0")
    request = plan.Request(
        "demo",
        "train",
        cluster="faked",
        managed=True,
        caps=caps.from_flags("$100", experiment="e"),
        command="test",
    )
    (outcome,) = launch.launch(request, place.project, place.said.append, place.said.append)
    assert outcome.status == "made"
    first, second = place.account().of(outcome.run_id)
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.ended is not None, "given up when the second began"
    assert second.launched == first.end, "waiting counts: never short"
    assert second.ended is not None
    assert place.account().experiment == "e"
    job = (place.project.runs / outcome.run_id / "job" / "job.yaml").read_text()
    assert "experiment: e" in job
    tracked, attempts = in_mlflow(place.project.tracking, outcome.run_id)
    costs = [attempt.data.metrics["cost_usd"] for attempt in attempts]
    assert costs == [first.cost / MICROS, second.cost / MICROS], "of the one that was killed, too"
    assert tracked.data.metrics["cost_usd"] == (first.cost + second.cost) / MICROS
