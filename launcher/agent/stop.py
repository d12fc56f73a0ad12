"""SIGTERM and SIGINT: passed on to what can save, and remembered.

While the command runs, a signal is passed on to it and it may save; a second one, or the end of its time,
kills it. Before and after, a signal ends what is inside ``interruptible`` and lets the rest finish.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from launcher.agent.ends import INTERRUPTED, Interrupted, Outcome, say
from launcher.agent.processes import Guarded, sweep

GRACE_S = 120.0


class Stop:
    """Catches the signals from its creation on. ``number`` is the first that came, None before."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked: Outcome | None = None
        self.grace_s = float(os.environ.get("NEMO_SKY_GRACE_S") or GRACE_S)
        self._since: float | None = None
        self._command: Guarded | None = None
        self._interruptible = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._caught)

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name if self.number else ""

    @property
    def why(self) -> Outcome:
        """How an attempt ends that was stopped."""
        return self._asked or Outcome("interrupted", INTERRUPTED, self.name)

    def ask(self, why: Outcome) -> None:
        """From any thread: stop as after a SIGTERM, and end like this. A signal that came before counts."""
        if self.number is None:
            self._asked = why
            os.kill(os.getpid(), signal.SIGTERM)

    def overdue(self) -> bool:
        """Whether a signal came and the time to save is over."""
        return self._since is not None and time.monotonic() - self._since > self.grace_s

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A signal raises Interrupted inside, also one that came before."""
        self._interruptible = True
        try:
            self.check()
            yield
        finally:
            self._interruptible = False

    def check(self) -> None:
        """Raises Interrupted when a signal has come."""
        if self.number:
            raise Interrupted(self.number)

    def run(self, command: Guarded) -> int:
        """Wait for the command and return its exit code; nothing of it is left."""
        self._command = command
        if self.number:  # it came while the command started
            self._pass_on(command)
        try:
            return command.wait()
        finally:
            self._command = None
            if command.unguarded:
                sweep()

    def _caught(self, number: int, frame: FrameType | None) -> None:
        first = self.number is None
        if first:
            self.number = number
            self._since = time.monotonic()
        if self._command is not None:
            if first:
                self._pass_on(self._command)
            else:
                say("a second signal: killing the command")
                self._command.kill()
        elif self._interruptible:
            raise Interrupted(number)

    def _pass_on(self, command: Guarded) -> None:
        say(f"{self.why.reason}: the command has {self.grace_s:g} s to save and end")
        command.terminate()
        timer = threading.Timer(self.grace_s, command.kill)
        timer.daemon = True
        timer.start()
