"""The fake cloud with real processes: preempted on command, recovered when managed, lost when not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from launcher.backends import fake
from launcher.errors import Refused, UserError
from tests.rig import processes_of, until

# Every attempt adds a line to a file, and only the third one ends.
RUN = 'echo again >>"$COUNT"; echo "attempt $(wc -l <"$COUNT")"; [ "$(wc -l <"$COUNT")" -ge 3 ] || sleep 600'


@pytest.fixture
def run_dir(tmp_path: Path) -> Any:
    path = tmp_path / f"run-{os.getpid()}-{tmp_path.name}"
    yield path
    fake.cancel(path, grace_s=0)
    until(lambda: not processes_of(path.name))


# Only the attempt that ENDS well does; the others fail.
FAILS = (
    'echo again >>"$COUNT"; echo "attempt $(wc -l <"$COUNT")"; [ "$(wc -l <"$COUNT")" -ge "$ENDS" ] || exit 3'
)


def submit(run_dir: Path, *, managed: bool, run: str = RUN, retries: int = 0, **more: Any) -> None:
    task = {
        "run": run,
        "resources": {"job_recovery": {"strategy": "FAILOVER", "max_restarts_on_errors": retries}},
        "envs": {"COUNT": str(run_dir.parent / "count"), "ENDS": "2"},
    }
    fake.submit(run_dir, {**task, **more}, managed=managed)


def test_a_managed_job_comes_back_in_another_zone(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake.VARIABLE, "preempt@attempt 1; preempt@attempt 2")
    submit(run_dir, managed=True)
    first = fake.status(run_dir).place["zone"]
    assert list(fake.follow(run_dir)) == ["attempt 1", "attempt 2", "attempt 3"]
    state = fake.status(run_dir)
    assert (state.status, state.preemptions, len(state.attempts)) == ("SUCCEEDED", 2, 3)
    assert state.place["zone"] != first


def test_any_other_job_is_lost_and_may_be_launched_again(run_dir: Path) -> None:
    submit(run_dir, managed=False)
    until(lambda: (run_dir.parent / "count").exists())
    fake.preempt(run_dir)
    assert processes_of(run_dir.name) == []
    assert fake.status(run_dir).status == "LOST"
    with pytest.raises(Refused, match="no node to preempt: it is lost"):
        fake.preempt(run_dir)
    submit(run_dir, managed=False)
    assert fake.status(run_dir).active


def test_nothing_is_left_of_a_job_that_forks_while_it_is_preempted(run_dir: Path) -> None:
    script = 'echo again >>"$COUNT"; for _ in $(seq 300); do sleep 600 & done; wait'
    fake.submit(run_dir, {"run": script, "envs": {"COUNT": str(run_dir.parent / "count")}}, managed=False)
    until(lambda: (run_dir.parent / "count").exists())
    fake.preempt(run_dir)
    assert processes_of(run_dir.name) == []


def test_there_may_be_no_capacity(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake.VARIABLE, "no-capacity")
    with pytest.raises(Refused, match="no capacity"):
        submit(run_dir, managed=True)
    assert fake.status(run_dir).status == "LOST"
    submit(run_dir, managed=True)
    assert fake.status(run_dir).active


def test_a_cancelled_job_is_not_recovered(run_dir: Path) -> None:
    submit(run_dir, managed=True)
    until(lambda: (run_dir.parent / "count").exists())
    fake.cancel(run_dir, grace_s=0)
    assert fake.status(run_dir).status == "CANCELLED"
    assert processes_of(run_dir.name) == []


@pytest.mark.parametrize(("retries", "managed"), [(1, True), (0, True), (1, False)])
def test_a_managed_job_that_fails_is_begun_again_so_often(run_dir: Path, retries: int, managed: bool) -> None:
    again = retries > 0 and managed
    submit(run_dir, managed=managed, run=FAILS, retries=retries)
    assert list(fake.follow(run_dir)) == (["attempt 1", "attempt 2"] if again else ["attempt 1"])
    state = fake.status(run_dir)
    assert (state.status, state.preemptions) == ("SUCCEEDED" if again else "FAILED", 0)


def test_what_fails_once_more_than_it_may_has_failed(run_dir: Path) -> None:
    submit(run_dir, managed=True, run=FAILS.replace('"$ENDS"', "3"), retries=1)
    assert list(fake.follow(run_dir)) == ["attempt 1", "attempt 2"]
    state = fake.status(run_dir)
    assert (state.status, state.reason) == ("FAILED", "the job exited with 3")
    submit(run_dir, managed=True, run="true")
    assert list(fake.follow(run_dir)) == []
    assert fake.status(run_dir).status == "SUCCEEDED"


def test_preemptions_are_not_counted_among_failures(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake.VARIABLE, "preempt@attempt 1")
    run = FAILS.replace(
        '-ge "$ENDS" ] || exit 3', '-ge 3 ] || { [ "$(wc -l <"$COUNT")" = 1 ] && sleep 600; exit 3; }'
    )
    submit(run_dir, managed=True, run=run, retries=1)
    assert list(fake.follow(run_dir)) == ["attempt 1", "attempt 2", "attempt 3"]
    state = fake.status(run_dir)
    assert (state.status, state.preemptions) == ("SUCCEEDED", 1)


def test_a_recovery_needs_the_secrets_of_the_job(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake.VARIABLE, "preempt@attempt 1")
    run = RUN.replace("again", '"$MINE"').replace("-ge 3", "-ge 2")
    submit(run_dir, managed=True, run=run, secrets={"MINE": None})
    lines = fake.follow(run_dir)
    assert next(lines) == "attempt 1"
    assert list(lines) == []
    state = fake.status(run_dir)
    assert (state.status, state.active) == ("LOST", False)
    assert "no secrets such as MINE" in (state.reason or "")
    monkeypatch.setenv("MINE", "of the environment")
    assert list(fake.follow(run_dir)) == ["attempt 1", "attempt 2"]
    assert (run_dir.parent / "count").read_text().splitlines()[1:] == ["of the environment"]


@pytest.mark.parametrize("text", ["preemt@x", "preempt", "preempt@", "no-capacity@x", "what"])
def test_an_unknown_command_is_refused(run_dir: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(fake.VARIABLE, text)
    with pytest.raises(UserError, match="is no command"):
        submit(run_dir, managed=True)
