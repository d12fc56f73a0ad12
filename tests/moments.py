"""Every moment of a process: its effects on the world, counted as they come, so that it can die before each.

Python's audit events come right before each change of the file system, each request over HTTP, each look
into an SQLite file and each start of a process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect"}
REQUESTS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")


def effect_of(event: str, arguments: tuple[object, ...]) -> str | None:
    """The effect that an audit event announces, in words; None where it announces none."""
    about = arguments[0] if arguments else None
    if event == "http.client.send":
        data = arguments[1]
        return str(data[:80]) if isinstance(data, bytes) and data.startswith(REQUESTS) else None
    if event == "open":
        flags = arguments[2]
        writes = isinstance(flags, int) and flags & os.O_ACCMODE != os.O_RDONLY
        named = isinstance(about, str | bytes) and not os.fsdecode(about).startswith("/dev/")  # else a pipe
        return f"open {about!s}" if writes and named else None
    if event == "os.mkdir" and isinstance(about, str) and os.path.isdir(about):
        return None
    if event == "subprocess.Popen":
        return f"{event} {arguments[1]}"
    return f"{event} {about!s}" if event in CHANGES else None


def before_effects(act: Callable[[str], object]) -> None:
    """From now on, and for good, call ``act`` before each effect of this process, with what it is."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if effect := effect_of(event, arguments):
            act(effect)

    sys.addaudithook(hook)


def die_before_effect(number: int, later: float | None = None) -> None:
    """From now on, the ``number``-th effect (from 0) is not done any more: this process dies of SIGKILL. Or
    ``later``, in seconds: between two effects there are moments, too, in which it waits for others."""
    lock = threading.Lock()
    left = [number]

    def count(_: str) -> None:
        with lock:
            if left[0] == 0:
                _die() if later is None else threading.Timer(later, _die).start()
            left[0] -= 1

    before_effects(count)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], object]) -> int:
    """Exit status of a forked child that did ``work``; -9 when it was killed."""
    return ended(start_child(work))


def start_child(work: Callable[[], object]) -> int:
    """The process id of a forked child that does ``work``."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid: int) -> int:
    """Exit status of a child, once it has ended; -9 when it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
