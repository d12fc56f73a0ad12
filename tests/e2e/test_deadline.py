"""What a launch is expected to take, at the gate, and its deadline while it runs: by the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.money.amounts import parse_dollars
from tests.rig import stage_of_trainer

ROOT = Path(__file__).parents[2]
# A hundred steps of a tenth of a second, at ten cents a second.
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
sys.argv = [sys.argv[0], "100", "sleep=0.1", "save=1000"]
"""
FILES = {
    "nemo-sky.yaml": "artifacts: store\ntracking: sqlite:///ml.db\nmoney: {check_every: 1s, setup: 3s}\n",
    "clusters/local.yaml": "backend: local\npython: current\ncontainers: false\n",
    "clusters/priced.yaml": 'extends: local\nprice_per_hour: 360\nenv: {NEMO_SKY_GRACE_S: "2"}\n',
    "recipes/demo/train/config/default.yaml": "train: {train_iters: 100}\n",
}
LEASE_S = 3 + 1 + 4  # set-up, a check, a save
KEPT = 0.4  # dollars for the save at its end


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, text in {**FILES, "recipes/demo/train/train.py": stage_of_trainer(HEAD)}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def sky(place: Path, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``nemo-sky WORDS`` in the project."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NEMO_SKY_", "AWS_"))}
    return subprocess.run(
        [sys.executable, "-m", "launcher.cli.main", "--project", str(place), *words],
        cwd=place,
        env={**kept, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=180,
    )


def launch(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return sky(place, "launch", "demo", "train", "--cloud", "priced", *words)


def shown(place: Path) -> dict[str, Any]:
    (run,) = json.loads(sky(place, "runs", "list", "--json").stdout)
    facts: dict[str, Any] = json.loads(sky(place, "runs", "show", run["run_id"], "--json").stdout)
    return facts


def test_what_is_expected_not_to_fit_is_refused_and_starts_nothing(place: Path) -> None:
    dear = launch(place, "--budget", "50", "--work", "20m")
    assert dear.returncode == 3, dear.stderr
    assert "the budget of run demo/train is $50.00, of which $0.00 is spent" in dear.stderr
    short = re.search(r"\$(\S+) more is \$(\S+) too much", dear.stderr)
    assert short
    needed, over = map(parse_dollars, short.groups())
    assert needed == pytest.approx(120 + KEPT, rel=0.01)
    assert over == pytest.approx(needed - 50)
    assert f"--budget {needed:.2f} would do" in dear.stderr

    late = launch(place, "--deadline", "15m", "--work", "20m")
    assert late.returncode == 3
    assert re.search(r"expected to take 20m\S* where it is fastest \(priced\), 5m\S* more", late.stderr)
    soon = launch(place, "--deadline", "5s")
    assert f"is 3s shorter than set-up, one check and a save may take ({LEASE_S}s)" in soon.stderr
    assert sky(place, "runs", "list", "--json").stdout.strip() == "[]"
    assert json.loads(sky(place, "cost", "--json").stdout)["rows"] == []


def test_a_deadline_ends_it_with_a_checkpoint_and_the_rest_goes_on(place: Path) -> None:
    ended = launch(place, "--deadline", f"{LEASE_S + 5}s", "--budget", "60")
    assert ended.returncode == 5, ended.stdout + ended.stderr
    assert "stopped: demo/train reached its deadline" in ended.stderr
    assert "expected: unknown (no earlier run of this config" in ended.stderr, (
        "nobody knows, and that is said"
    )
    receipt = re.search(r"cost: \$(\S+) of \$60.00, 1 attempt, \S+ h, set-up \$\S+ ", ended.stderr)
    assert receipt, ended.stderr
    facts = shown(place)
    assert parse_dollars(receipt[1]) == pytest.approx(facts["cost_usd"], abs=0.01)
    assert facts["status"] == "DEADLINE_REACHED"
    (first,) = facts["attempt_list"]
    assert first["status"] == "deadline reached"
    (step,) = first["checkpoints"]
    assert 0 < step < 100
    assert first["hours"] * 3600 <= LEASE_S + 5, "its nodes are gone by then"

    # What is left is held against what is left of the budget.
    left = 1 - step / 100
    half = facts["cost_usd"] + 30 * left
    refused = launch(place, "--budget", f"{half:.2f}", "--work", "10m")
    assert refused.returncode == 3, refused.stderr
    short = re.search(r"of which \$(\S+) is spent or reserved: \$(\S+) more", refused.stderr)
    assert short
    assert parse_dollars(short[1]) == pytest.approx(facts["cost_usd"], abs=0.01)
    assert parse_dollars(short[2]) == pytest.approx(60 * left + KEPT, rel=0.01, abs=0.02)
    assert f"{left:.0%} of it is left" in refused.stderr

    done = launch(place, "--budget", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    facts = shown(place)
    assert [attempt["status"] for attempt in facts["attempt_list"]] == ["deadline reached", "succeeded"]
    assert facts["attempt_list"][1]["restored_from"] == step

    report = place / "report.html"
    assert sky(place, "cost", facts["run_id"], "--html", str(report)).returncode == 0
    text = report.read_text()
    assert "attempt 1, on-demand, deadline reached, $" in text
    assert "attempt 2, on-demand, succeeded, $" in text
    assert "loss" in text
    assert "has reported a loss" not in text, "it is drawn"

    # From now on an earlier run says how long it takes.
    longer = launch(place, "--budget", "60", "train.train_iters=10000")
    assert longer.returncode == 3, longer.stderr
    assert re.search(
        r"where it costs least: .* at priced, and \$0.40 that it must have left .*; "
        r"run \S+ took \S+ h for 100 of 10,000 steps",
        longer.stderr,
    )


def test_all_stages_have_one_deadline(place: Path) -> None:
    """From the launch on, and not from where each begins."""
    for stage in ("one", "two"):
        folder = place / "recipes" / "pair" / stage
        (folder / "config").mkdir(parents=True)
        (folder / "config" / "default.yaml").write_text("x: 1\n")
        head = HEAD.replace("demo/train", f"pair/{stage}").replace("demo-model", f"pair-{stage}")
        (folder / "train.py").write_text(stage_of_trainer(head.replace('"100"', '"5"')))
    done = sky(place, "launch", "pair", "all", "--cloud", "priced", "--deadline", "10m")
    assert done.returncode == 0, done.stdout + done.stderr

    def ends() -> list[int]:
        """The deadlines of the two newest runs, of stage one and of two."""
        paths = (max(place.glob(f".nemo-sky/runs/pair-{name}-*/job/job.yaml")) for name in ("one", "two"))
        return [yaml.safe_load(path.read_text())["money"]["deadline"] for path in paths]

    first, second = ends()
    assert first == second, "how long they take nobody knows"
    again = sky(
        place, "launch", "pair", "all", "--cloud", "priced", "--deadline", "10m", "one.x=2", "two.x=2"
    )
    assert again.returncode == 0, again.stdout + again.stderr
    one, two = ends()
    assert first < one < two < one + 60_000, "the first leaves what the second took before"
