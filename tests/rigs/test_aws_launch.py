"""`nemo-sky launch` on the emulated AWS through SkyPilot's real provisioner, its store on the same S3."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.rigs.aws.rig import AwsRig
from tests.rigs.launching import (
    LONG,
    PACED,
    REACHED_S,
    SHORT,
    Launches,
    aws_project,
    eventually,
    paced_loss,
    with_profile,
)


@pytest.fixture(scope="module")
def on(aws: AwsRig, tmp_path_factory: pytest.TempPathFactory) -> Launches:
    return Launches(aws_project(aws, tmp_path_factory.mktemp("on-aws") / "project"), aws.profile)


@pytest.fixture(autouse=True)
def nothing_stays(aws: AwsRig) -> Iterator[None]:
    yield
    assert eventually(lambda: not aws.instances(), 120), "an instance was left running"


@pytest.fixture(scope="module")
def whole(on: Launches) -> dict[str, float]:
    """The long run that nothing interrupted, on this machine."""
    done = on.project.run("launch", *LONG, "--cloud", "local", "--json")
    metadata: dict[str, float] = json.loads(done.stdout)[0]["metadata"]
    return metadata


@pytest.mark.ci
def test_on_demand_one_instance_and_two(on: Launches) -> None:
    one = on.launch(*SHORT, "--on-demand")
    two = on.launch(*SHORT, "--nodes", "2", "--force")
    assert two["metadata"]["final_loss"] == pytest.approx(one["metadata"]["final_loss"], abs=1e-3)
    shown = on.show(two["run_id"])
    assert shown["place"].startswith("aws/us-")
    assert shown["price_per_hour"] > 0
    made = on.model(two["run_id"])
    assert (made["producer"]["place"]["cloud"], made["producer"]["place"]["nodes"]) == ("AWS", 2)


def test_a_ray_stage_beside_skypilots_own_ray(on: Launches) -> None:
    """SkyPilot runs jobs by a Ray of its own on these instances: had ours stopped it, the job had failed."""
    done = on.launch("tiny", "data/prep/pretrain", "-c", "smoke", "--nodes", "2", "--on-demand")
    assert "all 2 Ray nodes have joined" in on.project.run("runs", "logs", done["run_id"]).stdout
    assert on.show(done["run_id"])["status"] == "SUCCEEDED"
    shown = json.loads(on.project.run("artifacts", "show", done["output"], "--json").stdout)
    assert shown["producer"]["place"]["nodes"] == 2


def test_followed_and_cancelled(on: Launches, aws: AwsRig) -> None:
    run_id = on.detach(*PACED, "steps=100000", "save=100000", "--on-demand", "--force")
    on.follow_into_training(run_id)
    (active,) = json.loads(on.project.run("queue", "--json").stdout)
    assert (active["run_id"], active["status"]) == (run_id, "RUNNING")
    assert "is cancelled" in on.project.run("runs", "cancel", run_id).stdout
    assert not aws.instances()
    assert json.loads(on.project.run("queue", "--json").stdout) == []
    shown = on.show(run_id)
    (attempt,) = shown["attempt_list"]
    assert (shown["status"], attempt["status"]) == ("CANCELLED", "cancelled")
    assert attempt["checkpoints"], "there was none before it was cancelled"


def test_left_alone_it_gives_its_instance_back(on: Launches, aws: AwsRig) -> None:
    """Detached, and nobody asks for it again: SkyPilot's own skylet takes the cluster down."""
    idle = with_profile(on, "idle", idle_minutes=1)
    run_id = idle.detach(*PACED, "steps=20", "--on-demand", "--force")
    on.await_end(run_id)
    assert eventually(lambda: not aws.instances(), 240), "the instance outlived its minute"
    assert on.show(run_id)["status"] == "SUCCEEDED"


@pytest.mark.ci
def test_spot_two_instances(on: Launches, aws: AwsRig) -> None:
    """A managed job whose two nodes have no filesystem in common."""
    aws.hold(10)
    run_id = on.detach(*SHORT, "--nodes", "2", "--spot", "--force")
    assert eventually(aws.reached, REACHED_S)
    assert [item.spot for item in aws.instances()] == [True, True]
    aws.hold(None)
    shown = on.finish(run_id)
    assert (shown["status"], shown["nodes"], shown["preemptions"]) == ("SUCCEEDED", 2, 0)
    assert on.model(run_id)["producer"]["place"]["nodes"] == 2


@pytest.mark.ci
def test_three_preemptions_each_during_an_upload(on: Launches, aws: AwsRig, whole: dict[str, float]) -> None:
    aws.hold(180)
    run_id = on.detach(*LONG, "--spot", "--force")
    assert eventually(aws.reached, REACHED_S)
    assert on.show(run_id)["price_per_hour"] > 0
    take_away_at(aws, 360, notice=False)
    take_away_at(aws, 540, notice=False)
    take_away_at(aws, None, notice=True)

    shown = on.finish(run_id, 600)
    assert (shown["status"], shown["preemptions"]) == ("SUCCEEDED", 3)
    first, *restored = [attempt["restored_from"] for attempt in shown["attempt_list"]]
    assert first is None
    assert 0 < restored[0] < 180 <= restored[1] < 360 <= restored[2] < 540, "what was half uploaded is unused"
    made = on.model(run_id)
    assert made["metadata"]["final_loss"] == pytest.approx(whole["final_loss"], abs=1e-4)
    up = json.loads(on.project.run("lineage", "show", made["uri"], "--json").stdout)
    assert up["uri"] == made["uri"]


def test_a_notice_is_time_enough_to_save(on: Launches, aws: AwsRig) -> None:
    """It comes while the interval's first save is held back, and long before the second."""
    aws.hold(240)
    run_id = on.detach(*PACED, "steps=600", "sleep=0.1", "save=240", "--spot", "--force")
    assert eventually(aws.reached, REACHED_S)
    (victim,) = aws.instances()
    aws.preempt(victim.id, notice=True, grace_s=40)
    aws.hold(None)
    shown = on.finish(run_id, 600)
    assert (shown["status"], shown["preemptions"]) == ("SUCCEEDED", 1)
    first, second = shown["attempt_list"]
    assert first["status"] == "preempted"
    assert 240 < second["restored_from"] < 600
    assert second["restored_from"] != 480, "the notice's own checkpoint, not one of the interval's"
    made = on.model(run_id, "demo-model")["metadata"]
    assert made["final_loss"] == pytest.approx(paced_loss(600), abs=1e-9)


def take_away_at(aws: AwsRig, then: int | None, *, notice: bool) -> None:
    """Preempt the one instance while it commits the checkpoint that is held back, and hold that of the step
    ``then`` once it is gone."""
    assert eventually(aws.reached, REACHED_S)
    (victim,) = aws.instances()
    aws.preempt(victim.id, notice=notice)
    assert eventually(lambda: victim.id not in {item.id for item in aws.instances()}, 60)
    aws.hold(then)


def test_no_store_for_a_minute(on: Launches, aws: AwsRig, whole: dict[str, float]) -> None:
    aws.hold(180)
    run_id = on.detach(*LONG, "--force")
    assert eventually(aws.reached, REACHED_S)
    aws.silence(True)
    aws.hold(None)
    time.sleep(60)  # the outage itself; the run must bear it
    aws.silence(False)
    shown = on.finish(run_id)
    assert (shown["status"], len(shown["attempt_list"])) == ("SUCCEEDED", 1)
    assert on.model(run_id)["metadata"]["final_loss"] == pytest.approx(whole["final_loss"], abs=1e-4)
    assert "holds no node" in on.project.run("down", run_id).stdout
