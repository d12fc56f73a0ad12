"""The fuse: takes the nodes down when a run's lease or its deadline is over, with everybody else dead.

    python fuse.py arm FILE SECONDS AT LONGEST DEADLINE
        it burns in SECONDS from now, and not before AT, unless FILE gets another time
    python fuse.py keep FILE
        have a process watch FILE, if none does

The task's set-up arms it on the first node, before anything that takes long; every renewal of the lease
moves the time in FILE, in seconds since the epoch. A process without session or parent watches FILE. What it
does when it burns needs neither the launcher, the controller nor the agent: on Slurm ``scancel`` of its own
allocation, elsewhere it tells SkyPilot's skylet on this node to take the cluster down at once, whatever runs,
until this machine is gone. On Slurm the allocation's time limit is lowered as well, to LONGEST seconds, what
the whole budget pays for, and to DEADLINE. AT and DEADLINE are in seconds since the epoch, for a recovery
arms it anew: one that comes too late has SECONDS all the same, in which its agent says so and ends the job.
What there is not is 0 for AT and else `inf`.

Runs under SkyPilot's own Python (3.10) and imports nothing of ours: that is there before the job's is.
"""

from __future__ import annotations

import calendar
import fcntl
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

_LOOK_S = 2.0
_AGAIN_S = 30.0
# Down, at once, whether or not jobs run (sky/skylet/autostop_lib.py of 0.14.1).
_SKYLET = """
from sky.skylet import autostop_lib
autostop_lib.set_autostop(0, "cloudvmray", autostop_lib.AutostopWaitFor.NONE, True)
"""


def file_of(run_id: str) -> Path:
    """The file of the run's fuse on this node. Homes may be shared: on Slurm it names the allocation."""
    allocation = os.environ.get("SLURM_JOB_ID")
    return Path.home() / ".nemo-sky" / "fuse" / (f"{run_id}-{allocation}" if allocation else run_id)


def started() -> float | None:
    """When the Slurm allocation of this node began, in seconds since the epoch; None off Slurm, and where it
    cannot be found out. A newer Slurm says it in the job's environment, and `scontrol` of any."""
    allocation = os.environ.get("SLURM_JOB_ID")
    if not allocation:
        return None
    if (known := os.environ.get("SLURM_JOB_START_TIME", "")).isdigit():
        return float(known)
    env = {key: value for key, value in os.environ.items() if key != "SLURM_TIME_FORMAT"}
    words = ["scontrol", "show", "job", allocation]
    try:
        done = subprocess.run(
            words, env={**env, "TZ": "UTC"}, capture_output=True, text=True, timeout=_AGAIN_S
        )
        found = re.search(r"\bStartTime=(\S+)", done.stdout)
        return float(calendar.timegm(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S"))) if found else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def move(file: Path, burns: float) -> None:
    """Let an armed fuse burn at ``burns``, in seconds since the epoch; nothing when none is armed."""
    if file.exists():
        _write(file, burns)


def _write(file: Path, burns: float) -> None:
    new = file.with_name(f"{file.name}.{os.getpid()}")
    new.write_text(f"{burns:.1f}\n")
    new.replace(file)


def arm(file: Path, seconds: float, at: float, longest: float, deadline: float) -> None:
    """Write the time, and see that somebody watches it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soon = time.time() + seconds
    _write(file, max(soon, at))
    if math.isfinite(deadline) and (began := started()) is not None:
        longest = min(longest, max(soon, deadline) - began)
    if math.isfinite(longest) and (allocation := os.environ.get("SLURM_JOB_ID")):
        limit = f"TimeLimit={math.ceil(longest / 60)}"
        # Only an operator may raise it: a partition's own, shorter limit stays.
        subprocess.run(["scontrol", "update", f"JobId={allocation}", limit], capture_output=True)
    keep(file)


def keep(file: Path) -> None:
    """Start a process that watches ``file``; it is nobody's child, and ends at once when there is one."""
    if not file.exists():
        return
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            log = os.open(f"{file}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            null = os.open(os.devnull, os.O_RDONLY)
            for opened, number in ((null, 0), (log, 1), (log, 2)):
                os.dup2(opened, number)
            os.closerange(3, 1024)
            _watch(file)
        os._exit(0)
    os.wait()


def _watch(file: Path) -> None:
    with open(f"{file}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        while (left := float(file.read_text()) - time.time()) > 0:
            time.sleep(min(left, _LOOK_S))
        while True:
            print(f"{time.time():.0f} the lease is over: taking the nodes down", flush=True)
            burn()
            time.sleep(_AGAIN_S)


def burn() -> None:
    """Take the nodes down."""
    if allocation := os.environ.get("SLURM_JOB_ID"):
        words = ["scancel", allocation]
    else:
        words = [sys.executable, "-c", _SKYLET]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        subprocess.run(words, env=env, cwd="/", timeout=_AGAIN_S)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{words[0]}: {error}", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["arm", path, seconds, at, longest, deadline]:
            arm(Path(path), float(seconds), float(at), float(longest), float(deadline))
        case ["keep", path]:
            keep(Path(path))
        case _:
            sys.exit("usage: fuse.py arm FILE SECONDS AT LONGEST DEADLINE | keep FILE")
