"""Whether an attempt may begin at all: what must not be tried again, and how many preemptions are allowed.

SkyPilot begins a failed job again by count alone (``max_restarts_on_errors``), whatever its exit code, and a
preempted one without end. The journals in the store know better, so the attempt itself decides, at its start.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from launcher.agent.ends import BAD_OUTPUT, BUDGET, DEADLINE, LIMIT, NO_INPUT, Ended
from launcher.lineage.journal import Event

# Trying again cannot help: only a change of the recipe, the config or the store does. A recipe may name its
# script's own codes of this kind (`no_retry`).
FINAL = (BAD_OUTPUT, NO_INPUT, LIMIT, BUDGET, DEADLINE)
_AGAIN = "not tried again: "


def check(
    earlier: Sequence[Sequence[Event]],
    submission: str | None,
    preemptions: int | None,
    no_retry: Collection[int] = (),
) -> None:
    """Raise Ended when the attempt must not begin. ``earlier`` holds the journals of the run's attempts,
    ``no_retry`` the recipe's own codes of failures that are final.

    Only attempts of the same ``submission`` count: a launch by a person begins anew. An attempt without an
    end in its journal, or that was interrupted, was preempted; ``preemptions`` None allows any number.
    """
    ends = [end_of(events) for events in earlier if submission and _submission(events) == submission]
    if ends and (last := ends[-1]) and _is_final(last, no_retry):
        reason = str(last.get("reason") or "it cannot succeed").removeprefix(_AGAIN)
        raise Ended(int(last["exit_code"]), f"{_AGAIN}{reason}")
    lost = sum(map(was_lost, ends))
    if preemptions is not None and lost > preemptions:
        raise Ended(LIMIT, f"preempted {lost} times, and --preemptions allows {preemptions}")


def _is_final(end: Event, no_retry: Collection[int]) -> bool:
    return end["exit_code"] in FINAL or (end["status"] == "failed" and end["exit_code"] in no_retry)


def _submission(events: Sequence[Event]) -> str | None:
    return next(
        (event["run"].get("submission") for event in events if event["type"] == "attempt_started"), None
    )


def was_lost(end: Event | None) -> bool:
    """Whether an attempt that ended so was preempted: it has no end in its journal, or was interrupted."""
    return end is None or end["status"] == "interrupted"


def end_of(events: Sequence[Event]) -> Event | None:
    """The end of an attempt in its journal; None where it has none."""
    return events[-1] if events and events[-1]["type"] == "attempt_ended" else None
