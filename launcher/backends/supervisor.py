"""Runs one attempt of a run on this machine, detached from whoever launched it.

    python -m launcher.backends.supervisor RUN_DIR STARTING  < task.json

takes the run over (RUN_DIR/state.json says so when the command returns, exit code 0, and with it the lock on
the descriptor STARTING) and goes on in a session of its own: set-up once, then the task's `run` on every
emulated node. Each node is a process group under a guard (``launcher.agent.guard``), so nothing outlives the
run, however it ends.

SIGTERM cancels: the nodes may save; a second SIGTERM kills. The logs are files that the nodes write
themselves: killing the supervisor breaks no pipe of a trainer that is about to save.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.agent.processes import Guarded, adopt_orphans, sweep
from launcher.backends import nodes
from launcher.backends.base import Attempt, State
from launcher.backends.logs import last_lines
from launcher.runs import write_text

SAVE_S = 120.0  # what a trainer gets to save in after a SIGTERM, unless NEMO_SKY_GRACE_S says otherwise
STOP_S = 15.0  # for the agent, on top of it: commit, journal, end
FAILURE_GRACE_S = 30.0  # for the other nodes when one failed: without it they cannot save together
TAIL_LINES = 120  # torchrun alone ends a failure with some forty
INTERRUPTED = 75  # the agent's exit code after a SIGTERM: saved, to be resumed
BUDGET = 77  # the agent's exit code when the budget ended: saved, to be resumed with more
DEADLINE = 78  # likewise, when its deadline came
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def process_start(pid: int) -> int | None:
    """When a process began, in clock ticks after boot; None when there is no such process, or it has ended.

    With it a pid that the kernel has given to another process is not taken for the first.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def read_state(run_dir: Path) -> State | None:
    """What state.json says, None when there is none. It is replaced whole, so it is never torn."""
    path = run_dir / "state.json"
    return State.from_json(path.read_text()) if path.exists() else None


class Recorder:
    """Keeps state.json, whose newest attempt is this one."""

    def __init__(self, run_dir: Path, node_count: int) -> None:
        earlier = read_state(run_dir)
        pid = os.getpid()
        attempts = earlier.attempts if earlier else ()
        # A run that was elsewhere meanwhile has logs of attempts that its state knows nothing of any more.
        logged = [int(path.name.partition("-")[2]) for path in (run_dir / "logs").glob("attempt-*")]
        number = max([len(attempts), *logged]) + 1
        attempt = Attempt(number, _now(), "PENDING", (None,) * node_count)
        self.run_dir = run_dir
        self.state = State("PENDING", pid, process_start(pid), (*attempts, attempt))
        self._write()

    @property
    def logs(self) -> Path:
        return self.run_dir / "logs" / f"attempt-{self.state.attempts[-1].n}"

    def update(self, status: str, codes: Sequence[int | None] = (), **fields: Any) -> None:
        """Say how the attempt stands; ``fields`` are the state's own."""
        attempt = self.state.attempts[-1]
        attempt = replace(attempt, status=status, exit_codes=tuple(codes) or attempt.exit_codes)
        self.state = replace(self.state, status=status, **fields)
        if not self.state.active:
            attempt = replace(attempt, ended_at=_now())
        self.state = replace(self.state, attempts=(*self.state.attempts[:-1], attempt))
        self._write()

    def _write(self) -> None:
        write_text(self.run_dir / "state.json", self.state.to_json())


def main(run_dir: Path, starting: int) -> int:
    """Take the run over, then go on in the background; 1 when another process already runs it. ``starting``
    is a descriptor that stays with this process alone."""
    task = json.load(sys.stdin)
    ready, takes_over = os.pipe()
    if os.fork():
        os.close(takes_over)
        return 0 if os.read(ready, 1) else 1
    os.close(ready)
    os.close(starting)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    lock = lock_run(run_dir)
    if lock is None:
        print(f"{run_dir}: processes of an earlier attempt are still ending", file=sys.stderr)
        return 1
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    adopt_orphans()
    recorder = Recorder(run_dir, int(task.get("num_nodes") or 1))
    os.write(takes_over, b"!")
    os.close(takes_over)
    try:
        supervise(recorder, task, lock)
    except Exception as error:
        sweep()
        recorder.update("FAILED", reason=f"the supervisor failed: {error!r}")
        raise
    return 0


def lock_run(run_dir: Path) -> int | None:
    """The descriptor of the run's lock, None when it stays taken.

    The nodes hold it too, so it is free only when all of an earlier attempt is gone, also of one whose
    supervisor was killed and whose trainers were then still saving.
    """
    lock = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + SAVE_S + 2 * STOP_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
        time.sleep(0.1)


def supervise(recorder: Recorder, task: Mapping[str, Any], lock: int) -> None:
    """The attempt, from its set-up to its end."""
    count = len(recorder.state.attempts[-1].exit_codes)
    place = nodes.survey(recorder.run_dir, count)
    recorder.logs.mkdir(parents=True, exist_ok=True)
    grace = float((task.get("envs") or {}).get("NEMO_SKY_GRACE_S") or SAVE_S)

    def start(script: str, rank: int, log: Path) -> Guarded:
        env = nodes.environment(place, task, rank) | {"NEMO_SKY_GRACE_S": f"{grace:g}"}
        Path(env["NEMO_SKY_WORK"]).mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            return Guarded(
                ["bash", "-c", script],
                env=env,
                cwd=Path(task.get("workdir") or "."),
                output=output,
                asks="group",
                grace_s=grace + STOP_S,
                inherit=[lock],
            )

    if task.get("setup"):
        recorder.update("SETUP")
        log = recorder.logs / "setup.log"
        (code,), _, cancelled = wait([start(task["setup"], 0, log)], grace)
        if cancelled:
            recorder.update("CANCELLED", reason="cancelled during set-up")
            return
        if code:
            tail = last_lines(log, TAIL_LINES)
            recorder.update("FAILED", reason=f"set-up {describe(code)}", tail=tail)
            return
    recorder.update("RUNNING")
    logs = [recorder.logs / f"node-{rank}.log" for rank in range(count)]
    running = [start(task["run"], rank, log) for rank, log in enumerate(logs)]
    codes, first, cancelled = wait(running, grace, recorder)
    sweep(min(grace, FAILURE_GRACE_S))  # only a guard that was killed leaves anything
    if first is None:
        recorder.update("SUCCEEDED", codes)
        return
    node = f"node {first} " if count > 1 else "the job "
    tail = last_lines(logs[first], TAIL_LINES)
    if cancelled:
        recorder.update("CANCELLED", codes, reason="cancelled")
    elif codes[first] == INTERRUPTED:
        recorder.update("INTERRUPTED", codes, reason=f"{node}was told to stop", tail=tail)
    elif codes[first] == BUDGET:
        recorder.update("BUDGET_REACHED", codes, reason=f"{node}stopped at its budget", tail=tail)
    elif codes[first] == DEADLINE:
        recorder.update("DEADLINE_REACHED", codes, reason=f"{node}stopped at its deadline", tail=tail)
    else:
        recorder.update("FAILED", codes, reason=node + describe(codes[first]), tail=tail)


def wait(
    running: Sequence[Guarded], grace: float, recorder: Recorder | None = None
) -> tuple[list[int], int | None, bool]:
    """Wait until all have ended: their exit codes, which failed first (None: none), whether cancelled.

    The first that fails takes the others with it.
    """
    codes: list[int | None] = [None] * len(running)
    first: int | None = None
    cancelled = stopping = False
    deadline: float | None = None

    def all_left(act: Callable[[Guarded], None]) -> None:
        for process, code in zip(running, codes, strict=True):
            if code is None:
                act(process)

    while None in codes:
        left = 3600.0 if deadline is None else max(deadline - time.monotonic(), 0.0)
        caught = signal.sigtimedwait(_SIGNALS, left)
        if caught and caught.si_signo != signal.SIGCHLD:
            if stopping:
                all_left(Guarded.kill)
            else:
                cancelled = stopping = True
                all_left(Guarded.terminate)
                deadline = time.monotonic() + grace + STOP_S
        for rank, process in enumerate(running):
            if codes[rank] is not None or (code := process.poll()) is None:
                continue
            codes[rank] = code
            if recorder:
                recorder.update("RUNNING", codes)
            if code and first is None:
                first = rank
                if not stopping:
                    stopping = True
                    all_left(Guarded.terminate)
                    deadline = time.monotonic() + FAILURE_GRACE_S
        if deadline is not None and time.monotonic() >= deadline:
            all_left(Guarded.kill)
            deadline = time.monotonic() + STOP_S
    return [code for code in codes if code is not None], first, cancelled


def describe(code: int) -> str:
    """An exit code in words."""
    if code <= 128:
        return f"exited with {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exited with {code}"
    hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
