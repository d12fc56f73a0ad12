"""What is found out of the API server on this machine, whose command line a process here only bears."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ASK = """
import json, pathlib, sys
from dataclasses import asdict
from launcher import plan, preflight, project
here = project.find(pathlib.Path(sys.argv[1]))
cluster, *flags = sys.argv[2:]
request = plan.Request("nano3", "pretrain", cluster, managed="managed" in flags)
drafts = plan.plans(request, here, plan.select(request, here))
print(json.dumps([asdict(found) for found in preflight.controller(drafts)]))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".sky").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(home: Path, port: int, *words: str, **env: str) -> list[dict[str, Any]]:
    """The findings of a command whose HOME is ``home`` and whose API server, if local, is on ``port``."""
    env = {"HOME": str(home), "SKYPILOT_API_SERVER_LOCAL_PORT": str(port), **env}
    command = [sys.executable, "-c", ASK, str(ROOT), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@contextmanager
def server(port: int) -> Iterator[None]:
    words = ["-c", "import time; time.sleep(300)", "-m sky.server.server", f"--port={port}"]
    process = subprocess.Popen([sys.executable, *words])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_managed_jobs_on_slurm_need_the_controller_in_the_server(home: Path, port: int) -> None:
    with server(port):
        (found,) = ask(home, port, "slurm", "managed")
        assert (found["ok"], found["forceable"]) == (False, False)
        assert "cannot run it on Slurm, and so not watch over nano3/pretrain" in found["says"]
        assert "consolidation_mode: true" in found["hint"]
        assert "`sky api stop` and `sky api start`" in found["hint"]

        (home / ".sky" / "config.yaml").write_text("jobs: {controller: {consolidation_mode: true}}\n")
        (found,) = ask(home, port, "slurm", "managed")
        assert found["ok"] is False
        assert "was started before" in found["says"]

        # What a server that starts with this configuration leaves.
        (home / ".sky" / ".jobs_controller_consolidation_reloaded_signal").touch()
        (found,) = ask(home, port, "slurm", "managed")
        assert found["ok"] is True


def test_nothing_else_needs_it_there(home: Path, port: int) -> None:
    with server(port):
        assert ask(home, port, "slurm") == ask(home, port, "aws", "managed") == []


def test_of_a_server_that_is_elsewhere_it_is_not_known(home: Path, port: int) -> None:
    """Behind a tunnel too: then its address is of this machine."""
    (found,) = ask(home, port, "slurm", "managed")
    assert found["ok"] is None
    with server(port):
        away = "http://127.0.0.1:1"
        (found,) = ask(home, port, "slurm", "managed", SKYPILOT_API_SERVER_ENDPOINT=away)
        assert found["ok"] is None
    with server(port + 1):
        (found,) = ask(home, port, "slurm", "managed")
        assert found["ok"] is None
