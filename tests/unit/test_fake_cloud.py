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


def submit(run_dir: Path, *, managed: bool) -> None:
    fake.submit(run_dir, {"run": RUN, "envs": {"COUNT": str(run_dir.parent / "count")}}, managed=managed)


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


@pytest.mark.parametrize("text", ["preemt@x", "preempt", "preempt@", "no-capacity@x", "what"])
def test_an_unknown_command_is_refused(run_dir: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(fake.VARIABLE, text)
    with pytest.raises(UserError, match="is no command"):
        submit(run_dir, managed=True)
