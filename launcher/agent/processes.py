"""Commands that cannot outlive this process: each runs under a guard (see ``launcher.agent.guard``)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from launcher.agent import guard


class Guarded:
    """A running command. Its exit code is the shell's: 128 + N after signal N, 127 when it cannot start.

    ``asks`` says who gets the SIGTERM of ``terminate``: the command's process ``group``, or the ``ranks``
    that save (see ``guard.ranks``). When this process dies the command dies at once, or with ``grace_s``
    gets a SIGTERM and that many seconds. ``output`` takes stdout and stderr, None leaves ours.
    ``inherit`` are descriptors that the command keeps.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        output: IO[bytes] | None = None,
        asks: str = "ranks",
        grace_s: float = 0.0,
        inherit: Sequence[int] = (),
    ) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            arguments = [str(theirs.fileno()), str(grace_s), asks, "--", *command]
            self._guard = subprocess.Popen(
                # Isolated and without site: it starts in milliseconds whatever the environment holds.
                [sys.executable, "-I", "-S", guard.__file__, *arguments],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
                pass_fds=[theirs.fileno(), *inherit],
            )

    def terminate(self) -> None:
        """Ask the command to end."""
        self._order(b"T")

    def kill(self) -> None:
        """End the command and all it started, now."""
        self._order(b"K")

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once nothing of the command is left. Raises subprocess.TimeoutExpired."""
        return _shell_code(self._guard.wait(timeout))

    @property
    def unguarded(self) -> bool:
        """Whether the guard itself was killed, so that what it guarded may be left: see ``sweep``."""
        return (self._guard.returncode or 0) < 0

    def poll(self) -> int | None:
        """The exit code, None while anything of the command is left."""
        code = self._guard.poll()
        return None if code is None else _shell_code(code)

    def _order(self, order: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self._control.send(order)


def adopt_orphans() -> None:
    """Make this process the parent of what a killed guard leaves behind; ``sweep`` ends it."""
    guard.prctl(guard.PR_SET_CHILD_SUBREAPER, 1)


def sweep(grace_s: float = 0.0) -> None:
    """Wait until no descendant of this process is left, and kill those that are after ``grace_s``."""
    deadline = time.monotonic() + grace_s
    while guard.descendants(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.05)
    guard.kill_descendants(os.getpid())


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code
