"""`nemo-sky launch` on a real Slurm through real SkyPilot, its store on S3."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import make_project
from tests.e2e.s3 import Gate
from tests.rigs.launching import (
    LONG,
    PACED,
    REACHED_S,
    SHORT,
    Launches,
    eventually,
    launching,
    paced_loss,
    with_profile,
)
from tests.rigs.slurm import SlurmRig


@pytest.fixture(scope="module")
def gated(slurm: SlurmRig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launches, Gate]]:
    root = tmp_path_factory.mktemp("on-slurm") / "project"
    with launching(slurm.home, slurm.profile, root) as launches:
        yield launches


@pytest.fixture(scope="module")
def on(gated: tuple[Launches, Gate]) -> Launches:
    return gated[0]


@pytest.fixture(autouse=True)
def nothing_stays(slurm: SlurmRig) -> Iterator[None]:
    yield
    assert eventually(lambda: not slurm.squeue(), 60), "an allocation was left behind"


@pytest.fixture(scope="module")
def whole(on: Launches) -> dict[str, float]:
    """The long run that nothing interrupted, on this machine."""
    done = on.project.run("launch", *LONG, "--cloud", "local", "--json")
    metadata: dict[str, float] = json.loads(done.stdout)[0]["metadata"]
    return metadata


def kill_api_server(slurm: SlurmRig) -> None:
    """SIGKILL the rig's own API server with its workers, as when its machine fails; the next command starts
    it again. (Workers that outlive it keep its queue's port, and no other server can start.)"""
    for process in psutil.process_iter():
        try:
            of_rig = process.environ().get("HOME") == slurm.home.own["HOME"]
            if of_rig and "sky.server.server" in process.cmdline():
                family = [process, *process.children(recursive=True)]
                for member in family:
                    member.kill()
                psutil.wait_procs(family, timeout=30)
        except psutil.Error:
            continue


@pytest.mark.ci
def test_one_node_and_two_give_the_same(on: Launches) -> None:
    one = on.launch(*SHORT)
    two = on.launch(*SHORT, "--nodes", "2", "--force")
    assert "on its own cluster" in two["said"]
    assert two["metadata"]["final_loss"] == pytest.approx(one["metadata"]["final_loss"], abs=1e-3)
    shown = on.show(two["run_id"])
    assert (shown["status"], shown["nodes"], shown["attempt_list"][0]["status"]) == (
        "SUCCEEDED",
        2,
        "succeeded",
    )
    made = on.model(two["run_id"])
    assert made["producer"]["place"]["nodes"] == 2
    assert made["producer"]["cost_usd"] > 0
    logged = on.project.run("runs", "logs", two["run_id"]).stdout
    assert "[node 0] " in logged
    assert "published art://tiny-pretrain-model" in logged


@pytest.mark.ci
def test_a_ray_stage_on_two_nodes(on: Launches) -> None:
    done = on.launch("tiny", "data/prep/pretrain", "-c", "smoke", "--nodes", "2")
    assert "all 2 Ray nodes have joined" in on.project.run("runs", "logs", done["run_id"]).stdout
    # What it made is what a later stage finds, by lineage too.
    local = on.project.run("launch", "tiny", "pretrain", "-c", "smoke", "--cloud", "local", "--json")
    model = json.loads(local.stdout)[0]["output"]
    up = json.loads(on.project.run("lineage", "show", model, "--json").stdout)
    assert [child["uri"] for child in up["children"]] == [done["output"]]


@pytest.mark.ci
def test_cancelled_and_launched_again(on: Launches) -> None:
    words = (*PACED, "steps=1200", "sleep=0.1", "save=50")
    run_id = on.detach(*words)
    on.follow(run_id)
    (active,) = json.loads(on.project.run("queue", "--json").stdout)
    assert (active["run_id"], active["place"]) == (run_id, "slurm/rig/gpu")
    twice = on.project.run("launch", *words, "--cluster", str(on.profile), code=3)
    assert "is this very run and is running" in twice.stderr
    assert "is cancelled" in on.project.run("runs", "cancel", run_id).stdout

    resumed = on.launch(*words)
    assert resumed["run_id"] == run_id
    assert resumed["metadata"]["final_loss"] == pytest.approx(paced_loss(1200), abs=1e-9)
    first, second = on.show(run_id)["attempt_list"]
    assert second["restored_from"] == first["checkpoints"][-1] > 0


def with_options(on: Launches, **options: str) -> Launches:
    """The same launches, with sbatch options in their profile."""
    return with_profile(on, "options", config={"slurm": {"sbatch_options": options}})


def test_a_shell_on_its_node_and_a_cancel_that_saves(on: Launches, slurm: SlurmRig) -> None:
    options = with_options(on, comment="fake-project", time="2:00:00")
    run_id = options.detach(*PACED, "steps=100000", "save=100000", "--force")
    on.follow_into_training(run_id)
    assert slurm.squeue("%k|%l") == ["fake-project|2:00:00"]
    said = on.project.run("runs", "ssh", run_id, "--", "echo on $SLURM_JOB_PARTITION $(whoami)").stdout
    assert "on " in said
    assert "is cancelled" in on.project.run("runs", "cancel", run_id).stdout
    (attempt,) = on.show(run_id)["attempt_list"]
    assert attempt["checkpoints"], "there was none before it was cancelled"


def test_what_slurm_refuses_is_said(on: Launches) -> None:
    options = with_options(on, qos="none-such", licenses="none-such")
    assert "Failed to acquire resources" in options.launch(*PACED, "--force", code=1)["said"]


def test_left_alone_it_gives_its_nodes_back(on: Launches, slurm: SlurmRig) -> None:
    """Detached, and nobody asks for it again: SkyPilot's own skylet takes the cluster down."""
    run_id = with_profile(on, "idle", idle_minutes=1).detach(*PACED, "steps=20", "--force")
    on.await_end(run_id)
    assert eventually(lambda: not slurm.squeue(), 240), "the allocation outlived its minute"
    assert on.show(run_id)["status"] == "SUCCEEDED"


def test_a_managed_job_whose_api_server_is_killed(gated: tuple[Launches, Gate], slurm: SlurmRig) -> None:
    """Its controller dies with the server, and watches it again when the server is back."""
    on, gate = gated
    gate.hold(step=300)
    run_id = on.detach(*PACED, "steps=900", "save=100", "--managed", "--force")
    assert gate.reached.wait(REACHED_S)
    kill_api_server(slurm)
    gate.hold()
    shown = on.finish(run_id)
    assert (shown["status"], shown["preemptions"], len(shown["attempt_list"])) == ("SUCCEEDED", 0, 1)
    assert on.model(run_id, "demo-model")["metadata"]["final_loss"] == pytest.approx(
        paced_loss(900), abs=1e-9
    )


@pytest.mark.ci
def test_a_managed_job_whose_allocation_is_cancelled(
    gated: tuple[Launches, Gate], slurm: SlurmRig, whole: dict[str, float]
) -> None:
    on, gate = gated
    gate.hold(step=180)
    run_id = on.detach(*LONG, "--managed", "--force")
    assert gate.reached.wait(REACHED_S)
    slurm.scancel()
    gate.hold()
    shown = on.finish(run_id)
    assert (shown["status"], shown["preemptions"]) == ("SUCCEEDED", 1)
    assert shown["attempt_list"][1]["restored_from"] > 0
    made = on.model(run_id)["metadata"]
    assert made["final_loss"] == pytest.approx(whole["final_loss"], abs=1e-4)


def test_launcher_api_server_and_store_go_away(
    gated: tuple[Launches, Gate], slurm: SlurmRig, whole: dict[str, float]
) -> None:
    """Each at a bad moment of one run: it is neither lost nor doubled."""
    on, gate = gated
    gate.hold(step=180)
    launcher = on.project.start("launch", *LONG, "--cluster", str(on.profile), "--force")
    assert launcher.stderr
    line = next(text for text in launcher.stderr if text.startswith("  run "))
    run_id = line.split()[1]
    assert eventually(lambda: slurm.squeue(), 300)
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate()

    assert gate.reached.wait(REACHED_S)
    gate.down = True
    gate.hold(step=360)
    time.sleep(5)  # an outage: nothing to wait for, the run must bear it
    gate.down = False
    assert gate.reached.wait(REACHED_S)
    kill_api_server(slurm)
    twice = on.project.run("launch", *LONG, "--resume", run_id, "--cluster", str(on.profile), code=3)
    assert "is this very run" in twice.stderr
    gate.hold()

    shown = on.finish(run_id)
    assert shown["status"] == "SUCCEEDED"
    assert len(shown["attempt_list"]) == 1
    assert on.model(run_id)["metadata"]["final_loss"] == pytest.approx(whole["final_loss"], abs=1e-4)
    assert "holds no node" in on.project.run("down", run_id).stdout


def test_through_a_remote_api_server_that_restarts(
    gated: tuple[Launches, Gate], tmp_path: Path, slurm: SlurmRig
) -> None:
    """A machine that has nothing of SkyPilot's but the server's address: the working directory and the run's
    files are uploaded to it. Who follows the run there waits until the server is back."""
    on, gate = gated
    on.project.run("doctor", "--cluster", str(on.profile))  # starts the rig's server
    rigs = dict(on.project.env)
    server = f"http://127.0.0.1:{rigs.pop('SKYPILOT_API_SERVER_LOCAL_PORT')}"
    env = {**rigs, "HOME": str(tmp_path / "home"), "SKYPILOT_API_SERVER_ENDPOINT": server}
    away = Launches(make_project(tmp_path / "project", **env), on.profile)
    gate.hold(step=180)
    launcher = away.project.start("launch", *LONG, "--cluster", str(on.profile), "--force", "--json")
    assert gate.reached.wait(REACHED_S)
    kill_api_server(slurm)
    assert launcher.stderr
    assert any("the run goes on without it" in line for line in launcher.stderr)
    on.project.run("doctor", "--cluster", str(on.profile))
    gate.hold()
    printed, _ = launcher.communicate(timeout=REACHED_S)
    (done,) = json.loads(printed)
    assert launcher.returncode == 0
    assert away.show(done["run_id"])["status"] == "SUCCEEDED"
    assert not (tmp_path / "home" / ".sky" / "state.db").exists()


def test_a_pipeline_runs_without_its_launcher(on: Launches) -> None:
    on.project.run("launch", "tiny", "all", "--to", "data/prep/sft", "-c", "smoke", "--cloud", "local")
    stages = ("launch", "tiny", "all", "--from", "pretrain", "--to", "sft", "-c", "smoke")
    words = (*stages, "pretrain.train.seed=5")  # nothing of it was made before
    place = ("--cluster", str(on.profile), "--managed")
    left = on.project.run(*words, *place, "--detach", "--json")
    assert "of 2 tasks" in left.stderr
    first, second = json.loads(left.stdout)
    shown = on.finish(second["run_id"], 600)
    assert shown["status"] == "SUCCEEDED"
    up = json.loads(on.project.run("lineage", "show", shown["output"], "--json").stdout)
    assert first["run_id"] in {child["producer"]["run_id"] for child in up["children"]}
    # What the agents reckoned is what a later launch looks for, here or there.
    again = json.loads(on.project.run(*words, *place, "--json").stdout)
    assert [outcome["status"] for outcome in again] == ["skipped", "skipped"]
