"""The agent and its command, killed in every way: nothing outlives it, nothing half-done is ever used."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.artifacts import checkpoints, registry
from launcher.artifacts.uri import ArtifactRef
from launcher.backends import local
from tests.rig import ROOT, TRAINER, Rig, make_rig

TORCHRUN = ROOT / "tests" / "fixtures" / "torchrun.py"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with make_rig(tmp_path) as made:
        yield made


def started(rig: Rig, *words: str, **env: str) -> subprocess.Popen[str]:
    """An agent whose two ranks train under something like torchrun."""
    command = (sys.executable, str(TORCHRUN), "2", str(TRAINER), *words)
    process = rig.start(*command, **env)
    rig.until(lambda: len(list(rig.work.glob("ready-*"))) == 2)
    return process


def named(rig: Rig, script: str) -> list[int]:
    return [pid for pid in rig.alive() if said(pid, "cmdline", script.encode())]


def said(pid: int, what: str, text: bytes) -> bool:
    try:
        return text in Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return False


def has_checkpoint(rig: Rig, attempt: int) -> bool:
    return any(event["type"] == "checkpoint" for event in rig.journal(attempt))


# Signals


def test_sigterm_goes_to_the_ranks_and_not_to_torchrun(rig: Rig) -> None:
    process = started(rig, "5000", "sleep=0.02", "save=10000")
    process.terminate()
    printed = rig.finish(process, 75)
    assert "torchrun itself" not in printed
    assert printed.count("saved at") == 2
    assert checkpoints.newest(rig.store, rig.run_id)
    assert rig.alive() == []


@pytest.mark.parametrize("second", [True, False])
def test_what_does_not_save_in_time_is_killed(rig: Rig, second: bool) -> None:
    env = {"NEMO_SKY_GRACE_S": "60" if second else "0.3"}
    process = rig.start("bash", "-c", "trap '' TERM; echo ready; while true; do sleep 0.1; done", **env)
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    process.terminate()
    if second:
        assert "SIGTERM: the command has 60 s" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
    rig.finish(process, 75)
    assert rig.alive() == []


# Kills


def test_killing_the_agent_takes_every_rank_with_it(rig: Rig) -> None:
    process = started(rig, "5000", "sleep=0.02")
    process.kill()
    process.wait()
    rig.until(lambda: not rig.alive())


def test_killing_the_guard_takes_every_rank_with_it_and_fails_the_attempt(rig: Rig) -> None:
    process = started(rig, "5000", "sleep=0.02", "save=100000")
    (guard,) = named(rig, "guard.py")
    os.kill(guard, signal.SIGKILL)
    assert "killed by signal 9" in rig.finish(process, 137)
    assert rig.alive() == []


def test_killing_torchrun_takes_its_ranks_with_it(rig: Rig) -> None:
    process = started(rig, "5000", "sleep=0.02", "save=100000")
    (torchrun,) = [pid for pid in named(rig, "torchrun.py") if pid not in named(rig, "guard.py")][-1:]
    os.kill(torchrun, signal.SIGKILL)
    rig.finish(process, 137)
    assert rig.alive() == []


def test_killing_all_in_mid_training_changes_nothing_in_the_end(rig: Rig) -> None:
    whole = rig.run("60", "save=7").split("final loss ")[1].split()[0]
    rig.run_id += "-k"
    for attempt in (1, 2):
        process = rig.start("60", "save=7", "sleep=0.05")
        rig.until(functools.partial(has_checkpoint, rig, attempt))
        for pid in rig.alive():
            os.kill(pid, signal.SIGKILL)
        process.wait()
    newest = checkpoints.newest(rig.store, rig.run_id)
    assert newest is not None
    printed = rig.run("60", "save=7")
    assert f"starts at {newest.step} of 60" in printed
    assert f"final loss {whole}" in printed
    made = registry.resolve(rig.store, ArtifactRef("toy-model"))
    assert made.producer["attempt"] == 3
    killed = [rig.journal(attempt) for attempt in (1, 2)]
    seconds = sum(events[-1]["ts"] - events[0]["ts"] for events in killed)
    assert made.producer["hours"] * 3600 > seconds > 0.5, "the killed attempts were paid for too"


def test_a_kill_during_an_upload_leaves_nothing_that_is_used(rig: Rig, tmp_path: Path) -> None:
    """Killed with a part of checkpoint 20 in the store, the run goes on from 10."""
    process = rig.start("20", "save=10", "sleep=0.05", "size=60000000")
    second = tmp_path / "store" / "checkpoints" / rig.run_id / "iter_0000020"
    rig.until(lambda: any(second.glob("*-0.*")))
    process.kill()
    process.wait()
    assert not (second / ".nemo-sky" / "manifest.json").exists(), "the kill came too late for this test"
    newest = checkpoints.newest(rig.store, rig.run_id)
    assert newest is not None
    assert newest.step == 10
    rig.until(lambda: not rig.alive())
    assert "starts at 10 of 20" in rig.run("20", "save=10")
    assert registry.resolve(rig.store, ArtifactRef("toy-model")).metadata["step"] == 20


# Under the local backend

RUN = f'exec python -m launcher.agent --job "$NEMO_SKY_JOB" -- {sys.executable} {TRAINER} '


@pytest.fixture
def run_dir(rig: Rig) -> Iterator[Path]:
    """The run's folder, whose name is its id, with the job's files in it."""
    path = rig.folder / rig.run_id
    rig.write()
    path.mkdir()
    rig.job_folder.rename(path / "job")
    yield path
    local.cancel(path, grace_s=0)


def test_killing_the_supervisor_loses_nothing(rig: Rig, run_dir: Path) -> None:
    task = {"run": f'{RUN} 60 save=100 sleep="$PAUSE"'}
    local.submit(run_dir, {**task, "envs": {**rig.env_of_task(), "PAUSE": "0.1"}})
    rig.until(lambda: any("starts at 0" in line for line in local.follow(run_dir, wait=False)))
    pid = local.status(run_dir).pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    rig.until(lambda: local.status(run_dir).status == "LOST")
    local.submit(run_dir, {**task, "envs": {**rig.env_of_task(), "PAUSE": "0"}})
    saved = checkpoints.newest(rig.store, rig.run_id)
    assert saved, "the agent was told, its trainer saved, and it committed that"
    lines = list(local.follow(run_dir))
    assert f"rank 0 starts at {saved.step} of 60" in lines
    assert local.status(run_dir).status == "SUCCEEDED"


def test_cancel_commits_what_the_trainer_saves(rig: Rig, run_dir: Path) -> None:
    local.submit(run_dir, {"run": f"{RUN} 5000 save=10000 sleep=0.02", "envs": rig.env_of_task()})
    rig.until(lambda: any("starts at 0" in line for line in local.follow(run_dir, wait=False)))
    local.cancel(run_dir)
    assert rig.alive() == []
    state = local.status(run_dir)
    assert (state.status, state.attempts[-1].exit_codes) == ("CANCELLED", (75,))
    assert checkpoints.newest(rig.store, rig.run_id)


# Two nodes


def test_two_nodes_make_one_checkpoint_and_resume_from_it(rig: Rig, run_dir: Path) -> None:
    task = {"num_nodes": 2, "envs": rig.env_of_task()}
    (run_dir / "1").mkdir()
    (run_dir / "2").mkdir()
    run = f'{RUN} 60 save=20 sleep="$PAUSE" at=${{AT:-0}} ranks=2 shared={run_dir}/$NEMO_SKY_ATTEMPT'
    stop_at = {"PAUSE": "0.04", "AT": "50"}
    local.submit(run_dir, {**task, "run": run, "envs": {**task["envs"], **stop_at}})  # type: ignore[dict-item]
    lines = list(local.follow(run_dir))
    state = local.status(run_dir)
    assert state.status == "FAILED", lines
    newest = checkpoints.newest(rig.store, rig.run_id)
    assert newest is not None
    assert newest.step in (20, 40)
    both = ["shard-0.bin", "shard-1.bin", "state-0.json", "state-1.json"]
    assert [file.path for file in newest.files] == both
    local.submit(run_dir, {**task, "run": run, "envs": {**task["envs"], "PAUSE": "0"}})  # type: ignore[dict-item]
    lines = list(local.follow(run_dir))
    assert local.status(run_dir).status == "SUCCEEDED", lines
    assert {f"[node {rank}] rank {rank} starts at {newest.step} of 60" for rank in (0, 1)} <= set(lines)
    made = registry.resolve(rig.store, ArtifactRef("toy-model"))
    assert (made.metadata["step"], made.producer["nodes"]) == (60, 2)
    assert [file.path for file in made.files] == both


def test_a_node_that_saves_nothing_holds_no_checkpoint_up(rig: Rig, run_dir: Path) -> None:
    run = RUN.replace(f"{sys.executable} {TRAINER}", "bash -c") + (
        f"'[ $SKYPILOT_NODE_RANK = 1 ] || exec python {TRAINER} 20 save=10'"
    )
    local.submit(run_dir, {"num_nodes": 2, "envs": rig.env_of_task(), "run": run})
    lines = list(local.follow(run_dir))
    assert local.status(run_dir).status == "SUCCEEDED", lines
    made = registry.resolve(rig.store, ArtifactRef("toy-model"))
    assert [file.path for file in made.files] == ["shard-0.bin", "state-0.json"]
