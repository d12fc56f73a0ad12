"""What a launch must not try again, and how often it may be preempted."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.agent import limits
from launcher.agent.ends import BAD_OUTPUT, BUDGET, DEADLINE, LIMIT, Ended
from launcher.lineage.journal import Event


def attempt(end: tuple[str, int] | None, submission: str = "one") -> list[Event]:
    """An attempt's journal: how it ended and with which code, None when it was killed."""
    started: dict[str, Any] = {"seq": 1, "ts": 0.0, "type": "attempt_started"}
    events: list[Event] = [{**started, "run": {"submission": submission}}]
    if end:
        status, code = end
        ended = {"seq": 2, "ts": 1.0, "type": "attempt_ended", "status": status, "exit_code": code}
        events.append({**ended, "reason": "as it was"})
    return events


@pytest.mark.parametrize("code", [BAD_OUTPUT, BUDGET, DEADLINE])
def test_a_failure_that_cannot_be_mended_is_not_tried_again(code: int) -> None:
    with pytest.raises(Ended, match="not tried again: as it was") as caught:
        limits.check([attempt(("failed", code))], "one", None)
    assert caught.value.code == code
    limits.check([attempt(("failed", 1))], "one", None)
    limits.check([attempt(("failed", BAD_OUTPUT)), attempt(None)], "one", None)


def test_a_recipe_names_the_codes_of_its_own_failures_that_are_final() -> None:
    with pytest.raises(Ended, match="not tried again: as it was") as caught:
        limits.check([attempt(("failed", 1)), attempt(("failed", 3))], "one", None, (3, 4))
    assert (caught.value.code, caught.value.status) == (3, "failed")
    limits.check([attempt(("failed", 1))], "one", None, (3, 4))
    limits.check([attempt(("failed", 3)), attempt(None)], "one", None, (3, 4))
    limits.check([attempt(("failed", 3))], "two", None, (3, 4))
    limits.check([attempt(("interrupted", 3))], "one", None, (3,))


def test_a_new_launch_begins_anew() -> None:
    history = [attempt(("failed", BAD_OUTPUT)), attempt(None), attempt(None)]
    limits.check([*history, attempt(("failed", BAD_OUTPUT))], "two", 0)


@pytest.mark.parametrize(("allowed", "refused"), [(0, True), (1, True), (2, False), (None, False)])
def test_preemptions_are_counted_apart_from_failures(allowed: int | None, refused: bool) -> None:
    history = [attempt(None), attempt(("failed", 1)), attempt(("interrupted", 75)), attempt(("failed", 1))]
    if not refused:
        limits.check(history, "one", allowed)
        return
    with pytest.raises(Ended, match="preempted 2 times") as caught:
        limits.check(history, "one", allowed)
    assert caught.value.code == LIMIT
