"""SIGTERM and SIGINT: passed on to what can save, and remembered.

While the command runs, a signal is passed on to it and it may save; a second one, or the end of its time,
kills it. Before and after, a signal ends what is inside ``interruptible`` and lets the rest finish.

After a cloud's notice (``launcher.agent.notice``) the agent outlives its command: to SkyPilot an exit on
instances that still live is a failed program, which it does not recover.
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
LINGER_S = 300.0  # beyond the announced time: by then an instance is gone, or the cloud has let it live
_POLL_S = 0.2


class Stop:
    """Catches the signals from its creation on. ``number`` is the first that came, None before."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.leaves_at: float | None = None  # seconds since the epoch, while a notice is why it stops
        self._asked: Outcome | None = None
        self._asking = threading.Lock()  # of threads: a signal's handler never takes it
        self._again = False
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

    def ask(self, why: Outcome, leaves_at: float | None = None) -> None:
        """From any thread: stop as after a SIGTERM, and end like this. What came first counts, with two
        exceptions: ``leaves_at``, a notice's time, also when a signal came before, as that of a machine that
        shuts down; and after a notice any other reason, which ends ``linger``."""
        with self._asking:
            if leaves_at is None and self.leaves_at is not None:
                self._asked, self.leaves_at = why, None
                return
            if self._asked or (leaves_at is None and self.number):
                return
            self._asked, self.leaves_at = why, leaves_at
            if self.number is None:
                os.kill(os.getpid(), signal.SIGTERM)

    def linger(self, standing: str) -> None:
        """After a notice, wait for the instance to go. Returns at once without one; else when a signal or
        another reason to stop comes, and when the instance is still there long after its time."""
        if (leaves_at := self.leaves_at) is None:
            return
        say(f"{self.why.reason}; {standing}; waiting until it is gone")
        while self.leaves_at is not None and not self._again:
            if time.time() > leaves_at + LINGER_S:
                say("it is still there, and this ends all the same")
                return
            time.sleep(_POLL_S)

    def overdue(self) -> bool:
        """Whether a signal came and the time to save is over."""
        if self.leaves_at is not None and not self._again:
            return time.time() > self.leaves_at + LINGER_S
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
        again, self._again = self._again, not first
        if first:
            self.number = number
            self._since = time.monotonic()
        if self._command is not None:
            if first:
                self._pass_on(self._command)
            elif self.leaves_at is not None and not again:  # a machine that shuts down sends one, too
                say(f"{signal.Signals(number).name}: this ends as soon as the command has saved")
            else:
                say("a second signal: killing the command")
                self._command.kill()
        elif self._interruptible:
            raise Interrupted(number)

    def _pass_on(self, command: Guarded) -> None:
        seconds = self.grace_s
        if self.leaves_at is not None:
            seconds = min(seconds, max(round(self.leaves_at - time.time()), 1))
        say(f"{self.why.reason}: the command has {seconds:g} s to save and end")
        command.terminate()
        timer = threading.Timer(seconds, command.kill)
        timer.daemon = True
        timer.start()
