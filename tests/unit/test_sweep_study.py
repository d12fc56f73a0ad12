"""What Optuna's file keeps: trials survive the process, the weak are stopped, nothing is tried twice."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.sweep import space
from launcher.sweep.study import Study, best

SPACE = """\
seed: 5
resource: {key: train.steps, min: 10, max: 90, reduction: 3}
space:
  lr: {low: 1e-4, high: 1e-1, log: true}
  layers: {low: 1, high: 8, int}
"""
Open = Callable[..., Study]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens the study of a space file, each time as a new process would."""

    def call(text: str = SPACE) -> Study:
        path = tmp_path / "space.yaml"
        path.write_text(text)
        found = space.read(path)
        return Study(tmp_path / "study.db", found, found.resource.max if found.resource else None)

    return call


@pytest.fixture
def names() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"run-{next(numbers)}"


def test_a_trial_is_as_its_file_has_it(opened: Open, names: Callable[[], str]) -> None:
    study = opened()
    trial = study.propose(names)
    assert trial
    assert 1e-4 <= float(str(trial.params["lr"])) <= 1e-1
    assert trial.params["layers"] in range(1, 9)
    assert (trial.status, trial.run_id, trial.value) == ("open", "run-0", None)
    study.report(trial, [(10, 3.0), (20, 2.5)])
    again = opened()
    [found] = again.open_trials(names)
    assert (found.number, found.params, found.run_id) == (0, trial.params, "run-0")
    assert (found.value, found.step) == (2.5, 20)
    found = again.report(found, [(10, 9.0), (20, 9.0), (90, 2.0)])  # the journal is read whole every time
    assert again.complete(found).value == 2.0
    assert opened().open_trials(names) == []


def test_a_sweep_taken_up_again_proposes_something_else(opened: Open, names: Callable[[], str]) -> None:
    proposed = [opened().propose(names) for _ in range(6)]
    assert len({str(trial.params) for trial in proposed if trial}) == 6


def test_only_the_best_third_goes_on(opened: Open, names: Callable[[], str]) -> None:
    study = opened()
    trials = [trial for _ in range(9) if (trial := study.propose(names))]
    stopped = []
    for number, trial in enumerate(trials):
        seen = study.report(trial, [(5, 9.0), (12, 1.0 + number)])
        assert seen.step == 12
        stopped.append(seen.stopped_at)
    assert stopped == [None, *[12] * 8], "the first is the best, and those after it come too late"
    ended = study.stop(trials[3])
    assert (ended.status, ended.value) == ("stopped", 4.0)
    better = study.propose(names)
    assert better
    assert study.report(better, [(10, 0.5), (30, 0.4), (90, 0.3)]).stopped_at is None


def test_whoever_has_trained_to_the_end_is_not_stopped(opened: Open, names: Callable[[], str]) -> None:
    study = opened()
    one, other = study.propose(names), study.propose(names)
    assert one
    assert other
    study.complete(study.report(one, [(90, 1.0)]))
    assert study.report(other, [(90, 2.0)]).stopped_at is None


def test_a_verdict_outlives_the_process(opened: Open, names: Callable[[], str]) -> None:
    study = opened()
    one, other = study.propose(names), study.propose(names)
    assert one
    assert other
    study.report(one, [(10, 1.0)])
    assert study.report(other, [(10, 2.0), (20, 0.1)]).stopped_at == 10
    found = opened().open_trials(names)[1]
    assert (found.stopped_at, found.value) == (10, 2.0)


def test_nothing_is_proposed_twice_and_a_space_may_end(opened: Open, names: Callable[[], str]) -> None:
    study = opened("seed: 1\nspace: {a: {choices: [1, x, null]}, b: {low: 1, high: 3, int}}")
    seen = []
    while trial := study.propose(names):
        seen.append((trial.params["a"], trial.params["b"]))
        study.complete(study.report(trial, [(1, 1.0)]))
    assert len(seen) == len(set(seen)) == 9
    assert len(study.trials()) == 9, "repeated proposals are no trials"
    assert study.open_trials(names) == []


def test_what_does_not_end_as_a_number_has_failed(opened: Open, names: Callable[[], str]) -> None:
    study = opened()
    trial = study.propose(names)
    assert trial
    ended = study.complete(study.report(trial, [(90, math.nan)]))
    assert ended.status == "failed"
    assert ended.reason == "valid_loss ended as nan"
    assert best(study.trials(), "minimize") is None


def test_the_best_is_the_first_of_equals(opened: Open, names: Callable[[], str]) -> None:
    study = opened()
    for value in (2.0, 1.0, 1.0, 3.0):
        trial = study.propose(names)
        assert trial
        study.complete(study.report(trial, [(90, value)]))
    low, high = best(study.trials(), "minimize"), best(study.trials(), "maximize")
    assert low
    assert high
    assert (low.number, high.number) == (1, 3)


def test_killed_between_a_proposal_and_its_run(opened: Open, tmp_path: Path) -> None:
    """kill -9 from inside, when the trial is in the file and has no run yet: it gets one, and only one."""
    opened()
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from launcher.sweep import space\n"
        "from launcher.sweep.study import Study\n"
        "found = space.read(Path(sys.argv[1]) / 'space.yaml')\n"
        "study = Study(Path(sys.argv[1]) / 'study.db', found, None)\n"
        "study.propose(lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    assert done.returncode == -signal.SIGKILL
    [trial] = opened().open_trials(lambda: "run-a")
    assert (trial.run_id, trial.status) == ("run-a", "open")
    [trial] = opened().open_trials(lambda: "run-b")
    assert trial.run_id == "run-a"
