"""Journals and manifests for tests of what MLflow shows, and what it then shows."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from launcher.artifacts.manifest import Manifest
from launcher.lineage.journal import Event
from launcher.lineage.mlflow_client import connected

START = 1_700_000_000.0


def manifest(name: str, version: int = 1, **changes: Any) -> Manifest:
    made = Manifest(
        name=name,
        version=version,
        type="model",
        created_at="2026-01-01T00:00:00+00:00",
        base=f"artifacts/{name}/data/{version}",
        files=(),
        digest=f"{version}" * 64,
        metadata={"step": 100, "final_loss": 1.25},
        producer={"run_id": "r"},
    )
    return replace(made, **changes)


def started(run_id: str, attempt: int = 1, **changes: Any) -> Event:
    return {
        "type": "attempt_started",
        "attempt": attempt,
        "run": {
            "run_id": run_id,
            "family": "tiny",
            "stage": "pretrain",
            "experiment": "tiny",
            "fingerprint": "f" * 64,
            "git_sha": "a" * 40,
            "git_dirty": True,
            "user": "ada",
            "command": "nemo-sky launch tiny pretrain",
            "image": "python:3.11",
            "versions": {"torch": "2.13.0"},
        },
        "params": {"train.lr": "0.001", "train.steps": "100"},
        "inputs": [],
        "place": {"cloud": "local", "region": None, "nodes": 1},
        "price_per_hour": 2.5,
        **changes,
    }


def metrics(**values: float) -> Event:
    points = [{"key": key, "value": value, "step": 10, "ts": START} for key, value in values.items()]
    return {"type": "metrics", "points": points}


def ended(status: str = "succeeded", **changes: Any) -> Event:
    return {
        "type": "attempt_ended",
        "status": status,
        "exit_code": 0,
        "hours": 0.5,
        "cost_usd": 1.25,
        "reason": None,
        **changes,
    }


def journal_of(*events: Event, at: float = START) -> list[Event]:
    return [{"seq": number, "ts": at + number, **event} for number, event in enumerate(events, start=1)]


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def run_of(tracking: str, run: str) -> Any:
    with connected(tracking) as client:
        return client.get_run(run)


def attempts_of(tracking: str, run_id: str) -> dict[int, Any]:
    with connected(tracking) as client:
        everywhere = [item.experiment_id for item in client.search_experiments()]
        found = client.search_runs(everywhere, f"tags.`nemo_sky.attempt_of` = '{run_id}'")
        return {int(child.data.tags["nemo_sky.attempt"]): child for child in found}
