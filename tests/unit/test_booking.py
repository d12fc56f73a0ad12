"""How a launch's reservation ends: by whoever saw its end, and however late anybody looks."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.artifacts.store import FileStore
from launcher.backends import State
from launcher.backends.base import Attempt
from launcher.money import account, booking
from launcher.money.account import HOUR_MS, About, Entry
from launcher.money.ledger import now_ms, open_ledger
from launcher.runs import Run

ABOUT = About("tiny", "pretrain", "ann", "aws")
NOW = time.time_ns() // 1_000_000
LONG_AGO = NOW - 60 * HOUR_MS
# A hundred dollars an hour, for twenty minutes at first.
ONE = Entry("r-1", "r", 100_000_000, LONG_AGO, LONG_AGO + HOUR_MS // 3)
RUN = Run("r", "tiny", "pretrain", "default", "", "aws", "sky", 1, "", "", None, "", "")
NO_ROOM = (
    "SkyPilot could not launch it: Failed to provision all possible launchable resources. Relax the task's "
    "resource requirements: 1x AWS(H100:8)"
)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def settled(store: FileStore, entry: Entry, state: State) -> float:
    """Dollars that the run has cost once it is settled, twice."""
    ledger = open_ledger(store)
    ledger.change("runs/r", lambda held: account.reserve(held, entry, ABOUT))
    booking.settle(store, RUN, state)
    once = ledger.read("runs/r")
    assert booking.settle(store, RUN, state)
    assert ledger.read("runs/r") == once, "settled again it is the same"
    return once.committed() / account.MICROS


def test_who_looks_late_adds_nothing(store: FileStore) -> None:
    ended = replace(ONE, attempt=1, until=LONG_AGO + HOUR_MS, ended=LONG_AGO + HOUR_MS)
    assert settled(store, ended, State("SUCCEEDED")) == 100


def test_what_nobody_settled_ended_with_its_lease_however_late_one_looks(store: FileStore) -> None:
    assert settled(store, replace(ONE, attempt=1), State("LOST")) == pytest.approx(100 / 3, abs=1e-5)


def test_who_looks_at_once_frees_the_rest_of_the_lease(store: FileStore) -> None:
    now = now_ms()
    fresh = replace(ONE, attempt=1, launched=now - HOUR_MS // 10, until=now + HOUR_MS)
    assert 10 <= settled(store, fresh, State("FAILED")) < 20, "an hour more is reserved"


def test_an_end_that_the_backend_saw_counts(store: FileStore) -> None:
    seen = Attempt(1, "", "failed", (1,), "2026-01-01T00:30:00+00:00")
    entry = replace(ONE, launched=1_767_225_600_000, until=1_767_225_600_000 + HOUR_MS)
    assert settled(store, entry, State("FAILED", attempts=(seen,))) == 50


def test_a_launch_that_got_no_nodes_costs_nothing(store: FileStore) -> None:
    assert settled(store, ONE, State("FAILED", reason=NO_ROOM)) == 0


@pytest.mark.parametrize("entry", [replace(ONE, attempt=1), replace(ONE, ended=ONE.until)])
def test_an_attempt_that_ran_before_there_was_no_room_does(store: FileStore, entry: Entry) -> None:
    assert settled(store, entry, State("FAILED", reason=NO_ROOM)) == pytest.approx(100 / 3, abs=1e-5)


def test_nodes_that_may_have_been_up_cost_until_the_end_of_their_lease(store: FileStore) -> None:
    state = State("FAILED", reason="SkyPilot could not launch it: CommandError: set-up failed")
    assert settled(store, ONE, state) == pytest.approx(100 / 3, abs=1e-5)


def test_nodes_that_may_be_up_still_stay_reserved(store: FileStore) -> None:
    fresh = replace(ONE, attempt=1, launched=NOW - HOUR_MS // 10, until=NOW + HOUR_MS)
    ledger = open_ledger(store)
    held = ledger.change("runs/r", lambda held: account.reserve(held, fresh, ABOUT))
    assert booking.settle(store, RUN, State("FAILED"), gone=False)
    assert ledger.read("runs/r") == held
