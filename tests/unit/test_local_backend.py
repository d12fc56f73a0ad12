"""The local backend with real processes: what a task sees, its log, how it ends, and that nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher import backends
from launcher.backends import local, nodes, supervisor
from launcher.errors import Refused, UserError
from tests.moments import in_child
from tests.rig import processes_of, until


def of_run(run_dir: Path) -> list[int]:
    return processes_of(run_dir.name)


def start(run_dir: Path, run: str, **task: Any) -> None:
    local.submit(run_dir, {"name": "t", "run": run, **task})


def finish(run_dir: Path, run: str, **task: Any) -> tuple[backends.State, list[str]]:
    start(run_dir, run, **task)
    lines = list(local.follow(run_dir))
    return local.status(run_dir), lines


@pytest.fixture
def run_dir(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    path = tmp_path / f"run-{os.getpid()}-{tmp_path.name}"
    yield path
    local.cancel(path, grace_s=0)
    until(lambda: not of_run(path))


# What a task sees


def test_a_node_has_skypilots_variables_and_the_tasks_own(run_dir: Path, tmp_path: Path) -> None:
    show = (
        'echo "$SKYPILOT_NODE_RANK/$SKYPILOT_NUM_NODES" $SKYPILOT_NODE_IPS;'
        'echo "$NEMO_SKY_JOB $NEMO_SKY_WORK";'
        'echo "$MINE $PWD $(command -v python)"; python -c "import launcher.agent"'
    )
    envs = {"MINE": "a 'b'", "NEMO_SKY_JOB": "~/.nemo-sky/jobs/x"}
    mounts = {"~/.nemo-sky/jobs/x": "/somewhere"}
    state, lines = finish(run_dir, show, num_nodes=2, envs=envs, workdir=str(tmp_path), file_mounts=mounts)
    assert state.status == "SUCCEEDED", lines
    assert state.attempts[0].exit_codes == (0, 0)
    python = Path(sys.executable).parent / "python"
    for rank in (0, 1):
        assert [line for line in lines if line.startswith(f"[node {rank}] ")] == [
            f"[node {rank}] {rank}/2 127.0.0.1 127.0.0.2",
            f"[node {rank}] {run_dir}/job {run_dir}/work/node-{rank}",
            f"[node {rank}] a 'b' {tmp_path} {python}",
        ]


def test_the_callers_own_run_does_not_leak_into_a_task(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NEMO_SKY_ATTEMPT", "SKYPILOT_NODE_RANK", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "9")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    _, lines = finish(run_dir, 'echo "$NEMO_SKY_ATTEMPT$MLFLOW_TRACKING_URI$RAY_ADDRESS" $SKYPILOT_NODE_RANK')
    assert lines == [" 0"]
    _, lines = finish(run_dir, "echo $AWS_PROFILE")
    assert lines == ["mine"]


def test_gpus_are_shared_among_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,9")
    place = nodes.survey(tmp_path, 2)
    second = nodes.environment(place, {}, 1)
    assert (second["SKYPILOT_NUM_GPUS_PER_NODE"], second["CUDA_VISIBLE_DEVICES"]) == ("2", "6,7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert nodes.visible_gpus() == ()


# Its log


def test_every_line_arrives_whole_and_in_order(run_dir: Path) -> None:
    code = (
        "import sys\n"
        "for i in range(20000): print(i)\n"
        "print('x' * 300000)\n"
        "sys.stdout.flush(); sys.stdout.buffer.write(b'\\xff\\xfebad\\n 10%\\r 90%\\r100%\\r\\nlast')"
    )
    state, lines = finish(run_dir, f'python -c "{code}"')
    assert state.status == "SUCCEEDED"
    assert lines[:20000] == [str(i) for i in range(20000)]
    assert lines[20000:] == ["x" * 300000, "\ufffd\ufffdbad", "100%", "last"]


def test_a_line_without_end_does_not_fill_the_memory(run_dir: Path) -> None:
    _, lines = finish(run_dir, "head -c 3000000 /dev/zero | tr '\\0' y")
    assert "".join(lines) == "y" * 3000000
    assert len(lines) > 1


def test_lines_come_while_the_run_goes_on_and_waiting_costs_little(run_dir: Path) -> None:
    start(run_dir, "echo first; sleep 1; echo second")
    lines = local.follow(run_dir)
    assert next(lines) == "first"
    assert local.status(run_dir).status == "RUNNING"
    before = time.process_time()
    assert list(lines) == ["second"]
    assert time.process_time() - before < 0.3
    assert list(local.follow(run_dir, from_start=False)) == []
    assert list(local.follow(run_dir, wait=False)) == ["first", "second"]


def test_the_newest_attempt_is_followed(run_dir: Path) -> None:
    finish(run_dir, "echo one; exit 1")
    state, lines = finish(run_dir, "echo two")
    assert lines == ["two"]
    assert [(a.n, a.status, a.exit_codes) for a in state.attempts] == [
        (1, "FAILED", (1,)),
        (2, "SUCCEEDED", (0,)),
    ]
    assert all(attempt.ended_at for attempt in state.attempts)


# How it begins


def test_what_a_killed_launcher_was_starting_is_started_once(run_dir: Path) -> None:
    """It dies when the supervisor knows all that it must, and has not taken the run over yet."""

    def child() -> None:
        subprocess.Popen.wait = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign]
        start(run_dir, "sleep 0.5; echo once")

    assert in_child(child) == -signal.SIGKILL
    assert local.status(run_dir).active
    with pytest.raises(Refused, match="already"):
        start(run_dir, "echo twice")
    assert list(local.follow(run_dir)) == ["once"]
    state = local.status(run_dir)
    assert (state.status, len(state.attempts)) == ("SUCCEEDED", 1)


def test_what_is_being_started_can_be_cancelled(run_dir: Path) -> None:
    def child() -> None:
        subprocess.Popen.wait = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign]
        start(run_dir, "sleep 600")

    assert in_child(child) == -signal.SIGKILL
    local.cancel(run_dir, grace_s=30)
    assert local.status(run_dir).status == "CANCELLED"


# How it ends


def test_set_up_runs_once_and_its_failure_is_the_runs(run_dir: Path) -> None:
    state, lines = finish(run_dir, "echo never", setup="echo preparing; exit 4", num_nodes=2)
    assert (state.status, state.reason, state.tail) == ("FAILED", "set-up exited with 4", ("preparing",))
    assert lines == ["preparing"]


def test_a_failing_node_stops_the_others_and_is_quoted(run_dir: Path) -> None:
    ready = f"{run_dir.parent}/ready-"  # node 1 fails when the other two can save
    run = (
        f'if [ "$SKYPILOT_NODE_RANK" = 1 ]; then until [ -e {ready}0 -a -e {ready}2 ]; do sleep 0.05; done;'
        "for i in $(seq 300); do echo line $i; done; exit 3; fi;"
        f'trap "echo saved; exit 75" TERM; touch {ready}$SKYPILOT_NODE_RANK; sleep 60 & wait'
    )
    state, lines = finish(run_dir, run, num_nodes=3)
    assert (state.status, state.reason) == ("FAILED", "node 1 exited with 3")
    assert state.attempts[-1].exit_codes == (75, 3, 75)
    assert state.tail == tuple(f"line {i}" for i in range(181, 301))
    assert {"[node 0] saved", "[node 2] saved"} <= set(lines)


@pytest.mark.parametrize(
    ("run", "status", "reason"),
    [
        ("exit 75", "INTERRUPTED", "the job was told to stop"),
        ("kill -9 $$", "FAILED", "the job was killed by SIGKILL, perhaps for want of memory"),
        ("no-such-command", "FAILED", "the job exited with 127"),
    ],
)
def test_an_end_is_named(run_dir: Path, run: str, status: str, reason: str) -> None:
    state, _ = finish(run_dir, run)
    assert (state.status, state.reason) == (status, reason)


# That nothing stays

DAEMON = "python -c 'import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(60)'"


def test_cancel_lets_a_node_save_and_leaves_nothing(run_dir: Path) -> None:
    start(run_dir, f'trap "echo saved; exit 75" TERM; {DAEMON}; echo ready; sleep 60 & wait', num_nodes=2)
    lines = local.follow(run_dir)
    assert {next(lines), next(lines)} == {"[node 0] ready", "[node 1] ready"}
    local.cancel(run_dir)
    assert of_run(run_dir) == []
    state = local.status(run_dir)
    assert (state.status, state.attempts[-1].exit_codes) == ("CANCELLED", (75, 75))
    assert sorted(lines) == ["[node 0] saved", "[node 1] saved"]


def test_cancel_kills_what_does_not_end_in_its_grace(run_dir: Path) -> None:
    start(run_dir, "trap '' TERM; echo ready; while true; do sleep 0.1; done")
    assert next(local.follow(run_dir)) == "ready"
    began = time.monotonic()
    local.cancel(run_dir, grace_s=0.3)
    assert time.monotonic() - began < 10, "its grace is 0.3 s, not the usual"
    assert of_run(run_dir) == []
    assert local.status(run_dir).status == "CANCELLED"


def test_a_second_interrupt_kills_at_once(run_dir: Path) -> None:
    start(run_dir, "trap 'echo saving' TERM; echo ready; while true; do sleep 0.1; done")
    log = local.follow(run_dir)
    assert next(log) == "ready"
    # A shell that starts the tests in the background has them ignore Ctrl-C; the canceller must not.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "import sys, pathlib, launcher.backends.local as l; l.cancel(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(run_dir)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as canceller:
        until(lambda: "saving" in local.follow(run_dir, wait=False))
        canceller.send_signal(signal.SIGINT)
        assert canceller.wait(10) != 0
    assert of_run(run_dir) == []
    assert local.status(run_dir).status == "CANCELLED"


def test_what_a_job_leaves_running_ends_with_it(run_dir: Path) -> None:
    began = time.monotonic()
    state, _ = finish(run_dir, f"{DAEMON}; (trap '' TERM; sleep 60) & echo done")
    assert state.status == "SUCCEEDED"
    assert time.monotonic() - began < 20, "the guard itself ends them"
    assert of_run(run_dir) == []


def test_killing_the_supervisor_brings_the_nodes_down_after_their_save(run_dir: Path) -> None:
    saved = run_dir.parent / "saved"  # a save takes until this test says so
    wait = f"until [ -e {saved} ]; do sleep 0.05; done"
    start(run_dir, f'trap "{wait}; echo saved; exit 75" TERM; echo ready; sleep 60 & wait', num_nodes=2)
    log = local.follow(run_dir)
    assert next(log)
    assert next(log)
    pid = local.status(run_dir).pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: local.status(run_dir).status == "LOST")
    assert of_run(run_dir), "the nodes are saving"
    saved.touch()
    # The next attempt begins when the last process of this one is gone.
    start(run_dir, f"ls /proc/*/environ >/dev/null 2>&1; echo $({sys.executable} -c pass; echo again)")
    first = [(run_dir / "logs" / "attempt-1" / f"node-{rank}.log").read_text() for rank in (0, 1)]
    assert first == ["ready\nsaved\n"] * 2
    assert list(local.follow(run_dir)) == ["again"]
    assert [attempt.n for attempt in local.status(run_dir).attempts] == [1, 2]


def test_killing_a_guard_fails_the_run_and_leaves_nothing(run_dir: Path) -> None:
    run = f"{DAEMON}; trap 'echo saved; exit 75' TERM; echo ready; sleep 60 & wait"
    start(run_dir, run, envs={"NEMO_SKY_GRACE_S": "0.5"})
    log = local.follow(run_dir)
    assert next(log) == "ready"
    (guard,) = [p for p in of_run(run_dir) if b"guard.py" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(guard, signal.SIGKILL)
    assert list(log) == ["saved"]
    assert local.status(run_dir).status == "FAILED"
    assert of_run(run_dir) == []


def test_a_reused_pid_is_not_taken_for_the_supervisor(run_dir: Path) -> None:
    finish(run_dir, "true")
    state = (run_dir / "state.json").read_text().replace("SUCCEEDED", "RUNNING")
    (run_dir / "state.json").write_text(state)
    until(lambda: local.status(run_dir).status == "LOST")
    pid = local.status(run_dir).pid
    text = state.replace(f'"pid": {pid}', f'"pid": {os.getpid()}')
    (run_dir / "state.json").write_text(text)
    assert local.status(run_dir).status == "LOST"
    assert supervisor.process_start(os.getpid()) is not None


# What is refused


def test_an_active_run_is_not_started_again(run_dir: Path) -> None:
    start(run_dir, "sleep 60")
    with pytest.raises(Refused, match=r"is (pending|running) already"):
        start(run_dir, "true")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"run": ""}, "nothing to run"),
        ({"run": "true", "file_mounts": {"/data": "s3://bucket"}}, "/data cannot be mounted"),
        ({"run": "true", "workdir": "/no/such/folder"}, "no folder /no/such/folder"),
    ],
)
def test_a_task_that_cannot_run_here_is_refused(run_dir: Path, task: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        local.submit(run_dir, task)
    assert not run_dir.exists()


def test_a_run_that_was_never_started_is_lost(run_dir: Path) -> None:
    assert local.status(run_dir).status == "LOST"
    assert list(local.follow(run_dir)) == []
    local.cancel(run_dir)
