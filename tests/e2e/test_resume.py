"""Kill -9 at the worst moments: training goes on from the newest committed checkpoint, to the same loss."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.artifacts import checkpoints
from launcher.artifacts.store import open_store
from tests.e2e.conftest import Project, make_project
from tests.e2e.crash import kill_all, processes_of, story, until_committed
from tests.e2e.s3 import FAKE_CREDENTIALS, serve

# Long enough to be killed in the middle, short enough for a test: ten checkpoints in about 15 seconds.
LONG = ["tiny", "pretrain", "-c", "smoke", "--cloud", "local", "train.steps=200", "train.save_interval=20"]
LONG += ["train.eval_interval=200"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with the small text prepared."""
    project = make_project(tmp_path_factory.mktemp("resume") / "project")
    project.run("launch", "tiny", "data/prep/pretrain", "-c", "smoke", "--cloud", "local")
    return project


@pytest.fixture(scope="module")
def whole(prepared: Project) -> dict[str, Any]:
    """The run that nothing interrupted."""
    return last_model(prepared, prepared.run("launch", *LONG, "--json"))


def last_model(project: Project, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    (outcome,) = json.loads(done.stdout)
    assert outcome["status"] == "made"
    metadata: dict[str, Any] = outcome["metadata"]
    return metadata


def test_killed_in_the_middle_of_training(prepared: Project, whole: dict[str, Any]) -> None:
    launcher = prepared.start("launch", *LONG, "--force")
    until_committed(launcher, 40)
    kill_all(prepared, launcher)
    killed = story(prepared)
    assert killed["status"] == "LOST"

    done = prepared.run("launch", *LONG, "--resume", killed["run_id"], "--json")
    resumed = last_model(prepared, done)
    after = story(prepared)
    assert after["run_id"] == killed["run_id"]
    assert [attempt["attempt"] for attempt in after["attempt_list"]] == [1, 2]
    assert after["attempt_list"][1]["restored_from"] >= 40
    assert resumed["final_loss"] == pytest.approx(whole["final_loss"], abs=1e-4)
    assert resumed["valid_loss"] == pytest.approx(whole["valid_loss"], abs=1e-4)


def test_the_same_command_resumes_by_itself_at_another_parallelism(
    prepared: Project, whole: dict[str, Any]
) -> None:
    """Ctrl-C, then the very same command; the run's own fingerprint finds it."""
    command = (*LONG, "train.seed=77")
    launcher = prepared.start("launch", *command)
    until_committed(launcher, 20)
    os.kill(launcher.pid, signal.SIGINT)
    assert launcher.wait(timeout=120) == 130
    assert processes_of(prepared) == [], "Ctrl-C leaves nothing running"
    stopped = story(prepared)
    assert stopped["status"] == "CANCELLED"

    done = prepared.run("launch", *command, "--json")
    assert f"resuming {stopped['run_id']}" in done.stderr
    assert last_model(prepared, done)["step"] == 200


@pytest.fixture
def on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Project, Any]]:
    for key, value in FAKE_CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    with serve("fake-bucket") as (endpoint, gate):
        # Moto keeps one world per process: the prefix keeps one test's artifacts from the next one's.
        store = f"s3://fake-bucket/{tmp_path.name}"
        env = {"AWS_ENDPOINT_URL": endpoint, "NEMO_SKY_ARTIFACTS": store, **FAKE_CREDENTIALS}
        yield make_project(tmp_path / "project", **env), gate


@pytest.mark.parametrize("held", ["iter_0000020/.nemo-sky/manifest.json", "iter_0000020/common.pt"])
def test_killed_during_the_upload_of_a_checkpoint(on_s3: tuple[Project, Any], held: str) -> None:
    """S3 has some or all files of step 20 but not its manifest: step 20 was never there.

    Where training outruns the agent, step 10 is not committed either: the agent skips to the newest. What
    must be restored is what the store itself says is whole.
    """
    project, gate = on_s3
    words = ("tiny", "pretrain", "-c", "smoke", "--cloud", "local", "data=null", "run.data=null")
    whole_run = last_model(project, project.run("launch", *words, "--json"))

    gate.hold(held)
    launcher = project.start("launch", *words, "--force")
    assert gate.reached.wait(timeout=120)
    kill_all(project, launcher)
    gate.hold()

    killed = story(project)
    store = open_store(project.env["NEMO_SKY_ARTIFACTS"], s3_endpoint=project.env["AWS_ENDPOINT_URL"])
    newest = checkpoints.newest(store, killed["run_id"])
    assert newest is None or newest.step == 10, "a half-uploaded step 20 counts as a checkpoint"
    done = project.run("launch", *words, "--resume", killed["run_id"], "--json")
    resumed = last_model(project, done)
    after = story(project)
    assert after["attempt_list"][1]["restored_from"] == (newest and newest.step)
    assert resumed["final_loss"] == pytest.approx(whole_run["final_loss"], abs=1e-4)
    listed = json.loads(project.run("artifacts", "list", "--json").stdout)
    assert [item["version"] for item in listed if item["name"] == "tiny-pretrain-model"] == [1, 2]
