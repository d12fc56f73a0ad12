"""Sweeps for real: killed and taken up again, the weak stopped, and never past the budget."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launcher import launch, plan, project, runs
from launcher.errors import Refused, RunFailed, UserError
from launcher.lineage.mlflow_client import connected
from launcher.money import caps
from launcher.money.account import MICROS, Account
from launcher.money.ledger import open_ledger
from launcher.sweep import run, space
from launcher.sweep.report import Result
from launcher.sweep.trials import Sweep
from tests.e2e.conftest import Project, make_project

PRICED = 'extends: local\nprice_per_hour: 360\nenv: {{NEMO_SKY_GRACE_S: "{grace}"}}\n'

TINY = ("sweep", "tiny", "pretrain", "-c", "smoke", "--cloud", "priced", "--space", "lr.yaml")
TINY_BUDGET = 60.0
TINY_SPACE = """\
seed: 2
resource: {key: train.steps, min: 10, max: 40}
space:
  train.lr: {low: 1e-3, high: 1e-1, log: true}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("sweep") / "project")
    (made.root / "clusters" / "priced.yaml").write_text(PRICED.format(grace=10))
    (made.root / "lr.yaml").write_text(TINY_SPACE)
    made.run("launch", "tiny", "data/prep/pretrain", "-c", "smoke", "--cloud", "local")
    return made


def test_killed_in_the_middle_and_taken_up_again(tiny: Project) -> None:
    words = [*TINY, "--budget", f"{TINY_BUDGET:g}", "--trials", "3", "--json"]
    words += ["train.min_lr=0", "train.eval_interval=5"]
    first = tiny.start(*words)
    assert first.stderr
    assert any("trial 1: train.lr=" in line for line in first.stderr), "it ended before its second trial"
    found = project.read(tiny.root)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = pretraining(found)
    held = account(found, "tiny-pretrain-lr")
    assert held.budget == TINY_BUDGET * MICROS, "the ledger has the budget from the first moment on"
    assert len(before) in (1, 2), "killed before or after the second run was written down"

    done = tiny.run(*words)
    result = json.loads(done.stdout)
    after = pretraining(found)
    assert {item.run_id for item in before} <= {item.run_id for item in after}
    assert [row["run_id"] for row in result["rows"]] == [item.run_id for item in reversed(after)]
    assert len(after) == 3, "no trial was launched twice"
    held = account(found, "tiny-pretrain-lr")
    assert [len(held.of(item.run_id)) for item in after] == [1, 1, 1], "and none had to begin again"
    assert 0 < held.committed() <= TINY_BUDGET * MICROS
    assert result["spent_usd"] == held.committed() / MICROS
    assert sum(row["cost_usd"] for row in result["rows"]) == pytest.approx(result["spent_usd"])

    complete = [row for row in result["rows"] if row["status"] == "complete"]
    assert result["best"] == min(complete, key=lambda row: row["value"])
    folder = tiny.root / ".nemo-sky" / "sweeps" / "tiny-pretrain-lr"
    assert (folder / "chart.png").stat().st_size > 5000
    again = tiny.run("launch", "tiny", "pretrain", "--cloud", "local", "-c", f"{folder}/best.yaml", "--json")
    [outcome] = json.loads(again.stdout)
    assert (outcome["status"], outcome["run_id"]) == ("skipped", result["best"]["run_id"])
    assert outcome["metadata"]["valid_loss"] == pytest.approx(result["best"]["value"])
    nested(found, "tiny-pretrain-lr", {row["run_id"] for row in result["rows"]})

    table = tiny.run(*[word for word in words if word != "--json"]).stdout
    assert "3 trials" in table
    assert "all 3 trials are done" in table
    assert len(pretraining(found)) == 3


def pretraining(found: project.Project) -> list[runs.Run]:
    return [item for item in runs.every(found.runs) if item.stage == "pretrain"]


def account(found: project.Project, name: str) -> Account:
    return open_ledger(launch.open_store(found)).read(f"experiments/{name}")


def nested(found: project.Project, name: str, trials: set[str]) -> None:
    """MLflow shows the trials as children of the sweep, and nothing else."""
    import mlflow

    client = mlflow.MlflowClient(found.tracking)
    home = client.get_experiment_by_name(name)
    assert home
    every = client.search_runs([home.experiment_id])
    [parent] = [item for item in every if item.data.tags["mlflow.runName"] == f"sweep {name}"]
    assert parent.info.status == "FINISHED"
    children = [i for i in every if i.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {item.data.tags["nemo_sky.run_id"] for item in children} == trials
    assert sorted(item.data.tags["nemo_sky.trial"] for item in children) == ["0", "1", "2"]


# A trainer of seconds: a loss with its best at x = 0.5, which falls while it trains.
SCRIPT = """# /// script
# [tool.runspec]
# name = "demo/train"
# [tool.runspec.run]
# launch = "direct"
# [tool.runspec.resources]
# gpus_per_node = 0
# [tool.nemo_sky]
# checkpoint_dir = "checkpoints"
# ///
import json, os, signal, sys, time
from pathlib import Path
import yaml

config = yaml.safe_load(Path(os.environ["NEMO_SKY_CONFIG"]).read_text())
folder = Path(os.environ["NEMO_SKY_CHECKPOINTS"])
tracker = folder / "latest_checkpointed_iteration.txt"
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
if config["x"] > config["breaks_above"]:
    sys.exit(f"x is {config['x']}, which breaks")
step = int(tracker.read_text()) if tracker.exists() else 0
while step < config["steps"]:
    step += 1
    time.sleep(config["pause"])
    with Path(os.environ["NEMO_SKY_METRICS"]).open("a") as file:
        loss = abs(config["x"] - 0.5) + 10 / (step + 10)
        file.write(json.dumps({"step": step, "valid_loss": loss}) + "\\n")
    if stopping:
        (folder / f"iter_{step:07d}").mkdir(parents=True)
        (folder / f"iter_{step:07d}" / "state").write_text(str(step))
        tracker.write_text(str(step))
        sys.exit(0)
"""
CONFIG = "x: 0.1\nsteps: 10\npause: 0.01\nbreaks_above: 9\ncheckpoints: ${node:checkpoints}\n"
X = "seed: 4\nspace:\n  x: {low: 0, high: 1}\n"
# Ten cents a second. The first lease: 12 s of set-up, 20 s to the first check, 8 s to save. A check
# that a busy machine answers later than that ends the attempt.
CHECK_USD = 2.0


@dataclass
class Place:
    """A project with the demo trainer, and what its sweeps said."""

    project: project.Project
    said: list[str] = field(default_factory=list)

    def sweep(
        self,
        text: str,
        budget: str,
        *overrides: str,
        trials: int | None = None,
        cluster: str = "priced",
        parallel: int = 1,
        args: tuple[str, ...] = (),
    ) -> Result:
        self.said.clear()
        path = self.project.root / "space.yaml"
        path.write_text(text)
        given = caps.from_flags(budget)
        assert given.budget
        limits = caps.Caps(experiment="s", experiment_budget=given.budget)
        request = plan.Request(
            "demo",
            "train",
            cluster=cluster,
            overrides=overrides,
            caps=limits,
            command="test",
            script_args=args,
        )
        asked = Sweep("s", request, space.read(path), given.budget, trials, parallel)
        return run.sweep(asked, self.project, self.said.append)

    def account(self) -> Account:
        return account(self.project, "s")

    def every(self) -> list[runs.Run]:
        return runs.every(self.project.runs)


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes longer to make its database than a sweep takes here."""
    file = tmp_path_factory.mktemp("mlflow") / "ml.db"
    with connected(f"sqlite:///{file}") as client:
        client.search_experiments()
    return file


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow: Path) -> Place:
    shutil.copy(empty_mlflow, tmp_path / "ml.db")
    for name in ("NEMO_SKY_ARTIFACTS", "NEMO_SKY_TRACKING", "AWS_ENDPOINT_URL", "NEMO_SKY_FAKE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nemo-sky.yaml").write_text(
        "artifacts: store\ntracking: sqlite:///ml.db\nmoney: {check_every: 20s, setup: 12s}\n"
    )
    (tmp_path / "clusters").mkdir()
    local = "backend: local\npython: current\ncontainers: false\n"
    (tmp_path / "clusters" / "local.yaml").write_text(local)
    (tmp_path / "clusters" / "free.yaml").write_text(f"{local}price_per_hour: 0\n")
    (tmp_path / "clusters" / "priced.yaml").write_text(PRICED.format(grace=4))
    folder = tmp_path / "recipes" / "demo" / "train"
    (folder / "config").mkdir(parents=True)
    (folder / "train.py").write_text(SCRIPT)
    (folder / "config" / "default.yaml").write_text(CONFIG)
    return Place(project.read(tmp_path))


def test_it_goes_on_while_the_budget_pays_and_more_money_goes_on_from_there(place: Place) -> None:
    first = place.sweep(X, "$8")
    held, launched = place.account(), len(place.every())
    assert 0 < held.committed() <= 8 * MICROS
    assert launched
    assert "is left" in first.why or "does not pay" in first.why

    more = place.sweep(X, "$16")
    held = place.account()
    assert [item.amount / MICROS for item in held.budgets] == [8, 16]
    assert held.committed() <= 16 * MICROS
    done = [row for row in first.rows if row["status"] == "complete"]
    assert [row for row in more.rows if row["trial"] in {row["trial"] for row in done}] == done
    assert sum(row["status"] == "complete" for row in more.rows) > len(done)
    assert [len(held.of(row["run_id"])) for row in done] == [1] * len(done), "nothing was done again"

    with pytest.raises(Refused, match="below the"):
        place.sweep(X, "$0.1")
    with pytest.raises(UserError, match="another space"):
        place.sweep("space: {x: {low: 0, high: 2}}", "$60")


def test_a_trial_at_the_budget_is_saved_and_goes_on_with_more(place: Place) -> None:
    slow = ("steps=700", "pause=0.1")
    first = place.sweep(X, "$6", *slow)
    [row] = first.rows
    assert row["status"] == "open"
    assert 0 < row["step"] < 700
    assert place.account().committed() <= (6 + CHECK_USD) * MICROS
    assert any("reached the budget" in line for line in place.said)

    done = place.sweep(X, "$60", *slow, trials=1)
    [after] = done.rows
    assert (after["run_id"], after["status"], after["step"]) == (row["run_id"], "complete", 700)
    [item] = place.every()
    entries = place.account().of(item.run_id)
    assert len(entries) == 2, "a second attempt of the same run"
    assert place.account().committed() <= 60 * MICROS


def test_the_weak_are_stopped_and_what_they_save_is_not_spent(place: Place) -> None:
    text = "resource: {key: steps, min: 10, max: 120, reduction: 2}\n" + X
    result = place.sweep(text, "$60", "pause=0.1", trials=4)
    at_rung = [abs(row["params"]["x"] - 0.5) for row in result.rows]
    stopped = [row for row in result.rows if row["status"] == "stopped"]
    assert len(stopped) + sum(row["status"] == "complete" for row in result.rows) == 4
    assert result.rows[0]["status"] == "complete", "there was nobody to beat it"
    for number, row in enumerate(result.rows[1:], 1):
        if at_rung[number] > max(at_rung[:number]):
            assert row["status"] == "stopped"
            assert 10 <= row["step"] < 120
            assert row["cost_usd"] < result.rows[0]["cost_usd"]
    assert stopped
    assert result.best
    assert result.best["status"] == "complete"


@pytest.mark.parametrize(("budget", "most"), [("$30", 3), ("$6", 2)])
def test_trials_at_once_share_the_budget(place: Place, budget: str, most: int) -> None:
    """Three may run together; their first leases cost $4 each, so that of $6 the next one waits until the one
    before is about to end."""
    result = place.sweep(X, budget, "steps=60", "pause=0.25", trials=4, parallel=3)
    held = place.account()
    assert held.committed() <= (float(budget[1:]) + CHECK_USD) * MICROS
    stays = [(entry.launched, entry.end) for entry in held.entries.values()]
    together = max(sum(begin <= at < end for begin, end in stays) for at, _ in stays)
    assert together == most if most == 3 else together <= most
    assert sum(row["status"] == "complete" for row in result.rows) == (4 if most == 3 else len(stays))
    assert len(place.every()) == len(stays), "no trial was launched twice"


def test_a_config_that_was_made_before_is_not_made_again(place: Place) -> None:
    text = "space: {x: {choices: [0.25, 0.5]}}"
    result = place.sweep(text, "$60", args=("--note", "two words"))
    assert result.launch == (
        "nemo-sky launch demo train --cloud priced -c .nemo-sky/sweeps/s/best.yaml -- --note 'two words'"
    )
    assert not result.published, "that would train it again"
    assert result.why == "every configuration of the space was tried"
    assert result.best
    assert result.best["params"] == {"x": 0.5}
    assert len(place.every()) == 2


def test_what_is_wrong_costs_nothing(place: Place) -> None:
    wrong: list[tuple[str, str, dict[str, Any], str]] = [
        ("space: {y: {low: 0, high: 1}}", "$5", {}, "unknown key 'y'"),
        ("resource: {key: steps, min: 10}\n" + X, "$5", {}, "before it is judged"),
        (X, "$3.9", {}, "too much"),
        (X, "$5", {"cluster": "local"}, "unknown is not 0"),
        (X, "$5", {"cluster": "free"}, "the budget would never end"),
    ]
    for text, budget, more, says in wrong:
        with pytest.raises(UserError, match=says):
            place.sweep(text, budget, **more)
    assert place.every() == []
    assert place.account().entries == {}
    assert len(place.sweep(X, "$5", cluster="free", trials=1).rows) == 1


def test_trials_that_only_fail_end_the_sweep(place: Place) -> None:
    with pytest.raises(RunFailed, match=r"the first 3 trials failed; the last: .*which breaks"):
        place.sweep(X, "$60", "breaks_above=-1")
    assert len(place.every()) == 3


def test_some_may_fail(place: Place) -> None:
    result = place.sweep(X, "$60", "breaks_above=0.95", trials=3)
    assert {row["status"] for row in result.rows} == {"complete", "failed"}
    for row in result.rows:
        assert (row["status"] == "failed") == (row["params"]["x"] > 0.95)


def test_a_metric_that_is_never_logged_ends_it_after_one_trial(place: Place) -> None:
    with pytest.raises(UserError, match="never logged 'valid_los'; did you mean 'valid_loss'") as ended:
        place.sweep("metric: valid_los\n" + X, "$60")
    assert ended.value.where == f"{place.project.root}/space.yaml:1"
    assert len(place.every()) == 1


def test_a_ledger_that_fails_when_a_trial_begins_ends_no_other(place: Place) -> None:
    """It is out of reach for three seconds, from when the second trial is to begin, while the first is on."""
    folder = Path(place.project.artifacts) / "ledger"

    def back() -> None:
        folder.unlink()
        folder.with_name("gone").rename(folder)

    class Said(list[str]):
        def append(self, line: str) -> None:
            super().append(line)
            if line.startswith("trial 1:") and not folder.with_name("gone").exists() and len(self) < 3:
                folder.rename(folder.with_name("gone"))
                folder.symlink_to(folder)
                threading.Timer(3, back).start()

    place.said = Said()
    result = place.sweep(X, "$60", "pause=1.5", trials=2, parallel=2)
    assert [row["status"] for row in result.rows] == ["complete", "complete"], place.said
    [trouble] = [line for line in place.said if line.startswith("no trial can begin now, trying again: ")]
    assert "ledger" in trouble
    assert len(place.every()) == 2


def test_two_processes_do_not_drive_one_sweep(place: Place) -> None:
    folder = run.folder_of(place.project, "s")
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="is running already"):
            place.sweep(X, "$60")
    assert place.every() == []
