"""The fuse, as the task starts it: it burns unless it is moved, once, and with all who started it gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launcher import fuse
from launcher.agent import fuse as on_node
from launcher.money.lease import Lease
from tests.rig import until

ROOT = Path(__file__).parents[2]
LEASE = Lease(setup=200, check=100, save=100, teardown=600_000)


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A node of Slurm: its commands only write down how they were called; `scancel` ends its caller."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, last in (("scancel", "kill -9 $PPID"), ("scontrol", "true")):
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/called\n{last}\n')
        (tools / name).chmod(0o755)
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/python_path").write_text(sys.executable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return {
        "HOME": str(tmp_path),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "NEMO_SKY_RUN_ID": "run-1",
    }


def called(home: Path) -> list[str]:
    file = home / "called"
    return file.read_text().splitlines() if file.exists() else []


def start(env: dict[str, str], part: str, lease: Lease = LEASE, longest: int | None = None) -> str:
    task = fuse.arm({"envs": {}, "setup": "echo set up\n", "run": "echo running\n"}, lease, longest)
    return subprocess.run(
        ["bash", "-c", task[part]],
        env={**env, **task["envs"]},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    ).stdout


def test_it_burns_when_the_lease_is_not_renewed(env: dict[str, str], tmp_path: Path) -> None:
    began = time.time()
    assert start(env, "setup", longest=3_601_000) == "set up\n"
    assert called(tmp_path)[:1] == ["scontrol update JobId=77 TimeLimit=61"]
    assert until(lambda: "scancel 77" in called(tmp_path))
    assert time.time() - began >= 0.4, "set-up, check and save, and a check after it"


def test_it_burns_once_and_as_late_as_it_was_moved(env: dict[str, str], tmp_path: Path) -> None:
    start(env, "setup", Lease(setup=60_000, check=100, save=0, teardown=0))
    for _ in range(3):
        assert start(env, "run") == "running\n"
    file = on_node.file_of("run-1")
    assert float(file.read_text()) > time.time() + 30
    on_node.move(file, time.time() + 1)
    assert called(tmp_path) == []
    assert until(lambda: called(tmp_path))
    time.sleep(0.5)
    assert called(tmp_path) == ["scancel 77"]


def test_nothing_is_armed_by_a_renewal_or_on_another_node(env: dict[str, str], tmp_path: Path) -> None:
    on_node.move(on_node.file_of("run-1"), 0.0)
    assert start({**env, "SKYPILOT_SETUP_NODE_RANK": "1"}, "setup") == "set up\n"
    assert start(env, "run") == "running\n"
    assert not on_node.file_of("run-1").exists()


def test_a_node_without_the_code_says_that_it_has_no_fuse(env: dict[str, str], tmp_path: Path) -> None:
    task = fuse.arm({"envs": {}, "run": "echo running\n"}, LEASE, None)
    done = subprocess.run(
        ["bash", "-c", task["setup"]],
        env={**env, **task["envs"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "this node has no fuse" in done.stderr
    assert yaml.safe_load(yaml.safe_dump(task["envs"]))["NEMO_SKY_FUSE_S"] == "0.5"
