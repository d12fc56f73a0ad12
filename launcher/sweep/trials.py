"""The sweep itself: begin trials, look at those that run, stop the weak, until the money or the trials end.

    propose -> launch, detached -> look: report what the journal says -> cancel the weak
            -> settle what has ended -> tell Optuna -> propose ...

One loop and no threads: a launch is only handed over here, and what a trial measures is read from its journal
in the artifact store, wherever it runs. Optuna's file, the runs' folders and the ledger hold all there is to
know, so a sweep that was killed goes on by the same command.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from launcher import backends, history, runs
from launcher import launch as flow
from launcher import plan as plans
from launcher.errors import Refused, RunFailed, UserError, did_you_mean
from launcher.lineage import sync
from launcher.money.account import Account, money
from launcher.money.gate import TooDear
from launcher.money.ledger import account_name, open_ledger
from launcher.project import Project
from launcher.sweep.space import Resource, Space, override
from launcher.sweep.study import Point, Study, Trial

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.backends import State

Say = Callable[[str], None]
LOOK_S = {"local": 1.0, "fake": 1.0, "sky": 10.0}  # between two looks at the trials
_FAILURES = 3  # in a row, and nothing was ever measured: the next would fail, too
_AGAIN = 3  # how often a run that was lost is taken up again


@dataclass(frozen=True)
class Sweep:
    """What was asked. ``request`` launches a trial once its values are added; ``budget`` is in micro-dollars;
    ``trials`` (None: as many as the budget pays) and ``parallel`` count trials."""

    name: str
    request: plans.Request
    space: Space
    budget: int
    trials: int | None
    parallel: int

    @property
    def resource(self) -> Resource | None:
        return self.space.resource


@dataclass
class Drive:
    """One process's part of a sweep: what it works with, and the trials that are on."""

    sweep: Sweep
    project: Project
    store: Store
    study: Study
    backend: str
    say: Say
    live: list[Trial] = field(default_factory=list)
    waiting: deque[Trial] = field(default_factory=deque)
    again: dict[int, int] = field(default_factory=dict)
    trouble: str = ""
    unbegun: str = ""  # why the first of those that wait could not begin

    def new_run_id(self) -> str:
        return runs.new_id(self.sweep.request.family, self.sweep.request.stage)

    def account(self) -> Account:
        return open_ledger(self.store).read(account_name("", self.sweep.name))


def drive(here: Drive) -> str:
    """Go on until nothing runs and nothing more can begin; returns why that is.

    Raises RunFailed when trials only fail, Refused when the first does not fit its budget, UserError when
    what is to be measured is never logged. KeyboardInterrupt, and whatever else ends it, leaves trials to go
    on where they outlive the launcher, and stops them here where they do not; both are found again.
    """
    try:
        for trial in here.study.open_trials(here.new_run_id):
            _take_up(here, trial)
        while True:
            for trial in list(here.live):
                _look(here, trial)
            why = _begin_all(here)
            if not here.live:
                return why
            time.sleep(LOOK_S[here.backend])
    except BaseException:
        _leave(here)
        raise


def metric_points(store: Store, run_id: str, metric: str) -> list[Point]:
    """What a run has logged of ``metric``, over all its attempts: the last value of each step."""
    return sorted(
        {
            int(point.get("step") or 0): float(point["value"])
            for events in sync.attempts(store, run_id)
            for event in events
            if event["type"] == "metrics"
            for point in event["points"]
            if point["key"] == metric
        }.items()
    )


def _begin_all(here: Drive) -> str:
    """Begin as many trials as may run at once; why there are no more. While others are on, a store or a
    service that fails is asked again later."""
    try:
        why = _begin_more(here)
        here.unbegun = ""
        return why
    except TooDear:
        raise
    except Refused as error:
        if not here.live:
            raise
        if error.message != here.unbegun:
            here.say(f"no trial can begin now, trying again: {error.message}")
        here.unbegun = error.message
        return error.message


def _begin_more(here: Drive) -> str:
    if here.unbegun and here.waiting:
        _take_up(here, here.waiting[0])  # it may have begun all the same
        here.waiting.popleft()
    while len(here.live) < here.sweep.parallel:
        begun = len(here.study.trials())
        if not here.waiting:
            if here.sweep.trials is not None and begun >= here.sweep.trials:
                return f"all {here.sweep.trials} trials are done"
            if short := _short(here, None):
                return short
            proposed = here.study.propose(here.new_run_id)
            if proposed is None:
                return "every configuration of the space was tried"
            here.waiting.append(proposed)
        trial = here.waiting[0]
        if short := _short(here, trial):
            return short
        try:
            _begin(here, trial)
        except TooDear as refused:
            if not here.live and not here.account().entries:
                raise
            return f"what is left does not pay another trial: {refused.message}"
        here.waiting.popleft()
    return "as many trials as may are running"


def _short(here: Drive, trial: Trial | None) -> str | None:
    """Why another trial would not be paid to its end, as far as can be told from those that were.

    One that ends in the middle for want of money has wasted what it took.
    """
    held = here.account()
    costs = [held.committed(item.run_id) for item in here.study.trials() if item.status == "complete"]
    dearest, left = max(costs, default=0), here.sweep.budget - held.committed()
    for other in here.live:
        left -= max(dearest - held.committed(other.run_id), 0)
    needed = dearest - (held.committed(trial.run_id) if trial else 0)
    if needed <= left:
        return None
    return f"{money(max(left, 0))} is left, and the dearest trial took {money(dearest)}"


def _take_up(here: Drive, trial: Trial) -> None:
    """A trial that had not ended when the last process of this sweep did. If its run is on, or has come to an
    end that says something, it is looked at again; else it waits for its next attempt."""
    if not (runs.directory(here.project.runs, trial.run_id) / "run.json").exists():
        here.waiting.append(trial)  # it was never launched
        return
    run = runs.load(here.project.runs, trial.run_id)
    state = backends.get(run.backend).status(runs.directory(here.project.runs, run.run_id))
    if state.active or state.status in ("SUCCEEDED", "FAILED") or trial.stopped_at is not None:
        here.say(f"trial {trial.number}: {_shown(trial)}  ({trial.run_id}, {state.status.lower()})")
        here.live.append(trial)
    else:
        here.waiting.append(trial)


def _begin(here: Drive, trial: Trial) -> None:
    """Launch a trial: its first attempt, or the next of one that was interrupted. It is live then, unless
    its configuration was made before. Raises Refused."""
    here.say(f"trial {trial.number}: {_shown(trial)}  ({trial.run_id})")
    try:
        [outcome] = flow.launch(_request(here.sweep, trial), here.project, _quiet, _quiet)
    except Refused:
        raise
    except UserError as error:
        _fail(here, trial, error.message)
        return
    if outcome.status == "skipped":
        _measured(here, here.study.name_run(trial, outcome.run_id))
        return
    here.live.append(trial)


def _shown(trial: Trial) -> str:
    return ", ".join(
        f"{key}={value:.5g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in trial.params.items()
    )


def _quiet(_: str) -> None:
    """What a launch says of itself is said in the trial's own line."""


def _request(sweep: Sweep, trial: Trial) -> plans.Request:
    """The launch of a trial."""
    values = [override(key, value) for key, value in trial.params.items()]
    base = sweep.request
    return replace(
        base,
        overrides=(*base.overrides, *values),
        detach=True,
        trial=plans.Trial(sweep.name, trial.number, trial.run_id),
    )


def _look(here: Drive, trial: Trial) -> None:
    """See how a live trial stands, and act on it. A store or a service that fails is asked again later."""
    try:
        _act(here, trial)
        here.trouble = ""
    except Refused as error:
        if error.message != here.trouble:
            here.say(f"trial {trial.number} cannot be looked at now, trying again: {error.message}")
        here.trouble = error.message


def _act(here: Drive, trial: Trial) -> None:
    run = runs.load(here.project.runs, trial.run_id)
    backend, folder = backends.get(run.backend), runs.directory(here.project.runs, run.run_id)
    # Asked before the journal is read: whatever was written before the end is read after it.
    state = backend.status(folder)
    before = trial.step
    trial = here.study.report(trial, metric_points(here.store, run.run_id, here.sweep.space.metric))
    here.live = [trial if item.number == trial.number else item for item in here.live]
    if state.active and trial.step != before:
        here.say(f"trial {trial.number}: {here.sweep.space.metric} {trial.value:.5g} at {trial.step}")
    if state.active and trial.stopped_at is None:
        return
    if state.active:
        backend.cancel(folder)
        state = backend.status(folder)
    state, _ = flow.finish(run, here.project, here.store)
    if state.active:  # after all: it is looked at again
        return
    here.live = [item for item in here.live if item.number != trial.number]
    history.track(here.project, run)  # what it cannot show now, `runs show` brings up to date
    if state.status == "SUCCEEDED":
        _measured(here, trial)
    elif trial.stopped_at is not None:
        _stopped(here, trial)
    else:
        _ended(here, trial, state)


def _measured(here: Drive, trial: Trial) -> None:
    """The trial's run has trained to its end, perhaps before it could be stopped."""
    metric = here.sweep.space.metric
    trial = here.study.report(trial, metric_points(here.store, trial.run_id, metric), ended=True)
    if trial.value is None:
        names = _logged(here.store, trial.run_id)
        here.study.fail(trial, f"{metric} was never logged")
        raise UserError(
            f"{trial.run_id} has ended and never logged {metric!r}{did_you_mean(metric, names)}",
            where=here.sweep.space.where("metric"),
            hint=f"it logs {', '.join(sorted(names)) or 'nothing'}",
        )
    trial = here.study.complete(trial)
    said = trial.reason or f"{metric} {trial.value:.5g}"
    here.say(f"trial {trial.number} is done: {said}; {_spent(here, trial)}")


def _stopped(here: Drive, trial: Trial) -> None:
    here.study.stop(trial)
    metric, resource = here.sweep.space.metric, here.sweep.resource
    among = f"not among the best 1/{resource.reduction}" if resource else "too weak"
    here.say(
        f"trial {trial.number} is stopped: {metric} {trial.value:.5g} at {trial.stopped_at} is {among}; "
        f"{_spent(here, trial)}"
    )


def _ended(here: Drive, trial: Trial, state: State) -> None:
    """The trial's run ended by itself, and not well."""
    if state.status == "BUDGET_REACHED":
        # It stays open: with what others leave, or with more money, it goes on at its checkpoint.
        here.say(f"trial {trial.number} reached the budget; {_spent(here, trial)}")
        here.waiting.appendleft(trial)
        return
    if state.status in ("INTERRUPTED", "LOST") and here.again.get(trial.number, 0) < _AGAIN:
        here.again[trial.number] = here.again.get(trial.number, 0) + 1
        here.waiting.append(trial)
        return
    words = flow.last_words(state.tail)
    spoken = [line for line in words if line.strip() and not line.startswith("[nemo-sky]")]
    why = f"{state.status.lower()}: {state.reason or 'no reason was given'}"
    _fail(here, trial, f"{why}; it said {spoken[-1]!r}" if spoken else why, words)


def _fail(here: Drive, trial: Trial, reason: str, words: Sequence[str] = ()) -> None:
    """Raises RunFailed when so many have failed, and none has done otherwise, that the next would, too."""
    here.study.fail(trial, reason)
    here.say(f"trial {trial.number} failed: {reason}; {_spent(here, trial)}")
    ended = [item for item in here.study.trials() if item.status != "open"]
    if len(ended) >= _FAILURES and all(item.status == "failed" for item in ended):
        lines = "".join(f"\n    {line}" for line in words)
        raise RunFailed(
            f"the first {len(ended)} trials failed; the last: {reason}{lines}",
            hint=f"the whole log: `nemo-sky runs logs {trial.run_id}`",
        )


def _logged(store: Store, run_id: str) -> set[str]:
    """The names of all metrics of a run."""
    return {
        point["key"]
        for events in sync.attempts(store, run_id)
        for event in events
        if event["type"] == "metrics"
        for point in event["points"]
    }


def _spent(here: Drive, trial: Trial) -> str:
    held = here.account()
    own, spent = money(held.committed(trial.run_id)), money(held.committed())
    return f"{own}, in all {spent} of {money(here.sweep.budget)}"


def _leave(here: Drive) -> None:
    """This process ends, and trials are on."""
    for trial in here.live:
        run = runs.load(here.project.runs, trial.run_id)
        backend, folder = backends.get(run.backend), runs.directory(here.project.runs, run.run_id)
        if backend.OUTLIVES_LAUNCHER:
            here.say(f"  {run.run_id} goes on; the same command follows it again")
        else:
            here.say(f"  stopping {run.run_id} ...")
            backend.cancel(folder)
            flow.finish(run, here.project, here.store)
