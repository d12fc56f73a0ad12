"""What a run's journals in the store say where SkyPilot knows less."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from launcher.agent.ends import BUDGET, BUDGET_REACHED
from launcher.agent.rendezvous import Attempt
from launcher.artifacts.store import open_store
from launcher.backends import sky, sky_calls, sky_journal
from launcher.backends.base import State
from launcher.config import dump_yaml
from launcher.lineage.journal import Event

CLUSTER = sky_calls.Job(None, cluster="run", place={"cloud": "aws"}, price_per_hour=2.0)
SUBMITTED = 1000.0
TICKET = sky.Ticket(False, "request", SUBMITTED, "run")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The folder of a run whose store is a folder beside it."""
    folder = tmp_path / "runs" / "run"
    (folder / "job").mkdir(parents=True)
    facts = {"artifacts": str(tmp_path / "store"), "s3_endpoint": None}
    (folder / "job" / "job.yaml").write_text(dump_yaml(facts))
    return folder


def journal(run_dir: Path, attempt: int, *events: Event) -> None:
    lines = [
        json.dumps({"seq": n, "ts": SUBMITTED + n, **event}) for n, event in enumerate(events, 1)
    ]  # fmt: skip
    store = open_store(str(run_dir.parents[1] / "store"))
    store.put_bytes(f"runs/run/journal/{attempt}.jsonl", "".join(f"{line}\n" for line in lines).encode())


def started(attempt: int) -> Event:
    return {"type": "attempt_started", "attempt": attempt, "run": {}}


def ended(status: str) -> Event:
    return {"type": "attempt_ended", "status": status, "reason": "why"}


def test_nodes_that_train_are_not_lost_because_skypilot_cannot_look_at_them(run_dir: Path) -> None:
    """A cluster is INIT to it then, and has no job that it could name."""
    journal(run_dir, 1, started(1), {"type": "system", "points": [], "ts": time.time() - 20})
    state = sky._without_a_job(run_dir, TICKET, CLUSTER, broken_off=False)
    assert (state.status, state.active, state.price_per_hour) == ("RUNNING", True, 2.0)
    assert sky._without_a_job(run_dir, TICKET, CLUSTER, broken_off=True).status == "LOST"
    assert sky._without_a_job(run_dir, TICKET, None, broken_off=False).status == "LOST"


def test_nodes_that_answer_nobody_are_lost(run_dir: Path) -> None:
    journal(run_dir, 1, started(1), {"type": "system", "points": [], "ts": time.time() - 600})
    state = sky._without_a_job(run_dir, TICKET, CLUSTER, broken_off=False)
    assert state.status == "LOST"
    assert "nemo-sky down run" in str(state.reason)


def test_a_store_that_does_not_answer_loses_nothing(run_dir: Path) -> None:
    facts = {"artifacts": "s3://fake-bucket/none", "s3_endpoint": "http://127.0.0.1:9"}
    (run_dir / "job" / "job.yaml").write_text(dump_yaml(facts))
    state = sky._without_a_job(run_dir, TICKET, CLUSTER, broken_off=False)
    assert (state.status, state.active) == ("RUNNING", True)
    assert sky_journal.end_of(run_dir, SUBMITTED) is None
    assert sky_journal.preemptions(run_dir, SUBMITTED, 3, active=True) == 3


def test_an_end_that_was_never_written_is_the_one_that_was_asked_for(run_dir: Path) -> None:
    """The agent ends there and then when a save hangs beyond the cap."""
    journal(run_dir, 1, started(1))
    store = open_store(str(run_dir.parents[1] / "store"))
    assert sky_journal.end_of(run_dir, SUBMITTED) is None
    Attempt(store, "run", 1).stop(BUDGET_REACHED, BUDGET, "budget reached ($3.00 this attempt)")
    state = sky._finish(run_dir, TICKET, State("FAILED"), sky_calls.Job("FAILED"))
    assert (state.status, state.reason) == ("BUDGET_REACHED", "budget reached ($3.00 this attempt)")


def test_an_end_of_an_earlier_submission_is_none_of_this_one(run_dir: Path) -> None:
    journal(run_dir, 1, started(1), ended(BUDGET_REACHED))
    assert sky_journal.end_of(run_dir, SUBMITTED) == {
        "seq": 2, "ts": SUBMITTED + 2, "type": "attempt_ended", "status": BUDGET_REACHED, "reason": "why"
    }  # fmt: skip
    assert sky_journal.end_of(run_dir, SUBMITTED + 10) is None


@pytest.mark.parametrize(
    ("ends", "recoveries", "active", "expected"),
    [
        (["interrupted", None], 1, True, 1),
        (["failed", None], 1, True, 0),
        (["failed", "interrupted", None], 2, True, 1),
        (["failed", "failed", "failed"], 2, False, 0),
        ([None, "succeeded"], 1, False, 1),
        ([None], 2, True, 2),  # preempted before its agent began, twice
        ([None, None, "interrupted", "succeeded"], 2, False, 3),  # two losses seen as one
    ],
)
def test_what_was_begun_again_after_a_failure_was_not_preempted(
    run_dir: Path, ends: list[str | None], recoveries: int, active: bool, expected: int
) -> None:
    for number, end in enumerate(ends, 1):
        journal(run_dir, number, started(number), *([ended(end)] if end else []))
    assert sky_journal.preemptions(run_dir, SUBMITTED, recoveries, active) == expected


def test_the_stages_of_a_pipeline_end_together(run_dir: Path) -> None:
    for name, job, task in (
        ("a", "all", 1),
        ("b", "all", 0),
        ("c", "c", 0),
        ("d", "other", 0),
        ("e", "e", 0),
    ):
        (run_dir.parent / name).mkdir()
        ticket = sky.Ticket(True, None, 0.0, job, task)
        (run_dir.parent / name / "sky.json").write_text(json.dumps(asdict(ticket)))
    assert sky.together(run_dir.parent / "a") == ["b"]
    assert sky.together(run_dir.parent / "b") == ["a"]
    assert sky.together(run_dir.parent / "c") == []
    assert sky.together(run_dir) == []
