"""How a node takes its place in a Ray cluster, and what it says when there is none. Ray itself: tests/e2e."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from launcher.agent import ray_cluster
from launcher.agent.ends import Ended
from launcher.agent.job import Node
from launcher.agent.processes import Guarded
from launcher.agent.ray_cluster import RayNode
from launcher.agent.stop import Stop
from launcher.artifacts.store import StoreError


def node(work: Path, rank: int = 0, count: int = 1) -> Node:
    addresses = tuple(f"127.0.0.{n + 1}" for n in range(count))
    return Node(rank, count, addresses, work, work / "config.yaml", {})


def listener() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(5)
    return server


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with listener() as server:
        port = str(server.getsockname()[1])
        with pytest.raises(Ended, match=f"port {port}, for the Ray head, is taken; set NEMO_SKY_RAY_PORT"):
            RayNode(node(tmp_path), "r", 1, {"NEMO_SKY_RAY_PORT": port}).start()


def test_a_worker_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "START_S", 0.3)
    with pytest.raises(Ended, match=r"the Ray head did not start within 0 s at 127.0.0.1:9"):
        RayNode(node(tmp_path, 1, 2), "r", 1, {"NEMO_SKY_RAY_PORT": "9"}).start()


def test_a_head_that_cannot_start_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\n[ $1 = -I ] && exec {sys.executable} "$@"\necho no module ray; exit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    ray = RayNode(node(tmp_path), "r", 1, {"NEMO_SKY_RAY_PORT": "9", "PATH": "/bin:/usr/bin"})
    ray.start()
    with pytest.raises(Ended, match=r"(?s)did not start: it ended with 1.*no module ray"):
        ray.wait_for_all()
    ray.stop()


def test_a_worker_stays_until_node_0_says_that_it_has_ended(tmp_path: Path) -> None:
    answers = iter([None, StoreError("away"), 0])

    def ended() -> int | None:
        answer = next(answers)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    with listener() as server:
        port = str(server.getsockname()[1])
        ray = RayNode(node(tmp_path, 1, 2), "r", 1, {"NEMO_SKY_RAY_PORT": port})
        assert ray.serve(ended, lambda: False) == 0
    assert ray.serve(lambda: None, lambda: True) is None, "its own time is over"


def test_a_head_that_vanishes_fails_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "VANISHED_S", 0.5)
    ray = RayNode(node(tmp_path, 1, 2), "r", 1, {"NEMO_SKY_RAY_PORT": "9"})
    began = time.monotonic()
    with pytest.raises(Ended, match=r"the Ray head at 127.0.0.1:9 has vanished") as caught:
        ray.serve(lambda: None, lambda: False)
    assert caught.value.code != 0
    assert time.monotonic() - began < 20


def test_the_end_of_the_command_leaves_the_cluster_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other nodes still upload their parts, and must not take the head for vanished."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests' own handlers stay
    head = Guarded(["sleep", "60"], env=dict(os.environ))
    assert Stop().run(Guarded(["true"], env=dict(os.environ))) == 0
    time.sleep(0.1)
    assert head.poll() is None
    head.kill()
    assert head.wait(10) == 137


def test_the_cluster_is_closed_to_others_where_it_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's head would decide by whether this machine has a token file; its workers would not."""

    def env(count: int, **given: str) -> dict[str, str]:
        made = RayNode(node(tmp_path, 0, count), "r", 1, given).env
        return {key: value for key, value in made.items() if key.startswith("RAY_AUTH")}

    assert env(2, RAY_AUTH_TOKEN="t") == {"RAY_AUTH_TOKEN": "t", "RAY_AUTH_MODE": "token"}
    assert env(2, RAY_AUTH_TOKEN_PATH="/f") == {"RAY_AUTH_TOKEN_PATH": "/f", "RAY_AUTH_MODE": "token"}
    assert capsys.readouterr().err == ""
    assert env(2) == {"RAY_AUTH_MODE": "disabled"}, "of a task that was not launched by nemo-sky"
    assert "whoever reaches the ports of this Ray cluster can use it" in capsys.readouterr().err
    alone, again = env(1), env(1)
    assert alone["RAY_AUTH_MODE"] == "token"
    assert alone["RAY_AUTH_TOKEN"] != again["RAY_AUTH_TOKEN"]
    assert env(1, RAY_AUTH_MODE="disabled") == {"RAY_AUTH_MODE": "disabled"}


def test_its_folder_is_short_and_its_own(tmp_path: Path) -> None:
    """Ray's sockets lie about 60 characters below it, and a socket's path ends at 107."""
    folders = {
        str(RayNode(node(tmp_path, rank, 2), run, 1, {})._temp) for rank in (0, 1) for run in ("a" * 99, "b")
    }
    assert len(folders) == 4
    assert all(len(folder) < 40 for folder in folders)
