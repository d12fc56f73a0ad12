"""A run shown by a real MLflow server, as a team has one."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.artifacts import checkpoints, registry
from launcher.artifacts.store import FileStore
from launcher.artifacts.uri import ArtifactRef
from launcher.lineage import mlflow_view, sync
from launcher.lineage.mlflow_client import connected
from tests.rig import make_rig

START = 1_700_000_000.0


class Server:
    """An MLflow server on loopback, its database below ``folder``; it may go away for a while."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        log = self.folder / "server.log"
        with log.open("a") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=self.folder)
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)

    def stop(self) -> None:
        """Return when its port is free."""
        assert self.process
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def server(away: Server) -> str:
    return away.uri


def test_a_server_that_goes_away_in_mid_run_gets_what_it_missed(away: Server, tmp_path: Path) -> None:
    def look() -> Any:
        with connected(away.uri) as client:
            experiments = [item.experiment_id for item in client.search_experiments()]
            found = client.search_runs(experiments, f"tags.`nemo_sky.run_id` = '{rig.run_id}'")
        return found[0] if found else None

    with make_rig(tmp_path / "run") as rig:
        rig.job["tracking"] = away.uri
        process = rig.start("20000", "save=5", "sleep=0.2")
        rig.until(lambda: (seen := look()) and "loss" in seen.data.metrics, 100)
        away.stop()
        before = checkpoints.newest(rig.store, rig.run_id)
        rig.until(lambda: checkpoints.newest(rig.store, rig.run_id) != before, 100)
        away.start()
        process.terminate()
        process.communicate(timeout=180)
        assert process.returncode == 75
        points = [p for e in rig.journal(1) if e["type"] == "metrics" for p in e["points"]]
        sync.sync_run(rig.store, away.uri, rig.run_id)  # as `runs show` does, should the agent be behind
    ended = look()
    assert ended.info.status == "KILLED"
    with connected(away.uri) as client:
        history = client.get_metric_history(ended.info.run_id, "loss")
    assert [(p.step, p.value) for p in history] == [(p["step"], p["value"]) for p in points]
    assert [point["step"] for point in points] == list(range(1, len(points) + 1))


def test_a_run_and_its_artifacts_on_a_server(server: str, tmp_path: Path) -> None:
    mlflow_view.check(server)
    store = FileStore(tmp_path / "store")
    (tmp_path / "file").write_text("x")
    scores: dict[str, Any] = {"scores": {"accuracy": 0.5}}
    for _ in range(2):
        registry.import_path(store, tmp_path / "file", "team/data", "eval-report", scores)
    data = registry.resolve(store, ArtifactRef("team/data"))
    made = registry.publish(
        store,
        name="report",
        type="eval-report",
        metadata=scores,
        inputs={"data": data.uri},
        producer={"run_id": "r", "attempt": 1},
        directory=tmp_path / "file",
    )
    source = {"name": "data", "uri": data.uri, "type": data.type, "digest": data.digest}
    points = [
        {"key": key, "value": value, "step": 1} for key, value in (("nan", math.nan), ("inf", math.inf))
    ]
    events: list[dict[str, Any]] = [
        {
            "type": "attempt_started",
            "attempt": 1,
            "run": {"family": "tiny", "stage": "eval", "git_sha": "abc"},
            "params": {"lr": "1"},
            "inputs": [{**source, "base_uri": store.uri(data.base)}],
        },
        {"type": "metrics", "points": points},
        {"type": "system", "points": [{"key": "cpu", "value": 1.0}]},
        {"type": "output", "manifest": {**vars(made), "files": []}},
        {"type": "attempt_ended", "status": "succeeded", "hours": 1.0, "cost_usd": 2.0},
    ]
    numbered = [{"seq": n, "ts": START + n, **event} for n, event in enumerate(events, start=1)]
    run = mlflow_view.apply(numbered, tracking=server, run_id="r", store=store)
    assert mlflow_view.apply(numbered, tracking=server, run_id="r", store=store) == run
    with connected(server) as client:
        home = client.get_run(run).info.experiment_id
    assert mlflow_view.links(server, "r") == {"mlflow": f"{server}/#/experiments/{home}/runs/{run}"}
    assert mlflow_view.links(f"{server}/", "r") == mlflow_view.links(server, "r")
    assert mlflow_view.links(server, "another") == {}
    mlflow_view.set_alias(server, "team/data", "champion", 2)
    assert mlflow_view.get_alias(server, "team/data", "champion") == 2
    assert mlflow_view.get_alias(server, "team/data", "other") is None
    with connected(server) as client:
        shown = client.get_run(run)
        assert (shown.info.status, shown.data.params) == ("FINISHED", {"lr": "1"})
        assert math.isnan(shown.data.metrics["nan"])
        assert shown.data.metrics["inf"] > 1e308
        assert "system/cpu" in shown.data.metrics
        assert [item.dataset.name for item in shown.inputs.dataset_inputs] == ["team/data:v2"]
        (used,), (output,) = shown.inputs.model_inputs, shown.outputs.model_outputs
        assert client.get_logged_model(used.model_id).tags["art.uri"] == "art://team/data:v2"
        assert client.get_logged_model(output.model_id).source_run_id == run
        versions = client.search_model_versions("name = 'team~data'")
        assert {int(v.version): v.tags["art.uri"] for v in versions} == {
            1: "art://team/data:v1",
            2: "art://team/data:v2",
        }
