"""A power cut, and what is seen of it: for tests that kill launches and resume them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Project

COMMITTED = re.compile(r"committed checkpoint (\d+) ")


def processes_of(project: Project) -> list[int]:
    """Every live process that was started for a run of this project: agents, torchrun, ranks, supervisors."""
    runs = str(project.root / ".nemo-sky" / "runs").encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            about = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if runs in about and state not in "ZX":
            found.append(int(entry.name))
    return found


def kill_all(project: Project, launcher: subprocess.Popen[str]) -> None:
    """SIGKILL everything at once, as a power cut would."""
    launcher.send_signal(signal.SIGKILL)
    while pids := processes_of(project):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    launcher.wait()


def until_committed(launcher: subprocess.Popen[str], step: int = 1) -> list[str]:
    """Read the launch's output up to the first commit at ``step`` or beyond.

    A trainer that is faster than its store leaves checkpoints out: the agent commits the newest.
    """
    assert launcher.stdout
    seen = []
    for line in launcher.stdout:
        seen.append(line)
        if (found := COMMITTED.search(line)) and int(found[1]) >= step:
            return seen
    errors = launcher.stderr.read() if launcher.stderr else ""
    raise AssertionError(f"ended before step {step} was committed:\n{''.join(seen)}\n{errors}")


def story(project: Project) -> dict[str, Any]:
    newest = json.loads(project.run("runs", "list", "--json").stdout)[0]
    shown: dict[str, Any] = json.loads(project.run("runs", "show", newest["run_id"], "--json").stdout)
    return shown
