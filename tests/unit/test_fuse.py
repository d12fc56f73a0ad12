"""The fuse, as the task starts it: it burns unless it is moved, once, and with all who started it gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import fuse
from launcher.agent import fuse as on_node
from launcher.money.lease import Lease
from tests.rig import until

ROOT = Path(__file__).parents[2]
LEASE = Lease(setup=200, check=100, save=100, teardown=600_000)


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
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
    yield {
        "HOME": str(tmp_path),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "NEMO_SKY_RUN_ID": "run-1",
    }
    on_node.move(on_node.file_of("run-1"), 0.0)  # nobody watches it any longer
    if on_node.file_of("run-1").exists():
        assert until(lambda: "scancel 77" in called(tmp_path))


def called(home: Path) -> list[str]:
    file = home / "called"
    return file.read_text().splitlines() if file.exists() else []


def start(
    env: dict[str, str], part: str, lease: Lease = LEASE, longest: int | None = None, **more: Any
) -> str:
    task = fuse.arm({"envs": {}, "setup": "echo set up\n", "run": "echo running\n"}, lease, longest, **more)
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


DAY = 86_400


def test_a_deadline_alone_is_kept_however_often_the_fuse_is_armed(env: dict[str, str]) -> None:
    """A recovery's set-up arms it again, and that moves no deadline."""
    lease = Lease(setup=60_000, check=60_000, save=60_000, teardown=120_000)
    deadline = round(time.time() + DAY) * 1000
    for _ in range(2):
        start(env, "setup", lease, deadline=deadline, capped=False)
        assert float(on_node.file_of("run-1").read_text()) == deadline / 1000 - 60
        time.sleep(0.2)
    start(env, "setup", lease, deadline=deadline, capped=True)
    assert float(on_node.file_of("run-1").read_text()) < time.time() + 300, "a lease is shorter"


def test_who_comes_after_the_deadline_has_the_time_to_say_so(env: dict[str, str]) -> None:
    """Else the nodes would go before the agent, and SkyPilot would launch others, for ever."""
    lease = Lease(setup=60_000, check=60_000, save=60_000, teardown=0)
    past = round(time.time() - DAY) * 1000
    start({**env, "SLURM_JOB_START_TIME": str(int(time.time()))}, "setup", lease, deadline=past, capped=False)
    left = float(on_node.file_of("run-1").read_text()) - time.time()
    assert 200 < left < 241


@pytest.mark.parametrize(("longest", "minutes"), [(None, 90), (100 * 60_000, 90), (80 * 60_000, 80)])
def test_slurm_s_own_limit_is_the_deadline_too(
    env: dict[str, str], tmp_path: Path, longest: int | None, minutes: int
) -> None:
    """It counts from the start of the allocation, a quarter of an hour ago."""
    now = int(time.time())
    known = {**env, "SLURM_JOB_START_TIME": str(now - 15 * 60)}
    lease = Lease(setup=60_000, check=60_000, save=60_000, teardown=0)
    start(known, "setup", lease, longest, deadline=(now + 75 * 60) * 1000, capped=longest is not None)
    assert called(tmp_path) == [f"scontrol update JobId=77 TimeLimit={minutes}"]


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
