"""Errors that a person can mend: what, where, the nearest valid value, what to do next.

    UserError            2   the request, a recipe, a config or a profile is wrong
    ├── Refused          3   the world is not ready: absent artifact, unreachable store or tracker
    ├── RunFailed        1   the job itself ran and failed
    ├── BudgetReached    5   the job stopped at its budget, with what it saved: no failure
    └── DeadlineReached  5   likewise, at its deadline

Library code raises these; the one handler in ``launcher.cli.main`` prints them and exits with
``exit_code``. Any other exception that reaches a user is a bug in nemo-sky.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked.

    ``where`` is ``file:line`` when the mistake stands in a file; ``hint`` says what to do next.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        located = f"{self.where}: {self.message}" if self.where else self.message
        return f"{located}\n  {self.hint}" if self.hint else located


class Refused(UserError):
    """What was asked is well formed, but the world is not ready for it; nothing was started."""

    exit_code = 3


class RunFailed(UserError):
    """The job started and failed; its last lines are in the message."""

    exit_code = 1


class DeadlineReached(UserError):
    """The job stopped in time for its deadline; it goes on from there when it is given a later one."""

    exit_code = 5


class BudgetReached(UserError):
    """The job stopped because its budget ended; it goes on from there when it is given more."""

    exit_code = 5


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that ``word`` was most likely meant to be, or None when none is close."""
    known = sorted(set(candidates))
    if matches := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return matches[0]
    # One is the beginning of the other: `skypilot` for `sky`, `pre` for `pretrain`.
    stems = [item for item in known if len(item) > 2 and len(word) > 2 and _same_stem(word, item)]
    return stems[0] if stems else None


def _same_stem(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest candidate, else the empty string."""
    match = nearest(word, candidates)
    return f"; did you mean {match!r}?" if match else ""
