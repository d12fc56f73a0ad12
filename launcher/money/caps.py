"""The caps of a launch: from its flags, and from ``money:`` in the project file.

money:
  defaults: {budget: $200, max_hourly: $50}    where a launch says nothing
  limits: {budget: $2k, deadline: 7d}          which no launch may pass
  check_every: 60s
  setup: 20m
  teardown: 5m
  checkpoint_every: auto                       or a time, or `recipe`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from launcher.errors import UserError, did_you_mean
from launcher.money.account import MICROS, money
from launcher.money.amounts import format_duration, parse_dollars, parse_duration
from launcher.money.interval import AUTO
from launcher.yamlfile import YamlFile

CHECK_EVERY_S = 60.0
RECIPE = "recipe"
_SECTIONS = ("defaults", "limits", "check_every", "setup", "teardown", "checkpoint_every")
_AMOUNTS = ("budget", "max_hourly", "deadline", "experiment_budget")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Caps:
    """What a launch may cost and take; None is no cap.

    ``budget`` is for the run with all its attempts, ``experiment_budget`` for all runs of ``experiment``
    together, both in micro-dollars; ``max_hourly`` is micro-dollars per hour for all nodes; ``deadline``
    is seconds from the launch.
    """

    budget: int | None = None
    max_hourly: int | None = None
    deadline: float | None = None
    experiment: str | None = None
    experiment_budget: int | None = None


@dataclass(frozen=True)
class Settings:
    """``money:`` of the project file, in seconds. A None duration is the backend's own default.
    ``checkpoint_every``: how often a run on spot saves; None leaves that to its recipe."""

    defaults: Caps = Caps()
    limits: Caps = Caps()
    check_every: float = CHECK_EVERY_S
    setup: float | None = None
    teardown: float | None = None
    checkpoint_every: float | str | None = AUTO


def from_flags(
    budget: str | None = None,
    max_hourly: str | None = None,
    deadline: str | None = None,
    experiment: str | None = None,
    experiment_budget: str | None = None,
) -> Caps:
    """The caps as typed on a command line. Raises UserError that names the flag."""
    if experiment is not None and not _NAME.fullmatch(experiment):
        raise UserError(
            f"--experiment: {experiment!r} cannot name an experiment",
            hint="letters, digits, dots, dashes and underscores; it begins with a letter or a digit",
        )
    if experiment_budget and not experiment:
        raise UserError(
            "--experiment-budget is shared by the launches of an experiment: which?",
            hint="add --experiment NAME",
        )
    texts = zip(_AMOUNTS, (budget, max_hourly, deadline, experiment_budget), strict=True)
    values: dict[str, Any] = {}
    for name, text in texts:
        if text is not None:
            try:
                values[name] = _amount(name, text)
            except UserError as error:
                raise UserError(f"{_flag(name)}: {error.message}", hint=error.hint) from error
    return Caps(experiment=experiment, **values)


def settings(file: YamlFile) -> Settings:
    """``money:`` of the project file. Raises UserError, with file:line, for what is wrong in it."""
    section = _table(file, "money")
    for key in section:
        if key not in _SECTIONS:
            message = f"unknown key money.{key}{did_you_mean(key, _SECTIONS)}"
            raise UserError(message, where=file.where("money", key))
    durations = {
        key: _located(file, ("money", key), _duration, str(section[key]))
        for key in ("check_every", "setup", "teardown")
        if key in section
    }
    every = _located(file, ("money", "checkpoint_every"), _every, str(section.get("checkpoint_every", AUTO)))
    found = Settings(_caps(file, "defaults"), _caps(file, "limits"), checkpoint_every=every, **durations)
    if not found.check_every:
        raise UserError("money.check_every must not be 0", where=file.where("money", "check_every"))
    for name in _AMOUNTS:
        default, limit = getattr(found.defaults, name), getattr(found.limits, name)
        if default is not None and limit is not None and default > limit:
            message = f"money.defaults.{name} is above money.limits.{name}"
            raise UserError(message, where=file.where("money", "defaults", name))
    return found


def within(asked: Caps, project: Settings) -> None:
    """Raises UserError when a flag is above the project's hard limit."""
    for name in _AMOUNTS:
        value, limit = getattr(asked, name), getattr(project.limits, name)
        if value is not None and limit is not None and value > limit:
            raise UserError(
                f"{_flag(name)} {_show(name, value)} is above this project's limit of {_show(name, limit)}",
                hint=f"give {_show(name, limit)} or less; nemo-sky.yaml has it as money.limits.{name}",
            )


def unsaid(project: Settings) -> Caps:
    """What holds where neither a flag nor the ledger says anything: the default, else the limit itself."""
    values = {name: getattr(project.defaults, name) or getattr(project.limits, name) for name in _AMOUNTS}
    return Caps(**values)


def hourly(given: Caps, otherwise: Caps) -> int | None:
    """The most that an hour may cost, in micro-dollars: what the launch says, else what its project does."""
    return otherwise.max_hourly if given.max_hourly is None else given.max_hourly


def _caps(file: YamlFile, part: str) -> Caps:
    values: dict[str, Any] = {}
    for key, value in _table(file, "money", part).items():
        if key not in _AMOUNTS:
            message = f"unknown key money.{part}.{key}{did_you_mean(key, _AMOUNTS)}"
            raise UserError(message, where=file.where("money", part, key))
        values[key] = _located(file, ("money", part, key), partial(_amount, key), str(value))
    return Caps(**values)


def _table(file: YamlFile, *keys: str) -> Mapping[str, Any]:
    table: dict[str, Any] = file.values
    for key in keys:
        value = table.get(key, {})
        if not isinstance(value, dict):
            raise UserError(f"{'.'.join(keys)} must be a table, not {value!r}", where=file.where(*keys))
        table = value
    return table


def _located(file: YamlFile, keys: tuple[str, ...], parse: Callable[[str], _Result], text: str) -> _Result:
    try:
        return parse(text)
    except UserError as error:
        message = f"{'.'.join(keys)}: {error.message}"
        raise UserError(message, where=file.where(*keys), hint=error.hint) from error


def _amount(name: str, text: str) -> float:
    return parse_duration(text) if name == "deadline" else round(parse_dollars(text) * MICROS)


def _duration(text: str) -> float:
    return 0.0 if text.strip() == "0" else parse_duration(text)


def _every(text: str) -> float | str | None:
    words = text.strip().lower()
    if words in (AUTO, RECIPE):
        return AUTO if words == AUTO else None
    try:
        return parse_duration(words)
    except UserError as error:
        raise UserError(error.message, hint=f"{AUTO}, {RECIPE}, or a time as 30m") from error


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _show(name: str, value: float) -> str:
    return format_duration(value) if name == "deadline" else money(int(value))
