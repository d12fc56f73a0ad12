"""Seconds from the command to the first training step: `nemo-sky launch` beside a bare `sky launch`.

    python -m benchmarks.launch_overhead [--rounds 3]

Both train the same stage with the same config on a real Slurm of this machine (see tests/rigs), on a cluster
of their own, with SkyPilot's API server already up. The bare one runs torchrun on the script itself: no
agent, no store, no lineage. They take turns. Target: at most 1.15 times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher import config, plan, project, task
from tests.e2e.conftest import make_project
from tests.rigs.slurm import SlurmRig, slurm_rig

BIN = Path(sys.executable).parent
TARGET = 1.15
STAGE = ("tiny", "pretrain")
OVERRIDES = ("data=null", "run.data=null", "train.log_interval=1")
FIRST_STEP = "step     1/"


def bare_task(rig: SlurmRig, root: Path, folder: Path) -> Path:
    """The task of a plain `sky launch` that trains the same: our own without the agent."""
    here = project.read(root)
    request = plan.Request(*STAGE, str(rig.profile), "smoke", OVERRIDES)
    (found,) = plan.plans(request, here, plan.select(request, here))
    ours = plan.to_task(found, here, job_dir="unused")
    work = folder / "bare"  # the rig's nodes see this machine's folders
    places = {"$NEMO_SKY_CHECKPOINTS": f"{work}/checkpoints", "$NEMO_SKY_WORK": str(work)}
    text = config.dump_yaml(found.values)
    for token, place in places.items():
        text = text.replace(token, place)
    (folder / "config.yaml").write_text(text)
    script = here.show(found.spec.script_path)
    run = [
        *found.profile.activate.splitlines(),
        f"rm -rf {work}; mkdir {work}",
        f"export NEMO_SKY_METRICS={work}/m.jsonl NEMO_SKY_METADATA={work}/m.json PYTHONPATH=$PWD",
        f"torchrun --nproc-per-node {found.spec.sky.procs_per_node} {script} --config ~/config.yaml",
    ]
    built = {**ours, "workdir": str(root), "file_mounts": {"~/config.yaml": str(folder / "config.yaml")}}
    path = folder / "bare.yaml"
    path.write_text(task.dump({**built, "run": "".join(f"{line}\n" for line in run)}))
    return path


def seconds(command: list[str], cwd: Path, env: dict[str, str]) -> float:
    """From the command to the first line that shows a step; then the command is left to end."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    lines = []
    taken = None
    for line in process.stdout:
        lines.append(line)
        if taken is None and FIRST_STEP in line:
            taken = time.perf_counter() - started
    if process.wait() or taken is None:
        sys.exit(f"{' '.join(command)} failed:\n{''.join(lines[-40:])}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = make_project(folder / "project").root
        with slurm_rig(folder / "rig") as rig:
            env = {**rig.env, "PYTHONUNBUFFERED": "1"}
            sky, ours = str(BIN / "sky"), str(BIN / "nemo-sky")
            subprocess.run([sky, "check", "slurm"], env=env, check=True, stdout=subprocess.DEVNULL)
            bare = bare_task(rig, root, folder)
            times: dict[str, list[float]] = {"sky launch": [], "nemo-sky launch": []}
            for number in range(rounds + 1):  # the first warms both and does not count
                name = f"bare{number}"
                peer = seconds([sky, "launch", "--yes", "--cluster", name, str(bare)], root, env)
                subprocess.run([sky, "down", "--yes", name], env=env, check=True, stdout=subprocess.DEVNULL)
                words = ["launch", *STAGE, "-c", "smoke", *OVERRIDES, "--force"]
                mine = seconds([ours, *words, "--cluster", str(rig.profile)], root, env)
                if number:
                    times["sky launch"].append(peer)
                    times["nemo-sky launch"].append(mine)
    base = statistics.median(times["sky launch"])
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {rounds} rounds")
    print(f"{'command':20} {'median s':>9} {'ratio':>7} {'target':>7}")
    for name, taken in times.items():
        median = statistics.median(taken)
        target = f"{TARGET:7.2f}" if name != "sky launch" else ""
        print(f"{name:20} {median:9.1f} {median / base:7.3f} {target}")


if __name__ == "__main__":
    main()
