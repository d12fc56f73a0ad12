"""What Optuna knows of a sweep: its trials in an SQLite file, what to try next, who is too weak to go on.

SQLite, because a transaction is on disk or never was: after kill -9 nothing is half written, and the trials
that were running are still said to be. Optuna is imported only here.

The weak are stopped by asynchronous successive halving (Li et al., "A System for Massively Parallel
Hyperparameter Tuning", 2020) in its stopping form: a trial is one run to full length, judged while it trains,
and cancelled when it is not among the best. Rungs as resumed runs with more steps would judge alike and pay
every start-up again, and each rung would train under the learning-rate schedule of a shorter run.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.sweep.space import Choices, Space, Value

if TYPE_CHECKING:
    import optuna

Point = tuple[int, float]  # step, value
_TRIES = 100  # at a proposal that was not made before
_RUN, _REPEATS, _STOPPED, _REASON = "run_id", "repeats", "stopped_at", "reason"


@dataclass(frozen=True)
class Trial:
    """One configuration that was proposed. ``status`` is open, complete, stopped (as too weak) or failed.

    ``value`` is the last that was measured, at ``step``; None before the first.
    """

    number: int
    params: Mapping[str, Value]
    run_id: str
    status: str
    value: float | None = None
    step: int | None = None
    stopped_at: int | None = None
    reason: str | None = None


class Study:
    """The trials of one sweep, in the file ``path``."""

    def __init__(self, path: Path, space: Space, longest: int | None) -> None:
        optuna = _optuna()
        self._space = space
        self._longest = longest
        self._kinds = {key: _distribution(spec) for key, spec in space.keys.items()}
        pruner = optuna.pruners.NopPruner()
        if space.resource:
            pruner = optuna.pruners.SuccessiveHalvingPruner(
                min_resource=space.resource.min, reduction_factor=space.resource.reduction
            )
        self._study = optuna.create_study(
            storage=optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}"),
            study_name="sweep",
            direction=space.direction,
            pruner=pruner,
            load_if_exists=True,
        )
        # Seeded with what is there already: a sweep that was taken up again must not draw the same again.
        seed = (
            None if space.seed is None else (space.seed + len(self._study.get_trials(deepcopy=False))) % 2**32
        )
        self._sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        self._chance = optuna.samplers.RandomSampler(seed=seed)

    def trials(self) -> list[Trial]:
        """All but repeated proposals, by number."""
        found = self._study.get_trials(deepcopy=False)
        return [_trial(item) for item in found if _REPEATS not in item.user_attrs]

    def propose(self, new_run_id: Callable[[], str]) -> Trial | None:
        """The next configuration, none that was tried before; None when there is nothing new.

        It is in the file, with the id that its run will have, before this returns.
        """
        seen = {_frozen(trial.params): trial.number for trial in self.trials()}
        if len(seen) >= _size(self._space):
            return None
        for number in range(_TRIES):
            # The sampler's favourite may well be one that was tried; then chance decides.
            self._study.sampler = self._chance if number else self._sampler
            asked = self._study.ask(self._kinds)
            before = seen.get(_frozen(asked.params))
            if before is None:
                asked.set_user_attr(_RUN, new_run_id())
                return self.read(asked.number)
            asked.set_user_attr(_REPEATS, before)
            self._study.tell(asked, state=_state("FAIL"))
        return None

    def open_trials(self, new_run_id: Callable[[], str]) -> list[Trial]:
        """Those that have not ended, oldest first. One that was proposed, and no more, gets its run's id now:
        nothing was launched for it."""
        for item in self.trials():
            if item.status == "open" and not item.run_id:
                self._handle(item.number).set_user_attr(_RUN, new_run_id())
        return [item for item in self.trials() if item.status == "open"]

    def report(self, trial: Trial, points: Sequence[Point], ended: bool = False) -> Trial:
        """Take down what was measured since, in order of steps; ``stopped_at`` of the result says whether the
        trial is too weak to go on, and where that was seen. What came after that counts only when the run has
        ``ended`` by itself."""
        handle = self._handle(trial.number)
        known, stopped_at = self._frozen(trial.number).intermediate_values, trial.stopped_at
        for step, value in sorted(dict(points).items()):
            if known and step <= max(known):
                continue
            if stopped_at is not None and not ended:
                break
            handle.report(value, step)
            if stopped_at is None and not self._is_end(step) and handle.should_prune():
                stopped_at = step
                handle.set_user_attr(_STOPPED, step)
        return self.read(trial.number)

    def _is_end(self, step: int) -> bool:
        """There is nothing left to save."""
        return self._longest is not None and step >= self._longest

    def complete(self, trial: Trial) -> Trial:
        """It trained to its end; its value is the last that was reported."""
        assert trial.value is not None
        if not math.isfinite(trial.value):
            return self.fail(trial, f"{self._space.metric} ended as {trial.value}")
        self._study.tell(trial.number, trial.value)
        return self.read(trial.number)

    def stop(self, trial: Trial) -> Trial:
        """It was stopped as too weak."""
        self._study.tell(trial.number, state=_state("PRUNED"))
        return self.read(trial.number)

    def fail(self, trial: Trial, reason: str) -> Trial:
        """Nothing is learned from it."""
        self._handle(trial.number).set_user_attr(_REASON, reason)
        self._study.tell(trial.number, state=_state("FAIL"))
        return self.read(trial.number)

    def name_run(self, trial: Trial, run_id: str) -> Trial:
        """Another run, made before, is this trial's."""
        self._handle(trial.number).set_user_attr(_RUN, run_id)
        return self.read(trial.number)

    def read(self, number: int) -> Trial:
        """The trial as the file has it."""
        return _trial(self._frozen(number))

    def _frozen(self, number: int) -> Any:
        return self._study.get_trials(deepcopy=False)[number]

    def _handle(self, number: int) -> optuna.trial.Trial:
        from optuna.trial import Trial as Handle

        return Handle(self._study, self._frozen(number)._trial_id)


def best(trials: Sequence[Trial], direction: str) -> Trial | None:
    """The complete trial with the best value, the earliest of equals; None without one."""
    sign = 1 if direction == "minimize" else -1
    complete = [item for item in trials if item.status == "complete" and item.value is not None]
    return min(complete, key=lambda item: (sign * (item.value or 0.0), item.number), default=None)


def _trial(item: Any) -> Trial:
    attrs, points = item.user_attrs, item.intermediate_values
    status = {"RUNNING": "open", "WAITING": "open", "COMPLETE": "complete", "PRUNED": "stopped"}
    step = max(points) if points else None
    return Trial(
        item.number,
        dict(item.params),
        attrs.get(_RUN, ""),
        status.get(item.state.name, "failed"),
        None if step is None else points[step],
        step,
        attrs.get(_STOPPED),
        attrs.get(_REASON),
    )


def _distribution(spec: Any) -> Any:
    from optuna import distributions

    if isinstance(spec, Choices):
        return distributions.CategoricalDistribution(spec.values)
    if spec.whole:
        return distributions.IntDistribution(int(spec.low), int(spec.high), log=spec.log)
    return distributions.FloatDistribution(spec.low, spec.high, log=spec.log)


def _size(space: Space) -> float:
    """How many configurations there are."""
    counts = [
        len(spec.values)
        if isinstance(spec, Choices)
        else spec.high - spec.low + 1
        if spec.whole
        else math.inf
        for spec in space.keys.values()
    ]
    return math.prod(counts)


def _frozen(params: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(params.items(), key=lambda pair: pair[0]))


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        from launcher.errors import Refused

        raise Refused("a sweep needs Optuna", hint="pip install 'nemo-sky[sweep]'") from None
    optuna.logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
