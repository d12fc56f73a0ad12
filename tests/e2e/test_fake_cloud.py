"""A launch on the fake cloud: the real trainer, preempted on command, ends as if nothing had happened."""

from __future__ import annotations

import json
import signal

import pytest

from tests.e2e.conftest import Project, make_project
from tests.e2e.crash import kill_all, until_committed
from tests.e2e.test_resume import last_model

WORDS = (
    "tiny",
    "pretrain",
    "-c",
    "smoke",
    "data=null",
    "run.data=null",
    "train.steps=200",
    "train.save_interval=20",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("fake") / "project")


def test_preempted_twice_on_spot(project: Project) -> None:
    whole = last_model(project, project.run("launch", *WORDS, "--cloud", "local", "--json"))
    commands = "preempt@committed checkpoint; preempt@committed checkpoint"
    unlucky = Project(project.root, {**project.env, "NEMO_SKY_FAKE": commands})
    done = unlucky.run("launch", *WORDS, "--cloud", "fake", "--spot", "--force", "--json")
    assert "as a managed job: spot nodes can be preempted" in done.stderr
    assert last_model(project, done)["final_loss"] == pytest.approx(whole["final_loss"], abs=1e-4)
    shown = json.loads(project.run("runs", "list", "--json").stdout)[0]
    assert (shown["preemptions"], shown["attempts"], shown["place"]) == (2, 3, "fake/fake-2/fake-2a")


def test_a_run_goes_on_in_another_place(project: Project) -> None:
    """Its fingerprint says nothing of the place: what one left is taken up where the next launch says."""
    words = (*WORDS, "train.seed=11")
    launcher = project.start("launch", *words, "--cloud", "local")
    until_committed(launcher)
    kill_all(project, launcher)
    lost = json.loads(project.run("runs", "list", "--json").stdout)[0]
    assert (lost["status"], lost["cluster"]) == ("LOST", "local")

    unlucky = Project(project.root, {**project.env, "NEMO_SKY_FAKE": "preempt@committed checkpoint"})
    stopped = unlucky.run("launch", *words, "--cloud", "fake", code=1)
    assert "as a job on its own cluster" in stopped.stderr
    lost = json.loads(project.run("runs", "list", "--json").stdout)[0]
    assert (lost["status"], lost["cluster"], lost["place"]) == ("LOST", "fake", "fake/fake-1/fake-1a")

    project.run("launch", *words, "--cloud", "local")
    shown = json.loads(project.run("runs", "show", lost["run_id"], "--json").stdout)
    assert (shown["status"], shown["cluster"]) == ("SUCCEEDED", "local")
    first, second, third = shown["attempt_list"]
    assert second["restored_from"] == first["checkpoints"][-1]
    assert third["restored_from"] == second["checkpoints"][-1]


def test_too_many_preemptions_end_the_run(project: Project) -> None:
    commands = "preempt@committed checkpoint; preempt@committed checkpoint"
    unlucky = Project(project.root, {**project.env, "NEMO_SKY_FAKE": commands})
    done = unlucky.run(
        *("launch", *WORDS, "--cloud", "fake", "--spot", "--preemptions", "1", "--force"), code=1
    )
    assert "preempted 2 times, and --preemptions allows 1" in done.stdout + done.stderr


def test_ctrl_c_leaves_the_run_be(project: Project) -> None:
    launcher = project.start("launch", *WORDS, "--cloud", "fake", "--force")
    until_committed(launcher)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=60) == 130
    (active,) = json.loads(project.run("queue", "--json").stdout)
    assert active["run_id"] in (launcher.stderr.read() if launcher.stderr else "")
    assert "is cancelled and holds no node" in project.run("down", active["run_id"]).stdout
    assert json.loads(project.run("queue", "--json").stdout) == []
