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

from launcher.artifacts import registry
from launcher.artifacts.store import FileStore
from launcher.artifacts.uri import ArtifactRef
from launcher.lineage import mlflow_view
from launcher.lineage.mlflow_client import connected

START = 1_700_000_000.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URI of an MLflow server on loopback with a database of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        yield uri
        process.terminate()
        process.wait(30)


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
