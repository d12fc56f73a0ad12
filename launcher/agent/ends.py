"""How an attempt can end, what the agent says on the way, and how long it insists before it gives up.

0     the command ended well and its output is published
1-63  and others: the command's own exit code; 128 + N after signal N
65    the output or its metadata is not what the stage promises
66    an input is missing
69    the artifact store cannot be used
73    a limit of the launch is reached: it was preempted too often
75    interrupted: what could be saved is committed, the same run resumes there
77    budget reached: likewise, once it is launched with more
78    deadline reached: likewise, once it is launched with a later one
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from launcher.artifacts.store import StoreError
from launcher.errors import UserError

BAD_OUTPUT = 65
NO_INPUT = 66
NO_STORE = 69
LIMIT = 73
INTERRUPTED = 75
BUDGET = 77
DEADLINE = 78

AGAIN = {NO_STORE: "a store that cannot be used", INTERRUPTED: "interrupted"}
"""The agent's own exit codes after which the same run is begun again."""

BUDGET_REACHED = "budget reached"
DEADLINE_REACHED = "deadline reached"
CANCELLED = "cancelled"

START_RETRY_S = 60.0
END_RETRY_S = 300.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0

_Result = TypeVar("_Result")


class Ended(Exception):
    """The attempt cannot go on. ``code`` is the agent's exit code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

    @property
    def status(self) -> str:
        return {BUDGET: BUDGET_REACHED, DEADLINE: DEADLINE_REACHED}.get(self.code, "failed")


class Interrupted(Exception):
    """A signal came while nothing was running that could save."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: ``succeeded``, ``failed``, ``interrupted``, ``budget reached`` or
    ``deadline reached``."""

    status: str
    code: int
    reason: str | None = None


def say(text: str) -> None:
    """One line for whoever reads the log. Where nodes are taken away its reader may go first: that ends
    nothing here, for there is still time to save."""
    try:
        print(f"[nemo-sky] {text}", file=sys.stderr, flush=True)
    except OSError:  # what is left in its buffer would fail once more when Python ends
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process


@contextmanager
def ends_with(code: int) -> Iterator[None]:
    """A mistake inside ends the attempt with ``code``, a failing store with 69."""
    try:
        yield
    except StoreError as error:
        raise Ended(NO_STORE, str(error)) from error
    except UserError as error:
        raise Ended(code, str(error)) from error


def insist(call: Callable[[], _Result], seconds: float) -> _Result:
    """What ``call`` returns. Tried again, with growing pauses, while the store fails and ``seconds`` last.

    NEMO_SKY_STORE_RETRY_S overrides ``seconds``. Raises the last StoreError.
    """
    deadline = time.monotonic() + float(os.environ.get("NEMO_SKY_STORE_RETRY_S") or seconds)
    pauses = backoff()
    while True:
        try:
            return call()
        except StoreError as error:
            pause = next(pauses)
            if time.monotonic() + pause > deadline:
                raise
            if pause == _FIRST_PAUSE_S:
                say(f"the store failed, trying again: {error.message}")
        time.sleep(pause)


def backoff() -> Iterator[float]:
    """Pauses between tries, in seconds: each twice the one before, up to 30."""
    pause = _FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(pause * 2, _LONGEST_PAUSE_S)


class Once:
    """Says each trouble once, until it is over."""

    def __init__(self) -> None:
        self._said = False
        self._lock = threading.Lock()

    def trouble(self, text: str) -> None:
        with self._lock:
            if not self._said:
                say(text)
            self._said = True

    def over(self) -> None:
        with self._lock:
            self._said = False
