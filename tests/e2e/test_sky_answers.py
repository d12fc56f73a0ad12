"""SkyPilot's SDK against an API server whose answer to a launch is lost on its way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from launcher import runs
from launcher.agent.limits import FINAL
from launcher.backends import local, sky
from launcher.skyplugin.names import KEY
from tests.e2e.conftest import make_project
from tests.served import served

ROOT = Path(__file__).parents[2]
SUBMIT = """\
import json, sys
from pathlib import Path
from launcher.backends import sky
from launcher.errors import UserError
run_dir = Path(sys.argv[1])
task = {"name": "t", "run": "true", "resources": {"cpus": "2+"}}
try:
    sky.submit(run_dir, task, managed=sys.argv[2] == "managed")
    print(json.dumps({"request": sky._known(run_dir).request}))
except UserError as error:
    print(json.dumps({"refused": str(error), "ticket": (run_dir / "sky.json").exists()}))
"""


@contextmanager
def api_server(answer: int | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server that takes every launch and answers with ``answer``, or never; and what it
    took, as it lists it."""
    from sky import __version__
    from sky.server import constants

    taken: list[dict[str, Any]] = []
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/api/health"):
                versions = {"api_version": str(constants.API_VERSION), "version": __version__, "commit": "c"}
                self.reply({"status": "healthy", **versions, "version_on_disk": __version__})
            elif self.path.startswith("/api/status"):
                self.reply(taken)
            else:
                self.reply({}, 404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = self.path.strip("/").replace("/", ".")
            if not name.endswith("launch"):
                self.reply(None)  # it is asked first whether the task is valid
            elif answer is None:
                taken.append(
                    {
                        "request_id": f"r{len(taken)}",
                        "name": f"sky.{name}",
                        "entrypoint": "launch",
                        "request_body": body.decode(),
                        "cluster_name": json.loads(body).get("cluster_name"),
                        "status": "RUNNING",
                        "created_at": time.time(),
                        "user_id": "u",
                        "return_value": "null",
                        "error": "null",
                        "pid": None,
                        "schedule_type": "long",
                    }
                )
                over.wait(8)  # then the connection ends
            else:
                self.reply({"detail": "no"}, answer)

        def reply(self, value: object, code: int = 200) -> None:
            content = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-SkyPilot-API-Version", str(constants.API_VERSION))
            self.send_header("X-SkyPilot-Version", __version__)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    with served(Handler) as address:
        try:
            yield f"http://{address}", taken
        finally:
            over.set()


def submit(tmp_path: Path, address: str, how: str) -> dict[str, Any]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SKYPILOT_", "AWS_"))}
    env |= {"HOME": str(tmp_path), "SKYPILOT_API_SERVER_ENDPOINT": address, "PYTHONPATH": str(ROOT)}
    env["SKYPILOT_DISABLE_USAGE_COLLECTION"] = "1"
    words = [sys.executable, "-c", SUBMIT, str(tmp_path / "tiny-run"), how]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_launch_whose_answer_is_lost_is_found_again(tmp_path: Path) -> None:
    """It may run and cost money: it is neither forgotten nor posted twice."""
    with api_server(answer=None) as (address, taken):
        assert submit(tmp_path / "1", address, "managed") == {"request": "r0"}
        assert submit(tmp_path / "2", address, "cluster") == {"request": "r1"}
        assert [item["name"] for item in taken] == ["sky.jobs.launch", "sky.launch"]


def test_a_launch_that_the_server_refuses_leaves_nothing(tmp_path: Path) -> None:
    with api_server(answer=400) as (address, _):
        refused = submit(tmp_path, address, "cluster")
    assert not refused["ticket"]
    assert "400 Client Error" in refused["refused"]


def test_a_refusal_changes_nothing_of_an_earlier_launch(tmp_path: Path) -> None:
    run_dir = tmp_path / "tiny-run"
    before = {"sky.json": asdict(sky.Ticket(False, "r0", 1.0, "tiny-run")), "state.json": {"attempts": []}}
    before["state.json"] |= {"status": "CANCELLED", "tail": ["its last words"]}
    for name, content in before.items():
        runs.write_text(run_dir / name, json.dumps(content))
    with api_server(answer=400) as (address, _):
        assert "400 Client Error" in submit(tmp_path, address, "managed")["refused"]
    assert {name: json.loads((run_dir / name).read_text()) for name in before} == before


def test_a_place_that_does_not_answer_hides_no_run_of_another(tmp_path: Path) -> None:
    """One run is of an API server that is not SkyPilot's now; the other is of this machine and active."""
    project = make_project(tmp_path / "project", HOME=str(tmp_path))
    folder = project.root / ".nemo-sky" / "runs"
    record = runs.Run("r", "tiny", "x", "default", "", "slurm", "sky", 1, "2026-01-01", "c", None, "a", "t")
    runs.save(folder, replace(record, run_id="away"))
    ticket = sky.Ticket(False, "r1", time.time(), "away", server="http://127.0.0.1:9")
    runs.write_text(folder / "away" / "sky.json", json.dumps(asdict(ticket)))
    runs.save(folder, replace(record, run_id="here", cluster="local", backend="local"))
    local.submit(folder / "here", {"name": "t", "run": "sleep 300"})
    try:
        listed = json.loads(project.run("runs", "list", "--json").stdout)
        states = {item["run_id"]: item["status"] for item in listed}
        assert states == {"away": "UNKNOWN", "here": "RUNNING"} or states["here"] in ("PENDING", "SETUP")
        assert "launched through http://127.0.0.1:9, and SkyPilot uses" in str(listed)
        downed = project.run("down", "--all", code=3)
        assert "here is cancelled and holds no node" in downed.stdout
        assert "1 of the runs could not be brought down: away" in downed.stderr
        assert "SKYPILOT_API_SERVER_ENDPOINT" in project.run("runs", "show", "away", code=3).stderr
    finally:
        local.cancel(folder / "here", grace_s=0)


def test_our_strategy_tries_nothing_again_that_cannot_succeed() -> None:
    import asyncio

    from sky import Task
    from sky.backends import CloudVmRayBackend

    from launcher.skyplugin.strategy import NemoSky

    def tried_again(code: int, *named: int) -> bool:
        task, lock = Task(run="true"), asyncio.Lock()
        places: tuple[Any, ...] = (
            "c",
            CloudVmRayBackend(),
            task,
            3,
            1,
            0,
            None,
            set(),
            lock,
            asyncio.Condition(lock),
        )
        strategy = NemoSky(*places)
        terms = {"run": "r", "artifacts": "/a"} | ({"no_retry": list(named)} if named else {})
        strategy.set_strategy_config({KEY: terms})
        return bool(strategy.should_restart_on_failure([0, code]))

    codes = {code: tried_again(code) for code in (1, 69, 75, *FINAL)}
    assert codes == {1: True, 69: True, 75: True, **dict.fromkeys(FINAL, False)}
    named = {code: tried_again(code, 3, 4) for code in (1, 3, 4, *FINAL)}
    assert named == {1: True, **dict.fromkeys((3, 4, *FINAL), False)}
