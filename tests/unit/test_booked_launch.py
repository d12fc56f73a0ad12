"""What a launch's caps put into its task and its terms, from the request on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher import clusters, job, plan
from launcher.artifacts.store import FileStore
from launcher.money import booking
from launcher.money.caps import from_flags
from launcher.money.ledger import now_ms
from tests.unit.test_booking import RUN
from tests.unit.test_tariff import project_at, set_catalogs

MINUTE = 60_000


def launched(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, ours: bool = False, **asked: Any
) -> tuple[dict[str, Any], booking.Booking, list[str]]:
    """The task that is submitted for the request, its booking, and what a person is told."""
    set_catalogs(monkeypatch)
    here = project_at(root)
    caps = from_flags(budget=asked.pop("budget", None), deadline=asked.pop("deadline", None))
    placement = clusters.Placement(market=asked.pop("market", None))
    request = plan.Request(
        "demo", "one", cluster="aws", placement=placement, caps=caps, ignore_estimates=True, **asked
    )
    [draft] = plan.plans(request, here, plan.select(request, here))
    store, said = FileStore(root / "store"), list[str]()
    wanted = job.task_of(draft, here, "r")
    booked = booking.book(draft, RUN, request, here, store, wanted, said.append, ours)
    return job.write(draft, RUN, here, request, store, (), booked, ours), booked, said


def test_a_deadline_alone_has_a_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, booked, _ = launched(tmp_path, monkeypatch, deadline="60h")
    assert not booked.capped
    assert "launcher/agent/fuse.py" in task["setup"]
    burns = float(task["envs"]["NEMO_SKY_FUSE_AT"]) - now_ms() / 1000
    assert burns == pytest.approx(60 * 3600 - 240, abs=60), "less the teardown, plus one check"


def test_a_budget_s_fuse_goes_by_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _, _ = launched(tmp_path, monkeypatch, budget="9k", deadline="60h")
    assert task["envs"]["NEMO_SKY_FUSE_AT"] == "0.0"
    assert float(task["envs"]["NEMO_SKY_FUSE_DEADLINE"]) > 0


def test_without_either_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _, _ = launched(tmp_path, monkeypatch)
    assert "fuse" not in str(task)


@pytest.mark.parametrize(
    ("asked", "minutes"),
    [
        ({}, 5),
        ({"detach": True}, 11),
        ({"detach": True, "deadline": "60h"}, 5),
        ({"detach": True, "managed": True}, 5),
    ],
)
def test_who_is_detached_pays_for_idle_nodes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], minutes: int
) -> None:
    """Nobody takes down a cluster of its own but SkyPilot's skylet, after 10 minutes, or the fuse at once."""
    _, booked, _ = launched(tmp_path, monkeypatch, **asked)
    assert booked.lease.teardown == minutes * MINUTE


@pytest.mark.parametrize(
    ("asked", "again"),
    [
        ({}, True),
        ({"budget": "9k"}, False),
        ({"deadline": "60h"}, False),
        ({"budget": "9k", "market": "spot"}, False),
        ({"budget": "9k", "market": "spot", "ours": True}, True),
    ],
)
def test_what_reached_its_cap_is_not_begun_again_by_who_asks_no_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], again: bool
) -> None:
    task, _, said = launched(tmp_path, monkeypatch, retries=2, **asked)
    recovery = task["resources"]["job_recovery"]
    assert recovery.get("max_restarts_on_errors") == (2 if again else None)
    assert recovery["strategy"] == ("NEMO_SKY" if asked.get("ours") else "FAILOVER")
    assert (
        any("--retries 2: SkyPilot's FAILOVER begins no failed job again" in line for line in said) != again
    )


def test_a_dry_run_says_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_catalogs(monkeypatch)
    here = project_at(tmp_path)
    request = plan.Request(
        "demo", "one", cluster="aws", caps=from_flags("9k"), retries=2, ignore_estimates=True
    )
    [draft] = plan.plans(request, here, plan.select(request, here))
    store = FileStore(tmp_path / "store")
    wanted = job.task_of(draft, here, "r")
    told = booking.foretell(draft, "r", request, here, store, wanted, ours=False)
    assert any(line.startswith("--retries 2: ") for line in told.lines)
