"""What every backend does, and how it says what became of a run.

RUN_DIR/state.json is written by the backend alone:

    {status, pid, pid_start, attempts: [{n, started_at, ended_at, status, exit_codes}], reason, tail, ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

ACTIVE = ("PENDING", "SETUP", "RUNNING", "RECOVERING")


@dataclass(frozen=True)
class Attempt:
    """One stay of a run on its nodes. Times are UTC in ISO 8601; an exit code is None until its node ends."""

    n: int
    started_at: str
    status: str
    exit_codes: tuple[int | None, ...]
    ended_at: str | None = None


@dataclass(frozen=True)
class State:
    """What became of a run: a status of ``ACTIVE``, or SUCCEEDED, FAILED, INTERRUPTED, CANCELLED,
    BUDGET_REACHED, DEADLINE_REACHED, LOST.

    LOST means that the run says it is active but nobody runs it. ``pid`` and ``pid_start`` (clock ticks
    after boot) name who does on this machine. ``tail`` holds the last lines of what failed first. Of a run
    elsewhere: how often it was ``preempted`` and recovered, its ``place``, the dollars per hour of all its
    nodes by SkyPilot's catalog (None is unknown), and ``links`` to pages about it.
    """

    status: str
    pid: int | None = None
    pid_start: int | None = None
    attempts: tuple[Attempt, ...] = ()
    reason: str | None = None
    tail: tuple[str, ...] = ()
    preemptions: int = 0
    place: Mapping[str, Any] = field(default_factory=dict)
    price_per_hour: float | None = None
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> State:
        """Read what ``to_json`` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        values = json.loads(text)
        attempts = tuple(
            Attempt(**{**item, "exit_codes": tuple(item["exit_codes"])}) for item in values.pop("attempts")
        )
        return cls(**{**values, "attempts": attempts, "tail": tuple(values["tail"])})


class Backend(Protocol):
    """Where runs run. ``run_dir`` is the run's folder on the launcher's machine.

    ``OUTLIVES_LAUNCHER`` says what Ctrl-C means to a launch that follows a run: stop it, or leave it be.
    """

    OUTLIVES_LAUNCHER: bool

    def submit(
        self,
        run_dir: Path,
        task: Mapping[str, Any],
        *,
        secrets: Mapping[str, str] | None = None,
        managed: bool = False,
    ) -> None:
        """Start the next attempt of a run and return once it is taken over.

        ``task`` is a SkyPilot task; ``secrets`` are variables of the job that are written nowhere. A
        ``managed`` job is recovered when its nodes are preempted, where the backend can do that. Raises
        UserError or Refused when it cannot be started.
        """
        ...

    def follow(self, run_dir: Path, *, from_start: bool = True, wait: bool = True) -> Iterator[str]:
        """Lines of the newest attempt's log until it ends, or with ``wait`` false those of now.

        On several nodes every line begins with ``[node R] ``. ``from_start`` false leaves out what is
        there already.
        """
        ...

    def cancel(self, run_dir: Path, grace_s: float | None = None) -> None:
        """Stop a run and return when nothing of it is left. It may save for ``grace_s`` seconds first."""
        ...

    def together(self, run_dir: Path) -> list[str]:
        """The other runs that end when this one is cancelled: the stages of one pipeline."""
        ...

    def status(self, run_dir: Path) -> State:
        """What became of the run."""
        ...

    def down(self, run_dir: Path) -> None:
        """Release the nodes that the run still holds."""
        ...

    def shell(self, run_dir: Path) -> list[str]:
        """The command that opens a shell where the run is. Raises Refused when there is no such place."""
        ...
