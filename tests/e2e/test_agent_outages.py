"""The store is away for a while, from any moment of an attempt on: it ends as if nothing had happened."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from launcher.artifacts import checkpoints, registry
from launcher.artifacts.uri import ArtifactRef
from launcher.money.ledger import account_name, open_ledger
from tests.e2e.s3 import FAKE_CREDENTIALS, serve
from tests.rig import Rig, make_rig

OUTAGE_S = 1.5
# After this part of the requests, or at the first one of this key.
MOMENTS = (0, 0.25, 0.5, "iter_0000020/.nemo-sky/manifest.json", "end.json", "toy-model/v1.json")


def result(rig: Rig, printed: str) -> dict[str, Any]:
    """All that must not depend on an outage."""
    store, events = rig.store, rig.journal(1)
    (entry,) = open_ledger(store).read(account_name(rig.run_id, None)).of(rig.run_id)
    newest = checkpoints.newest(store, rig.run_id)
    versions = registry.versions(store, "toy-model")
    return {
        "journals": store.children(f"runs/{rig.run_id}/journal"),
        "steps": [point["step"] for e in events if e["type"] == "metrics" for point in e["points"]],
        "end": (events[-1]["type"], events[-1].get("status")),
        "newest": newest and newest.step,
        "models": [registry.resolve(store, ArtifactRef("toy-model", n)).metadata for n in versions],
        "settled": entry.ended is not None,
        "loss": printed.split("final loss ")[1].split()[0],
    }


def test_a_store_that_goes_away_at_any_request_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run in peace, then one for each moment, all at once."""
    for key, value in FAKE_CREDENTIALS.items():
        monkeypatch.setenv(key, value)

    def run(name: str, **lost: Any) -> tuple[dict[str, Any], int, bool]:
        (tmp_path / name).mkdir()
        with ExitStack() as stack:
            endpoint, gate = stack.enter_context(serve(f"bucket-{name}"))
            rig = stack.enter_context(make_rig(tmp_path / name))
            rig.job |= {"artifacts": f"s3://bucket-{name}/here", "s3_endpoint": endpoint}
            if lost:
                gate.lose(OUTAGE_S, **lost)
            printed = rig.run("20", "save=5", "sleep=0.02", NEMO_SKY_STORE_RETRY_S="60")
            requests = gate.requests
            return result(rig, printed), requests, gate.lost

    whole, requests, _ = run("whole")
    assert (len(whole["models"]), whole["newest"], whole["steps"]) == (1, 20, list(range(1, 21)))
    assert whole["settled"]

    def with_outage(number: int) -> tuple[dict[str, Any], int, bool]:
        when = MOMENTS[number]
        begins = {"word": when} if isinstance(when, str) else {"after": int(when * requests)}
        return run(f"lost-{number}", **begins)

    with ThreadPoolExecutor(len(MOMENTS)) as pool:
        outcomes = list(pool.map(with_outage, range(len(MOMENTS))))
    for when, (found, _, came) in zip(MOMENTS, outcomes, strict=True):
        assert came, f"there was no request {when}"
        assert found == whole, f"away from {when} on"
