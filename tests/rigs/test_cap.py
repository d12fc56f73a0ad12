"""A small budget on each rig: the run stops at its cap with a checkpoint, and more money finishes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.rigs.aws.rig import AwsRig
from tests.rigs.launching import PACED, Launches, aws_project, capped, eventually, launching, paced_loss
from tests.rigs.slurm import SlurmRig

CHECK_S, SETUP_S, TEARDOWN_S = 10, 75, 60
MONEY = f"money: {{check_every: {CHECK_S}s, setup: {SETUP_S}s, teardown: {TEARDOWN_S}s}}\n"
# What the budget pays for: the first lease, a save of 25 s in it, and two minutes more, most of which a busy
# machine takes to provision. What is left is not enough for the training, which takes 210 s.
PAID_S = CHECK_S + SETUP_S + TEARDOWN_S + 25 + 120
STEPS = 2100
# As in test_fuse.py: a lease from the last renewal to the fuse; a look of the skylet, and the instances' end.
LEASE_S, SKYLET_S = 45.0, 120.0
WORDS = (*PACED, f"steps={STEPS}", "sleep=0.1", "save=100")


def test_on_slurm(slurm: SlurmRig, tmp_path: Path) -> None:
    with launching(slurm.home, slurm.profile, tmp_path / "project") as (usual, _):
        stops_and_goes_on(capped(usual.project, slurm.profile, MONEY))


def test_on_aws(aws: AwsRig, tmp_path: Path) -> None:
    stops_and_goes_on(capped(aws_project(aws, tmp_path / "project"), aws.profile, MONEY))
    assert not aws.instances()


def test_on_aws_without_a_store(aws: AwsRig, tmp_path: Path) -> None:
    """Nobody can say any more what was spent: the run goes as far as it was granted, and its instance too."""
    on = capped(aws_project(aws, tmp_path / "project"), aws.profile, MONEY)
    words = (*PACED, "steps=1200", "sleep=0.1", "save=100", "--on-demand", "--budget", "20")
    run_id = on.detach(*words)
    on.follow(run_id)
    (before,) = on.show(run_id)["attempt_list"]
    aws.silence(True)
    try:
        assert eventually(lambda: not aws.instances(), LEASE_S + SKYLET_S), "it outlived what it was granted"
    finally:
        aws.silence(False)
    ended = on.show(run_id)
    assert ended["status"] not in ("RUNNING", "SUCCEEDED")
    assert 0 < ended["cost_usd"] <= 20
    done = on.launch(*words)
    assert (done["run_id"], done["metadata"]["step"]) == (run_id, 1200)
    first, second = on.show(run_id)["attempt_list"]
    assert first["checkpoints"][-1] >= before["checkpoints"][-1]
    assert second["restored_from"] >= before["checkpoints"][-1]
    assert done["metadata"]["final_loss"] == pytest.approx(paced_loss(1200), abs=1e-9)


def test_on_aws_a_recovery_that_nobody_paid_for_keeps_the_cap(aws: AwsRig, tmp_path: Path) -> None:
    """SkyPilot's FAILOVER asks nobody before it launches again; the agent on the new instance ends the job,
    and that is not retried."""
    on = capped(aws_project(aws, tmp_path / "project"), aws.profile, MONEY)
    words = (*PACED, "steps=1000000", "sleep=0.1", "save=100", "--spot", "--retries", "3")
    refused = on.launch(*words, "--budget", "0.000001", code=3)["said"]
    (least,) = re.findall(r"--budget ([\d.]+) would do", refused)
    budget = 1.5 * float(least)  # a busy machine is slow to provision
    run_id = on.detach(*words, "--budget", f"{budget:.6f}")
    on.follow_into_training(run_id)
    (spot,) = aws.instances()
    aws.preempt(spot.id, notice=False)
    ended = on.finish(run_id, 600)
    assert ended["status"] == "BUDGET_REACHED"
    assert [one["status"] for one in ended["attempt_list"]] == ["no end recorded", "budget reached"]
    rows = json.loads(on.project.run("cost", run_id, "--json").stdout)["rows"]
    assert ended["cost_usd"] <= budget + max(row["price_per_hour"] for row in rows) * CHECK_S / 3600
    assert eventually(lambda: not aws.instances(), 120), "an instance was left running"


def stops_and_goes_on(on: Launches) -> None:
    planned = on.project.run("plan", *WORDS, "--cluster", str(on.profile), "--json")
    rows = json.loads(planned.stdout)["rows"]
    price = max(row["price_per_hour"] for row in rows if row["market"] != "spot")
    budget = price * PAID_S / 3600
    said = on.launch(*WORDS, "--on-demand", "--budget", f"{budget:.6f}", code=5)["said"]
    assert "stopped: demo/train reached its budget" in said
    assert re.search(r"^  cost: \$[\d.]+ of \$", said, re.M), said
    (run_id,) = re.findall(r"^  run (\S+) on ", said, re.M)
    shown = on.show(run_id)
    assert shown["status"] == "BUDGET_REACHED"
    (first,) = shown["attempt_list"]
    assert first["status"] == "budget reached"
    assert 0 < first["checkpoints"][-1] < STEPS
    assert 0 < shown["cost_usd"] <= budget + price * CHECK_S / 3600

    done = on.launch(*WORDS, "--on-demand", "--budget", f"{20 * budget:.6f}")
    assert (done["run_id"], done["metadata"]["step"]) == (run_id, STEPS)
    attempts = on.show(run_id)["attempt_list"]
    assert [attempt["status"] for attempt in attempts] == ["budget reached", "succeeded"]
    assert attempts[1]["restored_from"] == first["checkpoints"][-1]
    spent = on.show(run_id)["cost_usd"]
    assert shown["cost_usd"] < spent < 20 * budget
    assert on.model(run_id, "demo-model")["producer"]["cost_usd"] == pytest.approx(spent, rel=0.5)
