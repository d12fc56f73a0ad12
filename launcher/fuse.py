"""Gives a task with a cap or a deadline its fuse; see ``launcher.agent.fuse``, which runs on the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.money.lease import Lease
    from launcher.task import Task

_FILE = '"$HOME/.nemo-sky/fuse/$NEMO_SKY_RUN_ID${SLURM_JOB_ID:+-$SLURM_JOB_ID}"'
# SkyPilot's own Python, as it finds it itself (SKY_GET_PYTHON_PATH_CMD of sky/skylet/constants.py, 0.14.1).
_START = """\
# The fuse: the nodes go when the lease is over, whoever is dead by then.
if [ "${{{rank}:-0}}" = 0 ]; then
  for code in "$PWD" "$HOME/.nemo-sky/code/$NEMO_SKY_RUN_ID"; do
    [ ! -f "$code/launcher/agent/fuse.py" ] || break
  done
  "$(cat "${{SKY_RUNTIME_DIR:-$HOME}}/.sky/python_path" || command -v python3)" \\
    "$code/launcher/agent/fuse.py" {words} ||
    echo "[nemo-sky] this node has no fuse: only the agent and SkyPilot's autodown end it" >&2
fi
"""


def arm(
    task: Task, lease: Lease, longest: int | None, deadline: int | None = None, *, capped: bool = True
) -> Task:
    """The task whose first node goes down when its lease ends without a renewal; not ``capped``, it holds no
    lease, and goes for its deadline. ``longest``: the milliseconds that the whole budget pays for, None when
    that has no end; ``deadline`` in milliseconds since the epoch, None without one."""
    at = 0 if capped or deadline is None else lease.burns_at(deadline)
    envs = {
        **task["envs"],
        "NEMO_SKY_FUSE_S": str(lease.burns_at(lease.first(0)) / 1000),
        "NEMO_SKY_FUSE_AT": str(at / 1000),
        "NEMO_SKY_FUSE_LONGEST_S": "inf" if longest is None else str(longest / 1000),
        "NEMO_SKY_FUSE_DEADLINE": "inf" if deadline is None else str(deadline / 1000),
    }
    names = ("S", "AT", "LONGEST_S", "DEADLINE")
    words = " ".join(["arm", _FILE, *(f"$NEMO_SKY_FUSE_{name}" for name in names)])
    # A scheduler may end what the set-up started with it: the job looks after it once more.
    setup = _START.format(rank="SKYPILOT_SETUP_NODE_RANK", words=words) + task.get("setup", "")
    run = _START.format(rank="SKYPILOT_NODE_RANK", words=f"keep {_FILE}") + task["run"]
    return {**task, "envs": envs, "setup": setup, "run": run}
