"""SkyPilot alone on the Slurm rig: what ours is built on must be there."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil

from tests.rig import until
from tests.rigs import skyhome
from tests.rigs.slurm import SlurmRig

TASK = """\
num_nodes: 2
resources:
  infra: {infra}
  accelerators: H100:8
run: |
  echo "host=$(hostname) rank=$SKYPILOT_NODE_RANK gpus=$CUDA_VISIBLE_DEVICES ips=$(echo $SKYPILOT_NODE_IPS)"
"""


def processes_of(folder: Path) -> list[psutil.Process]:
    """Those that a rig in ``folder`` started, and what they started: they name it in what they were told."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(f"{folder}/" in value for value in [*process.cmdline(), *process.environ().values()]):
                found.append(process)
    return found


def sky(rig: SlurmRig, *words: str) -> str:
    done = subprocess.run(["sky", *words], env=rig.env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_two_nodes_see_each_other_and_their_gpus(slurm: SlurmRig, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(TASK.format(infra=slurm.infra))
    said = sky(slurm, "launch", "--yes", "--cluster", "two", str(tmp_path / "task.yaml"))
    lines = [line.split("host=")[1] for line in said.splitlines() if "host=" in line]
    assert [line.split()[:3] for line in sorted(lines)] == [
        ["n1", "rank=0", "gpus=0,1,2,3,4,5,6,7"],
        ["n2", "rank=1", "gpus=0,1,2,3,4,5,6,7"],
    ]
    addresses = {line.split("ips=")[1] for line in lines}
    assert len(addresses) == 1
    assert len(set(addresses.pop().split())) == 2
    assert len(slurm.squeue()) == 1

    sky(slurm, "down", "--yes", "two")
    assert until(lambda: not slurm.squeue())


HOLD = """\
import subprocess, sys, time
from pathlib import Path
from tests.rigs.slurm import slurm_rig
with slurm_rig(Path(sys.argv[1])) as rig:
    subprocess.run(["sky", "api", "start"], env=rig.env, check=True, stdout=subprocess.DEVNULL)
    print("up", flush=True)
    time.sleep(600)
"""


def test_a_killed_holder_leaves_nothing(slurm: SlurmRig, tmp_path: Path) -> None:
    """Two rigs at once, too: the one that other tests use stays."""
    folder = tmp_path / "rig"
    words = [sys.executable, "-c", HOLD, str(folder)]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=skyhome.ROOT)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        mine = processes_of(folder)
        started = " ".join(word for process in mine for word in process.cmdline())
        for name in ("munged", "slurmctld", "slurmd -D -N n2", "sshd", "sky.server.server"):
            assert name in started
    finally:
        holder.kill()
        holder.communicate()
    assert until(lambda: not processes_of(folder), seconds=60)
    assert slurm.squeue() == []
