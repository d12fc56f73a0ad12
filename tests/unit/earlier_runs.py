"""Journals of runs that have ended, as their agents leave them in a store."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher import runs
from launcher.artifacts.store import Store
from launcher.lineage.journal import Journal, flat


def ended(
    store: Store,
    name: str,
    when: str,
    *,
    config: str = "default",
    gpus: str | None = None,
    nodes: int = 1,
    values: Mapping[str, object] | None = None,
    speeds: Sequence[float] = (),
    hours: float | None = 1.5,
    attempt: int = 1,
) -> str:
    """Write the journal of an attempt of stage ``name``, begun at ``when`` (as 20261121-100000); returns the
    run's id. With ``hours`` None it was killed."""
    family, _, stage = name.partition("/")
    run_id = f"{runs.stem(family, stage)}{when}-0123abcd"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.jsonl")
        journal = Journal(path)
        journal.append(
            "attempt_started",
            attempt=attempt,
            run={"family": family, "stage": stage, "config": config, "gpus": gpus, "run_id": run_id},
            params=flat(values or {}),
            inputs=[],
            place={"cloud": "AWS", "nodes": nodes},
        )
        for step, speed in enumerate(speeds):
            point = {"key": "tokens_per_second", "value": speed, "step": step, "ts": 0}
            journal.append("metrics", points=[point])
        if hours is not None:
            journal.append(
                "attempt_ended", status="succeeded", exit_code=0, hours=hours, cost_usd=None, reason=None
            )
        journal.close()
        store.put_bytes(f"runs/{run_id}/journal/{attempt}.jsonl", path.read_bytes())
    return run_id
