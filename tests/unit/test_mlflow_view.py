"""What MLflow shows of runs and artifacts: complete, once, and quietly; on real MLflow databases."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.artifacts import registry
from launcher.artifacts.store import FileStore
from launcher.artifacts.uri import ArtifactRef
from launcher.errors import Refused, UserError
from launcher.lineage import mlflow_view
from launcher.lineage.journal import Event
from launcher.lineage.mlflow_client import connected
from launcher.lineage.sync import sync_run
from tests.unit.mlflow_events import (
    START,
    attempts_of,
    ended,
    journal_of,
    manifest,
    metrics,
    run_of,
    started,
    unique,
)

if TYPE_CHECKING:
    from tests.unit.conftest import MlflowTemplate


def test_a_run_shows_everything(tracking: str) -> None:
    run_id, data, model, out = unique("run"), unique("data"), unique("model"), unique("out")
    inputs = [
        {
            "name": "data",
            "uri": f"art://{data}:v1",
            "type": "pretrain-data",
            "digest": "d" * 64,
            "base_uri": "/store/data",
        },
        {
            "name": "model",
            "uri": f"art://{model}:v2",
            "type": "model",
            "digest": "e" * 64,
            "base_uri": "s3://b/m",
        },
        {"name": "raw", "uri": "/some/folder", "type": None, "digest": None, "base_uri": None},
    ]
    made = manifest(out, producer={"run_id": run_id, "attempt": 1})
    events = journal_of(
        started(run_id, inputs=inputs),
        metrics(loss=3.5),
        {
            "type": "system",
            "points": [{"key": "cpu_utilization_percentage", "value": 50.0, "step": 1, "ts": START}],
        },
        {"type": "checkpoint", "step": 100, "uri": "s3://b/c/iter_0000100", "bytes": 10, "seconds": 0.5},
        {"type": "restored", "step": 50, "uri": "s3://b/c/iter_0000050"},
        {"type": "interrupted", "signal": "SIGTERM"},
        {"type": "output", "manifest": json.loads(made.to_json())},
        ended(),
    )
    run = run_of(tracking, mlflow_view.apply(events, tracking=tracking, run_id=run_id))
    assert run.info.run_name == run_id
    assert run.info.status == "FINISHED"
    assert run.info.start_time == int((START + 1) * 1000)
    assert run.info.end_time == int((START + 8) * 1000)
    assert run.data.params == {"train.lr": "0.001", "train.steps": "100"}
    assert run.data.metrics == {
        "loss": 3.5,
        "system/cpu_utilization_percentage": 50.0,
        "checkpoint/bytes": 10,
        "checkpoint/seconds": 0.5,
        "cost_usd": 1.25,
    }
    for key, value in {
        "mlflow.source.git.commit": "a" * 40,
        "mlflow.user": "ada",
        "mlflow.runName": run_id,
        "mlflow.source.name": "nemo-sky launch tiny pretrain",
        "nemo_sky.git_dirty": "True",
        "nemo_sky.image": "python:3.11",
        "nemo_sky.cost_usd": "1.25",
        "version.torch": "2.13.0",
        "checkpoint.uri": "s3://b/c/iter_0000100",
        f"art.in.{data}": "v1",
        f"art.in.{model}": "v2",
        f"art.out.{out}": "v1",
    }.items():
        assert run.data.tags[key] == value, key
    shown = {item.dataset.name: item for item in run.inputs.dataset_inputs}
    assert set(shown) == {f"{data}:v1", "/some/folder"}
    assert shown[f"{data}:v1"].dataset.digest == "d" * 36
    assert json.loads(shown[f"{data}:v1"].dataset.source) == {"uri": "/store/data"}
    assert shown[f"{data}:v1"].tags[0].value == "data"
    with connected(tracking) as client:
        used = [client.get_logged_model(item.model_id) for item in run.inputs.model_inputs]
        assert {item.tags["art.uri"] for item in used} == {f"art://{data}:v1", f"art://{model}:v2"}
        (output,) = run.outputs.model_outputs
        made_model = client.get_logged_model(output.model_id)
        assert (output.step, made_model.source_run_id) == (100, run.info.run_id)
        assert made_model.tags["art.uri"] == f"art://{out}:v1"
        assert made_model.params["final_loss"] == "1.25"
        consumers = client.search_runs([run.info.experiment_id], f"tags.`art.in.{model}` = 'v2'")
        assert [item.info.run_id for item in consumers] == [run.info.run_id]
        version = client.get_model_version(out, "1")
        assert (version.run_id, version.tags["art.model_id"]) == (run.info.run_id, output.model_id)
    child = attempts_of(tracking, run_id)[1]
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
    for key, value in {
        "place.cloud": "local",
        "price_per_hour": "2.5",
        "cost_usd": "1.25",
        "restored.step": "50",
        "interrupted": "SIGTERM",
    }.items():
        assert child.data.tags[key] == value, key
    assert "place.region" not in child.data.tags
    assert child.data.metrics == {"hours": 0.5, "cost_usd": 1.25}


def test_a_resumed_run_runs_again_and_adds_up(tracking: str) -> None:
    run_id = unique("run")
    first = journal_of(started(run_id), metrics(loss=3.0), ended("interrupted"))
    run = mlflow_view.apply(first, tracking=tracking, run_id=run_id)
    assert run_of(tracking, run).info.status == "KILLED"
    changed = {"train.lr": "0.002", "train.steps": "100"}
    second = journal_of(started(run_id, 2, params=changed), metrics(loss=2.0), at=START + 100)
    assert mlflow_view.apply(second, tracking=tracking, run_id=run_id) == run
    assert run_of(tracking, run).info.status == "RUNNING"
    third = journal_of(started(run_id, 3), ended("failed", cost_usd=None), at=START + 200)
    mlflow_view.apply(third, tracking=tracking, run_id=run_id)
    shown, attempts = run_of(tracking, run), attempts_of(tracking, run_id)
    assert shown.info.status == "FAILED"
    assert shown.data.tags["nemo_sky.cost_usd"] == "1.25", "what is known of the cost"
    assert shown.data.params["train.lr"] == "0.001"
    assert attempts[2].data.params == {"train.lr": "0.002"}
    assert {number: child.info.status for number, child in attempts.items()} == {
        1: "KILLED",
        2: "KILLED",  # its agent never said how it ended, and a later attempt began
        3: "FAILED",
    }
    late = [*second, {"seq": 3, "ts": START + 150, **ended("succeeded")}]
    mlflow_view.apply(late, tracking=tracking, run_id=run_id)
    assert run_of(tracking, run).info.status == "FAILED", "an earlier attempt does not speak for the run"
    assert run_of(tracking, run).data.tags["nemo_sky.cost_usd"] == "2.5"


def test_the_ledger_has_the_last_word_on_costs(tracking: str) -> None:
    run_id = unique("run")
    journals = [
        journal_of(started(run_id)),
        journal_of(started(run_id, 2), ended("succeeded"), at=START + 100),
    ]
    for journal in journals:
        run = mlflow_view.apply(journal, tracking=tracking, run_id=run_id)
    assert "cost_usd" not in attempts_of(tracking, run_id)[1].data.metrics, "it was killed"
    for _ in range(2):
        mlflow_view.costs({1: 2.5, 2: 1.5}, 4.125, tracking=tracking, run_id=run_id)
    shown, attempts = run_of(tracking, run), attempts_of(tracking, run_id)
    assert [attempts[n].data.metrics["cost_usd"] for n in (1, 2)] == [2.5, 1.5]
    assert (shown.data.metrics["cost_usd"], shown.data.tags["nemo_sky.cost_usd"]) == (4.125, "4.125")
    with connected(tracking) as client:
        values = [point.value for point in client.get_metric_history(run, "cost_usd")]
    assert values == [1.25, 4.125], "the agent's word, then the ledger's, once"
    mlflow_view.costs({1: 1.0}, 1.0, tracking=tracking, run_id="nobody-knows-it")


def test_numbers_that_are_not_finite_and_limits(tracking: str) -> None:
    run_id = unique("run")
    points = [{"key": f"m{n % 7}", "value": float(n), "step": n, "ts": START + n} for n in range(2500)]
    params = {f"p.{n}": str(n) for n in range(250)} | {"long": "x" * 7000, "bad*key//é": "1", "..": "2"}
    events = journal_of(
        started(run_id, params=params, run={"family": "tiny", "command": "y" * 9000}),
        {"type": "metrics", "points": points},
        metrics(nan=math.nan, inf=math.inf, minus=-math.inf, **{"val/loss [1]": 1.0}),
        {
            "type": "metrics",
            "points": [{"key": "in_ms", "value": 1, "ts": START * 1000}, {"key": "bare", "value": 2}],
        },
    )
    run = mlflow_view.apply(events, tracking=tracking, run_id=run_id)
    shown = run_of(tracking, run)
    assert math.isnan(shown.data.metrics["nan"])
    assert shown.data.metrics["inf"] > 1e308
    assert shown.data.metrics["minus"] < -1e308
    assert shown.data.metrics["val/loss _1_"] == 1.0
    assert len(shown.data.params) == 253
    assert shown.data.params["long"] == "x" * 5991 + " ...[cut]"
    assert shown.data.params["bad_key/é"] == "1"
    assert shown.data.tags["mlflow.source.name"].endswith("y ...[cut]")
    with connected(tracking) as client:
        history = client.get_metric_history(run, "m0")
        assert len(history) == len(range(0, 2500, 7))
        for key, when in (("in_ms", START * 1000), ("bare", (START + 4) * 1000)):
            assert client.get_metric_history(run, key)[0].timestamp == int(when)


def test_versions_have_the_same_numbers_in_mlflow(tracking: str, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    (tmp_path / "file").write_text("x")
    name = unique("team/data")
    for _ in range(3):
        registry.import_path(store, tmp_path / "file", name, "eval-report", {"scores": {}})
    third = registry.resolve(store, ArtifactRef(name, 3))
    mlflow_view.register(third, tracking, store)
    mlflow_view.register(third, tracking, store)
    with connected(tracking) as client:
        versions = client.search_model_versions(f"name = '{name.replace('/', '~')}'")
        shown = {int(item.version): item.tags["art.uri"] for item in versions}
        assert shown == {n: f"art://{name}:v{n}" for n in (1, 2, 3)}
        assert {item.tags["art.digest"] for item in versions} == {third.digest}
        assert versions[0].source == f"file://{store.uri(third.base)}"


def test_a_version_of_which_nothing_was_known_is_filled_in(tracking: str) -> None:
    name = unique("data")
    mlflow_view.register(manifest(name, 2), tracking)
    with connected(tracking) as client:
        assert client.get_model_version(name, "1").tags["art.pending"] == "true"
    mlflow_view.register(manifest(name, 1), tracking)
    with connected(tracking) as client:
        version = client.get_model_version(name, "1")
        model = client.get_logged_model(version.tags["art.model_id"])
        for tags in (version.tags, model.tags):
            assert tags["art.digest"] == "1" * 64
            assert "art.pending" not in tags


def test_two_stores_with_one_name_are_not_confused(tracking: str) -> None:
    name, run_id = unique("data"), unique("run")
    mlflow_view.register(manifest(name), tracking)
    other = manifest(name, digest="9" * 64)
    with pytest.raises(Refused, match=f"has another artifact as art://{name}:v1, from another store"):
        mlflow_view.register(other, tracking)
    events = journal_of(started(run_id), {"type": "output", "manifest": json.loads(other.to_json())}, ended())
    run = run_of(tracking, mlflow_view.apply(events, tracking=tracking, run_id=run_id))
    with connected(tracking) as client:
        (output,) = run.outputs.model_outputs
        assert client.get_logged_model(output.model_id).tags["art.digest"] == "9" * 64
        assert client.get_model_version(name, "1").tags["art.digest"] == "1" * 64


def test_aliases(tracking: str) -> None:
    name = unique("team/model")
    assert mlflow_view.get_alias(tracking, name, "champion") is None
    with pytest.raises(Refused, match=f"does not know art://{name}:v1"):
        mlflow_view.set_alias(tracking, name, "champion", 1)
    mlflow_view.register(manifest(name, 2), tracking)
    for version in (1, 2):
        mlflow_view.set_alias(tracking, name, "champion", version)
        assert mlflow_view.get_alias(tracking, name, "champion") == version
    with pytest.raises(UserError, match="cannot be an alias"):
        mlflow_view.set_alias(tracking, name, "latest", 1)


def test_an_alias_in_no_database_makes_none(tmp_path: Path) -> None:
    assert mlflow_view.get_alias(f"sqlite:///{tmp_path / 'none.db'}", "data", "champion") is None
    assert list(tmp_path.iterdir()) == []


def test_sync_replays_what_agents_left_and_what_came_before(tracking: str, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    (tmp_path / "file").write_text("x")
    first, second, data = unique("prep"), unique("train"), unique("data")
    made = registry.publish(
        store,
        name=data,
        type="eval-report",
        metadata={"scores": {}},
        inputs={},
        producer={"run_id": first, "attempt": 1},
        directory=tmp_path / "file",
    )
    inputs = [
        {
            "name": "data",
            "uri": made.uri,
            "type": made.type,
            "digest": made.digest,
            "base_uri": store.uri(made.base),
        }
    ]
    journals = {
        f"runs/{first}/journal/1.jsonl": journal_of(
            started(first), {"type": "output", "manifest": json.loads(made.to_json())}, ended()
        ),
        f"runs/{second}/journal/2.jsonl": journal_of(
            started(second, 2, inputs=inputs), ended(), at=START + 50
        ),
        f"runs/{second}/journal/10.jsonl": journal_of(started(second, 10), ended("failed"), at=START + 90),
        f"runs/{second}/journal/3.jsonl": [],
    }
    for key, events in journals.items():
        store.put_bytes(key, b"".join(json.dumps(event).encode() + b"\n" for event in events) + b'{"torn')
    assert sync_run(store, tracking, "no-such-run") is None
    run = sync_run(store, tracking, second)
    assert run is not None
    assert sync_run(store, tracking, second) == run
    assert run_of(tracking, run).info.status == "FAILED", "attempt 10 comes after attempt 2"
    with connected(tracking) as client:
        (used,) = client.get_run(run).inputs.model_inputs
        maker = client.get_logged_model(used.model_id).source_run_id
        assert client.get_run(maker).info.run_name == first


@pytest.mark.parametrize("events", [[], journal_of(metrics(loss=1.0)), journal_of(started("r"))[1:]])
def test_what_is_no_journal_is_refused(tracking: str, events: list[Event]) -> None:
    with pytest.raises(UserError, match="does not begin with attempt_started"):
        mlflow_view.apply(events, tracking=tracking, run_id="r")


def test_only_a_server_has_pages(tracking: str) -> None:
    assert mlflow_view.links(tracking, "r") == {}
    assert mlflow_view.links("http://127.0.0.1:9", "r") == {}  # nothing listens there


def test_mlflow_is_not_heard(mlflow_template: MlflowTemplate, tracking: str, tmp_path: Path) -> None:
    assert mlflow_template.printed == "", "while it made its database"
    run_id = unique("run")
    (tmp_path / "events.json").write_text(json.dumps(journal_of(started(run_id), metrics(a=1.0), ended())))
    program = (
        "import json, os, sys; from launcher.lineage import mlflow_view\n"
        "before = dict(os.environ)\n"
        "mlflow_view.apply(json.load(open(sys.argv[1])), tracking=sys.argv[2], run_id=sys.argv[3])\n"
        "assert dict(os.environ) == before, 'what a trainer would inherit'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "events.json"), tracking, run_id],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["events.json"], "no ./mlruns, no ./mlflow.db"
