"""A real Ray cluster on two emulated nodes, brought up and taken down by the agent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.backends import local
from tests.rig import Rig, make_rig

DRIVER = """
import os, sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
assert len(nodes) == int(sys.argv[1]), nodes

@ray.remote(num_cpus=1)
def where():
    return ray.get_runtime_context().get_node_id(), os.environ["NEMO_SKY_WORK"]

pinned = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
ran = [where.options(scheduling_strategy=strategy).remote() for strategy in pinned]
found = ray.get(ran)
assert [node for node, _ in found] == nodes
print("WORKS", *sorted(work for _, work in found), flush=True)
"""
SAVES = """
import signal, time
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
while not stopping:
    time.sleep(0.1)
print("SAVED", len(ray.get([where.remote(), where.remote()])), flush=True)
"""
RUN = f'exec python -m launcher.agent --job "$NEMO_SKY_JOB" --ray -- {sys.executable} driver.py'


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with make_rig(tmp_path) as made:
        made.job |= {"output": None, "checkpoints": None}
        made.write()
        (tmp_path / made.run_id).mkdir()
        made.job_folder.rename(tmp_path / made.run_id / "job")
        (tmp_path / "driver.py").write_text(DRIVER)
        yield made
        local.cancel(tmp_path / made.run_id, grace_s=0)


def leftovers() -> set[Path]:
    return set(Path("/tmp").glob("nemo-sky-ray-*"))


def test_two_nodes_make_one_cluster_and_leave_nothing(rig: Rig, tmp_path: Path) -> None:
    run_dir, before = tmp_path / rig.run_id, leftovers()
    task = {"num_nodes": 2, "run": f"{RUN} 2", "envs": rig.env_of_task(), "workdir": str(tmp_path)}
    local.submit(run_dir, task)
    lines = list(local.follow(run_dir))
    state = local.status(run_dir)
    assert (state.status, state.attempts[-1].exit_codes) == ("SUCCEEDED", (0, 0)), lines
    work = run_dir / "work"
    assert f"[node 0] WORKS {work}/node-0 {work}/node-1" in lines
    assert rig.alive() == []
    assert leftovers() == before


def test_cancel_lets_the_driver_save_while_the_cluster_stands(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(f"{DRIVER}{SAVES}")
    run_dir, before = tmp_path / rig.run_id, leftovers()
    task = {"num_nodes": 2, "run": f"{RUN} 2", "envs": rig.env_of_task(), "workdir": str(tmp_path)}
    local.submit(run_dir, task)
    log = local.follow(run_dir)
    lines: list[str] = []
    while not lines or "WORKS" not in lines[-1]:
        lines.append(next(log))
    local.cancel(run_dir)
    lines += log
    assert "[node 0] SAVED 2" in lines
    state = local.status(run_dir)
    assert (state.status, state.attempts[-1].exit_codes) == ("CANCELLED", (75, 75)), lines
    assert rig.alive() == []
    assert leftovers() == before
