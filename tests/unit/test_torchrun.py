"""The exit code of a rank, through torchrun and the agent, for a recipe that names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig import ROOT, Rig

RANKS = (sys.executable, "-m", "launcher.torchrun", "--nproc-per-node", "2", "--master-port")
# The other rank is ended by torchrun.
SCRIPT = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    {end}
{other}
"""


def script(folder: Path, end: str, other: str = "time.sleep(60)") -> str:
    path = folder / "train.py"
    path.write_text(SCRIPT.format(end=end, other=other))
    return str(path)


@pytest.mark.parametrize(
    ("end", "other", "code"),
    [
        ("sys.exit(3)", "time.sleep(60)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(60)", 137),
        ("pass", "", 0),
    ],
)
def test_it_ends_with_the_code_of_the_rank_that_failed(
    tmp_path: Path, end: str, other: str, code: int
) -> None:
    done = subprocess.run(
        [*RANKS, "29611", script(tmp_path, end, other)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert ("Root Cause (first observed failure)" in done.stderr) == bool(code)


def test_a_code_that_the_recipe_names_is_not_tried_again(rig: Rig, tmp_path: Path) -> None:
    rig.job |= {"submission": "one", "limits": {"retries": 5, "preemptions": None, "no_retry": [3, 4]}}
    command = (*RANKS, "29612", script(tmp_path, "sys.exit(3)"))
    assert "attempt 1 failed: the command exited with 3" in rig.run(*command, code=3)
    again = rig.run(*command, code=3)
    assert "attempt 2 failed: not tried again: the command exited with 3" in again
    assert "Root Cause" not in again
    rig.job["limits"]["no_retry"] = []
    assert "attempt 3 failed: the command exited with 3" in rig.run(*command, code=3)
