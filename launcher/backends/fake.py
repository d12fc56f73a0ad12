"""A cloud for tests and for your own CI: tasks run on this machine, their nodes fail and vanish on command.

It behaves as SkyPilot does towards the rest of nemo-sky: a launch may find no capacity, a node may be
preempted at any moment, a managed job comes back in the next zone, any other is lost, and Ctrl-C leaves a run
be. A managed job that fails is begun again as often as SkyPilot's controller would do it by
``max_restarts_on_errors``: by count alone, whatever its exit code (``sky/jobs/controller.py`` and
``StrategyExecutor.should_restart_on_failure`` of 0.14.1; our own strategy is not asked). Nothing is simulated
beyond that: the very task runs, so what resumes here is what would resume there.

Nobody but the processes of the job has its secrets, and those are gone when it is recovered. So whoever asks
for its status, which is what recovers it, must have them in the environment; a job with others (of
``--secrets FILE``) is not recovered, and the same command resumes it. SkyPilot's controller keeps them.

``NEMO_SKY_FAKE`` holds commands, separated by `;`, in the order in which they are to happen:

    no-capacity          the next launch is refused
    preempt@TEXT         all nodes are killed once a line of the log holds TEXT
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from launcher import runs
from launcher.backends import local
from launcher.backends.base import State
from launcher.errors import Refused, UserError, did_you_mean

OUTLIVES_LAUNCHER = True
VARIABLE = "NEMO_SKY_FAKE"
ZONES = ("fake-1a", "fake-1b", "fake-2a")
POLL_S = 0.05
_VERBS = ("no-capacity", "preempt")
_STILL = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_FAILED = ("FAILED", "INTERRUPTED", "BUDGET_REACHED", "DEADLINE_REACHED")  # to SkyPilot, exit codes like any


@dataclass(frozen=True)
class World:
    """RUN_DIR/fake.json: what the fake knows of a run. ``commands`` are still to happen."""

    managed: bool
    task: Mapping[str, Any]
    commands: tuple[str, ...]
    restarts: int = 0  # that are left
    preemptions: int = 0
    cancelled: bool = False


def submit(
    run_dir: Path, task: Mapping[str, Any], *, secrets: Mapping[str, str] | None = None, managed: bool = False
) -> None:
    """Start the next attempt; see ``base.Backend``. Raises Refused when there is to be no capacity."""
    before = _world(run_dir)
    commands = list(before.commands if before else _commands(os.environ.get(VARIABLE, "")))
    refused = bool(commands) and commands[0] == "no-capacity"
    if refused:
        commands.pop(0)
    recovery = (task.get("resources") or {}).get("job_recovery") or {}
    restarts = int(recovery.get("max_restarts_on_errors") or 0)
    _save(run_dir, World(managed, {**task, "resources": {}}, tuple(commands), restarts))
    if refused:
        raise Refused("no capacity in any zone of the fake cloud", hint="launch it again")
    local.submit(run_dir, task, secrets=secrets)


def follow(run_dir: Path, *, from_start: bool = True, wait: bool = True) -> Iterator[str]:
    """Lines of the log, over every recovery; see ``base.Backend``. Commands happen as lines appear."""
    while True:
        for line in local.follow(run_dir, from_start=from_start, wait=wait):
            yield line
            world = _world(run_dir)
            if wait and world and world.commands and _is_due(world.commands[0], line):
                _save(run_dir, replace(world, commands=world.commands[1:]))
                preempt(run_dir)
        if not wait or not status(run_dir).active:
            return
        time.sleep(POLL_S)


def preempt(run_dir: Path) -> None:
    """Kill every process of the run at once, without notice, and return when none is left."""
    state = local.status(run_dir)
    if not state.active or state.pid is None:
        raise Refused(f"{run_dir.name} has no node to preempt: it is {state.status.lower()}")
    victims = _stopped(psutil.Process(state.pid))
    for process in victims:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(victims)


def cancel(run_dir: Path, grace_s: float | None = None) -> None:
    """Stop the run; see ``base.Backend``. What is being recovered is not recovered any more."""
    if world := _world(run_dir):
        _save(run_dir, replace(world, cancelled=True))
    local.cancel(run_dir, grace_s)


def together(run_dir: Path) -> list[str]:
    """A run ends alone here."""
    return []


def down(run_dir: Path) -> None:
    """A run that has ended holds nothing here."""


def shell(run_dir: Path) -> list[str]:
    """A shell in the run's folder, which is all of its node there is."""
    return ["env", f"--chdir={run_dir}", os.environ.get("SHELL", "bash")]


def status(run_dir: Path) -> State:
    """What became of the run. Asking is what makes a managed job recover: the next zone takes it over, or the
    same begins it again when it failed."""
    state, world = local.status(run_dir), _world(run_dir)
    if world is None:
        return state
    if world.managed and not world.cancelled and _is_to_recover(state, world):
        with _asked_once(run_dir):
            state, world = _recovered(run_dir)
    if state.status == "LOST" and world.cancelled:
        state = replace(state, status="CANCELLED", reason="cancelled")
    elif state.status == "LOST" and state.attempts and not world.managed:
        state = replace(state, reason="its nodes were preempted")
    zone = ZONES[world.preemptions % len(ZONES)]
    place = {"cloud": "fake", "region": zone[:-1], "zone": zone}
    return replace(state, preemptions=world.preemptions, place=place)


def _is_to_recover(state: State, world: World) -> bool:
    failed = state.status in _FAILED and world.restarts > 0
    return bool(state.attempts) and (state.status == "LOST" or failed)


def _recovered(run_dir: Path) -> tuple[State, World]:
    """The run after its recovery, unless another has seen to that meanwhile."""
    state, world = local.status(run_dir), _world(run_dir)
    assert world
    if not _is_to_recover(state, world) or world.cancelled:
        return state, world
    if missing := [name for name in world.task.get("secrets") or {} if name not in os.environ]:
        reason = f"it cannot be recovered: the fake cloud keeps no secrets such as {missing[0]}"
        return replace(state, reason=reason), world
    if state.status == "LOST":
        world = replace(world, preemptions=world.preemptions + 1)
    else:
        world = replace(world, restarts=world.restarts - 1)
    _save(run_dir, world)
    local.submit(run_dir, world.task)
    return replace(local.status(run_dir), status="RECOVERING"), world


@contextmanager
def _asked_once(run_dir: Path) -> Iterator[None]:
    with (run_dir / ".recovering").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stopped(root: psutil.Process) -> list[psutil.Process]:
    """A process and all below it, stopped: what is killed while it forks leaves a child that no list has."""
    found: list[psutil.Process] = []
    while new := [process for process in (root, *root.children(recursive=True)) if process not in found]:
        found += new
        for process in new:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in new:  # one that is just forking stops when it has, and its child is found then
            with suppress(psutil.NoSuchProcess):
                while process.status() not in _STILL:
                    time.sleep(0.001)
    return found


def _commands(text: str) -> list[str]:
    """Raises UserError for a command that is none."""
    found = [word.strip() for word in text.split(";") if word.strip()]
    for word in found:
        verb, at, rest = word.partition("@")
        if verb not in _VERBS or (verb == "preempt") != bool(at and rest):
            raise UserError(
                f"{VARIABLE}: {word!r} is no command{did_you_mean(verb, _VERBS)}",
                hint="write no-capacity or preempt@TEXT, separated by `;`",
            )
    return found


def _is_due(command: str, line: str) -> bool:
    verb, _, text = command.partition("@")
    return verb == "preempt" and text in line


def _world(run_dir: Path) -> World | None:
    try:
        values = json.loads((run_dir / "fake.json").read_text())
    except FileNotFoundError:
        return None
    return World(**{**values, "commands": tuple(values["commands"])})


def _save(run_dir: Path, world: World) -> None:
    runs.write_text(run_dir / "fake.json", json.dumps(asdict(world)) + "\n")
