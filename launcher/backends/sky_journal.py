"""What the agents of a run wrote to the store, which knows more of it than SkyPilot does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.agent import limits, rendezvous
from launcher.agent.ends import CANCELLED, INTERRUPTED
from launcher.artifacts.store import Store, StoreError, open_store
from launcher.errors import UserError
from launcher.lineage import sync
from launcher.lineage.journal import Event

FRESH_S = 180.0
"""An agent that lives, and has its store, adds to its journal every ten seconds (agent/system.py)."""
_POLL_S = 1.0


@dataclass(frozen=True)
class Journals:
    """The events of a run's attempts that began after its last submission, in order."""

    store: Store
    run_id: str
    attempts: tuple[list[Event], ...]

    @property
    def last(self) -> Event | None:
        """The newest event of all."""
        return self.attempts[-1][-1] if self.attempts else None

    @property
    def attempt(self) -> rendezvous.Attempt:
        """The newest attempt. There must be one."""
        return rendezvous.Attempt(self.store, self.run_id, int(self.attempts[-1][0].get("attempt", 0)))

    def ends(self) -> list[Event | None]:
        """How each attempt ended, None for one that could not say."""
        return [limits.end_of(events) for events in self.attempts]


def read(run_dir: Path, since: float) -> Journals | None:
    """The journals of a run that was submitted at ``since`` (epoch seconds); None before its files are
    written. Raises StoreError."""
    import yaml

    try:
        job = yaml.safe_load((run_dir / "job" / "job.yaml").read_text())
        store = open_store(job["artifacts"], job["s3_endpoint"])
        attempts = sync.attempts(store, run_dir.name)
    except StoreError:
        raise
    except (OSError, UserError):
        return None
    return Journals(store, run_dir.name, tuple(events for events in attempts if events[-1]["ts"] > since))


def end_of(run_dir: Path, since: float) -> Mapping[str, Any] | None:
    """``status`` and ``reason`` of the last attempt's end, in the agent's words. Where that could not write
    its end: what its nodes were asked to end as. None when nothing of it is known."""
    with contextlib.suppress(StoreError):
        journals = read(run_dir, since)
        if journals and journals.last:
            if journals.last["type"] == "attempt_ended":
                return journals.last
            asked = journals.attempt.read(rendezvous.STOP)
            return asked if asked and asked.get("leaves_at") is None else None
    return None


def goes_on(run_dir: Path, since: float) -> str | None:
    """Why a run whose nodes do not answer SkyPilot is taken to go on; None when nothing says so."""
    try:
        journals = read(run_dir, since)
    except StoreError as error:
        return f"neither its nodes nor the store answer: {error.message}"
    last = journals.last if journals else None
    if last is None or last["type"] == "attempt_ended" or time.time() - last["ts"] > FRESH_S:
        return None
    return "its nodes do not answer SkyPilot now, and go on writing to its journal"


def preemptions(run_dir: Path, since: float, recoveries: int, active: bool) -> int:
    """How often the run was preempted. Of SkyPilot's recoveries some followed a failure, and one may stand
    for two losses, when nodes go before it has seen that they are there; of nodes lost before their agent
    began it alone knows. Its own count when the store does not answer."""
    with contextlib.suppress(StoreError):
        journals = read(run_dir, since)
        ends = journals.ends() if journals else []
        begun_again = ends if active else ends[:-1]
        failed = sum(1 for end in begun_again if end and end["status"] == "failed")
        return max(sum(map(limits.was_lost, ends[:-1])), recoveries - failed)
    return recoveries


def let_it_save(run_dir: Path, since: float, seconds: float) -> None:
    """Ask the running attempt, through the store, to save and to end, and wait for that. SkyPilot would kill
    it: on Slurm at once, elsewhere after 30 s (skylet/subprocess_daemon.py)."""
    deadline = time.monotonic() + seconds
    asked = False
    with contextlib.suppress(StoreError):  # then nobody can be asked
        while (journals := read(run_dir, since)) and (last := journals.last):
            if last["type"] == "attempt_ended" or time.monotonic() > deadline:
                return
            if not asked:
                with contextlib.suppress(UserError):
                    journals.attempt.stop(CANCELLED, INTERRUPTED, "cancelled")
                asked = True
            time.sleep(_POLL_S)
