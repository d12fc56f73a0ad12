"""A small process between us and a command, so that nothing of the command outlives us.

    parent ── control socket ── guard ── command ── whatever it starts

The guard is started by ``launcher.agent.processes``, as a script of the standard library alone:

    python -I -S guard.py CONTROL_FD GRACE_S group|ranks -- COMMAND...

It is the subreaper of all that the command starts, also of what daemonises, so it knows every one. When
the control socket closes because the parent died, however it died, the command goes: at once, or after
``GRACE_S`` seconds in which it may save. When the command ends, what it left running goes too. The guard's
exit code is the command's, 128 + N after signal N, 127 when it could not be started.

Commands on the socket: ``T`` asks the command to end, ``K`` kills everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL_SECONDS = 10.0
LEFTOVER_SECONDS = 2.0  # for helpers that end by themselves, as multiprocessing's resource tracker does
SHELLS = {"bash", "sh", "dash", "zsh"}


def prctl(option: int, value: int) -> None:
    """Raises OSError when the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def children_by_parent() -> dict[int, list[int]]:
    """Every process of the machine that has not ended, by its parent's pid."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The command's name stands in parentheses and may hold any character, these included.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if state not in (b"Z", b"X"):
            found.setdefault(int(parent), []).append(int(name))
    return found


def descendants(root: int) -> list[int]:
    """All processes below ``root``, parents before their children."""
    tree = children_by_parent()
    found: list[int] = []
    queue = [root]
    while queue:
        below = tree.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def kill_descendants(root: int) -> None:
    """SIGKILL everything below ``root``, and what it starts meanwhile, until nothing is left.

    Gives up after ``KILL_SECONDS``: a process in the kernel's hands, or of another user, cannot be killed.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while (alive := descendants(root)) and time.monotonic() < deadline:
        for pid in alive:
            send(pid, signal.SIGKILL)
        time.sleep(0.01)


def ranks(main: int) -> list[int]:
    """The processes that save when they get a SIGTERM.

    torchrun answers a SIGTERM by killing its workers after 30 seconds, so the workers are asked
    themselves: they are the topmost processes with RANK in their environment. A shell passes no signal
    on, so what it runs is asked. Any other command is asked itself, and not its helpers: a data loader's
    worker that dies makes its trainer fail in the middle of the save.
    """
    tree = children_by_parent()
    found: list[int] = []
    queue = [main]
    while queue:
        pid = queue.pop(0)
        if _has_rank(pid):
            found.append(pid)
        else:
            queue += tree.get(pid, [])
    if found:
        return found
    return tree.get(main, [main]) if _name(main) in SHELLS else [main]


def reap() -> dict[int, int]:
    """Exit codes of the children that have ended, by pid: orphans that came to us, and the command."""
    codes: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return codes
        if pid == 0:
            return codes
        code = os.waitstatus_to_exitcode(status)
        codes[pid] = code if code >= 0 else 128 - code


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _has_rank(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(item.startswith(b"RANK=") for item in file.read().split(b"\0"))
    except OSError:
        return False


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def _start(command: list[str], death_signal: int) -> int:
    """Fork and exec in a session of its own; the command's pid, once it is the command."""
    guard = os.getpid()
    started, starting = os.pipe()  # closed by exec
    pid = os.fork()
    if pid:
        os.close(starting)
        os.read(started, 1)
        os.close(started)
        return pid
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        # Should the guard itself be killed, the command still learns of it.
        prctl(PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != guard:
            os._exit(1)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _ask(main: int, policy: str) -> None:
    if policy == "ranks":
        for pid in ranks(main):
            send(pid, signal.SIGTERM)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(main, signal.SIGTERM)


def _drop_leftovers() -> None:
    me = os.getpid()
    for pid in descendants(me):
        send(pid, signal.SIGTERM)
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while descendants(me) and time.monotonic() < deadline:
        time.sleep(0.02)
    kill_descendants(me)


def guard(control: int, grace: float, policy: str, command: list[str]) -> int:
    """Run ``command`` to its end, or to the parent's. Returns its exit code."""
    os.set_inheritable(control, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the control socket decides
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    main = _start(command, signal.SIGTERM if grace else signal.SIGKILL)
    deadline: float | None = None
    watched = [control, wake]
    while main not in (codes := reap()):
        timeout = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        ready, _, _ = select.select(watched, [], [], timeout)
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        if control in ready:
            order = _read(control)
            if order == b"":  # the parent is gone
                watched.remove(control)
                deadline = time.monotonic() + grace
            if order == b"K":
                kill_descendants(os.getpid())
            elif grace or order == b"T":
                _ask(main, policy)
        if deadline is not None and time.monotonic() >= deadline:
            kill_descendants(os.getpid())
    _drop_leftovers()
    return codes[main]


def _read(control: int) -> bytes:
    try:
        return os.read(control, 1)
    except ConnectionResetError:
        return b""


if __name__ == "__main__":
    _control, _grace, _policy, _, *_command = sys.argv[1:]
    sys.exit(guard(int(_control), float(_grace), _policy, _command))
