"""Runs a task on this machine: the same task that SkyPilot would get, nodes emulated as process groups.

A detached supervisor (``launcher.backends.supervisor``) runs it; these functions start it, read what it
writes and signal it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import launcher
from launcher.backends import supervisor
from launcher.backends.base import State
from launcher.backends.logs import Tail, last_lines
from launcher.errors import Refused, UserError

POLL_S = 0.05
OUTLIVES_LAUNCHER = False
KILL_S = 10.0  # what killing takes at most, once it is asked for


def submit(
    run_dir: Path, task: Mapping[str, Any], *, secrets: Mapping[str, str] | None = None, managed: bool = False
) -> None:
    """Start the next attempt; see ``base.Backend``. Waits for what an earlier attempt left to end.

    Nothing preempts a job here, so ``managed`` is no different.
    """
    _check(task)
    run_dir.mkdir(parents=True, exist_ok=True)
    log = run_dir / "supervisor.log"
    paths = [str(Path(launcher.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    workdir = str(Path(task.get("workdir") or ".").expanduser().resolve())
    with _starting(run_dir).open("w") as starting, log.open("ab") as output:
        # The supervisor has it, too, until it has taken over: should this process die, nobody starts another.
        fcntl.flock(starting, fcntl.LOCK_EX)
        before = _recorded(run_dir)
        if before.active:
            raise Refused(f"{run_dir.name} is {before.status.lower()} already (process {before.pid})")
        command = [sys.executable, "-m", "launcher.backends.supervisor", str(run_dir.resolve())]
        done = subprocess.run(
            [*command, str(starting.fileno())],
            input=json.dumps({**task, "workdir": workdir}).encode(),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(secrets or {}), "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            pass_fds=[starting.fileno()],
            check=False,
        )
    if done.returncode:
        said = "\n".join(last_lines(log, 5))
        raise Refused(f"{run_dir.name} could not be started:\n{said}", hint=f"the whole of it: {log}")


def follow(run_dir: Path, *, from_start: bool = True, wait: bool = True) -> Iterator[str]:
    """Lines of the newest attempt's log; see ``base.Backend``. Those of the set-up come first."""
    while wait and _is_starting(run_dir):
        time.sleep(POLL_S)
    state = status(run_dir)
    if not state.attempts:
        return
    attempt = state.attempts[-1]
    logs = run_dir / "logs" / f"attempt-{attempt.n}"
    count = len(attempt.exit_codes)
    tails = [("", Tail(logs / "setup.log", from_start=from_start))]
    for rank in range(count):
        prefix = f"[node {rank}] " if count > 1 else ""
        tails.append((prefix, Tail(logs / f"node-{rank}.log", from_start=from_start)))
    while True:
        # Asked before the files are read: whatever was written before the end is read after it.
        final = not wait or not status(run_dir).active
        for prefix, tail in tails:
            for line in tail.lines(final):
                yield prefix + line
        if final:
            return
        time.sleep(POLL_S)


def cancel(run_dir: Path, grace_s: float | None = None) -> None:
    """Stop the run; see ``base.Backend``. None leaves as long as the run's own NEMO_SKY_GRACE_S says.

    A KeyboardInterrupt while it saves kills it, and is raised again when nothing is left.
    """
    try:
        if not _stop(run_dir, grace_s):
            _stop(run_dir, KILL_S)
    except KeyboardInterrupt:
        # The first signal may not have been sent yet: then the second asks, and the third kills.
        if not _stop(run_dir, KILL_S):
            _stop(run_dir, KILL_S)
        raise


def status(run_dir: Path) -> State:
    """What became of the run; LOST when it was never taken over, or its supervisor is gone."""
    state = _recorded(run_dir)
    if state.active:
        return state
    starting = _is_starting(run_dir)
    state = _recorded(run_dir)  # it may have been taken over between the two looks
    if starting and not state.active:
        return State("PENDING", attempts=state.attempts, reason="it is being started")
    return state


def _recorded(run_dir: Path) -> State:
    """What the supervisor wrote, or LOST."""
    try:
        state = supervisor.read_state(run_dir)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"cannot be read: {error!r}", where=str(run_dir / "state.json")) from error
    if state is None:
        return State("LOST", reason="it was never started")
    if state.active and not _alive(state):
        # It may have ended between the two looks; what it wrote last is the truth.
        state = supervisor.read_state(run_dir) or state
        if state.active:
            reason = f"its supervisor (process {state.pid}) is gone: killed, or the machine went down"
            return replace(state, status="LOST", reason=reason)
    return state


def _starting(run_dir: Path) -> Path:
    """Locked while a supervisor is being started."""
    return run_dir / ".starting"


def _is_starting(run_dir: Path) -> bool:
    try:
        with _starting(run_dir).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def together(run_dir: Path) -> list[str]:
    """A run ends alone here."""
    return []


def down(run_dir: Path) -> None:
    """A run that has ended holds nothing here; see ``base.Backend``."""


def shell(run_dir: Path) -> list[str]:
    """Refused: the run is on this machine."""
    raise Refused(f"{run_dir.name} runs on this machine", hint=f"its files: {run_dir}/work")


def _check(task: Mapping[str, Any]) -> None:
    """Raises UserError for a task that this backend cannot run as it is meant."""
    if not task.get("run"):
        raise UserError("the task has nothing to run: its `run` is empty")
    others = [target for target in task.get("file_mounts") or {} if "/.nemo-sky/jobs/" not in target]
    if others:
        raise UserError(
            f"file_mounts: {others[0]} cannot be mounted on this machine",
            hint="remove it from the profile; a local run reads files where they are",
        )
    workdir = task.get("workdir") or "."
    if not isinstance(workdir, str) or not Path(workdir).expanduser().is_dir():
        raise UserError(f"workdir: there is no folder {workdir}")


def _alive(state: State) -> bool:
    return state.pid is not None and supervisor.process_start(state.pid) == state.pid_start


def _stop(run_dir: Path, seconds: float | None) -> bool:
    """Signal the supervisor; whether the run, and it, end within ``seconds`` (None: it sees to that)."""
    deadline = None if seconds is None else time.monotonic() + seconds
    signalled = False
    while (state := status(run_dir)).active or _alive(state):
        if not signalled and state.active and state.pid is not None:
            signalled = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
