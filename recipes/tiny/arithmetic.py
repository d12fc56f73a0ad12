"""Questions whose answers can be checked: which of two whole numbers is the larger.

SFT and RL draw from the same questions and the same split, so that a test question is new to both.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipes.tiny.settings import require
from recipes.tiny.text import uniform

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ArithmeticSettings:
    """``largest`` bounds both numbers; ``val`` and ``test`` are shares of the questions."""

    largest: int = 99
    val: float = 0.05
    test: float = 0.05
    seed: int = 1234


@dataclass(frozen=True)
class Problem:
    """``slip`` is the answer of one who takes the smaller for the larger."""

    question: str
    answer: int
    slip: int


def check(settings: ArithmeticSettings) -> None:
    """Raises ConfigError for settings that leave a split without questions."""
    require(settings.largest >= 4, f"arithmetic.largest must be at least 4, not {settings.largest}")
    shares = (settings.val, settings.test)
    require(
        min(shares) > 0 and sum(shares) < 1,
        "arithmetic.val and arithmetic.test must be above 0 and sum below 1",
    )
    for name, found in by_split(settings).items():
        require(
            bool(found),
            f"arithmetic.{name}: no question fell into this split; raise it or arithmetic.largest",
        )


def by_split(settings: ArithmeticSettings) -> dict[str, list[Problem]]:
    """All questions by split, in a fixed order."""
    result: dict[str, list[Problem]] = {name: [] for name in SPLITS}
    numbers = range(settings.largest + 1)
    problems = [
        Problem(f"max({one},{other})=", max(one, other), min(one, other))
        for one in numbers
        for other in numbers
        if one != other
    ]
    for problem in problems:
        at = uniform(settings.seed, problem.question)
        name = "val" if at < settings.val else "test" if at < settings.val + settings.test else "train"
        result[name].append(problem)
    return result


def reward(completion: str, answer: str) -> float:
    """1 for the answer and nothing else; up to 0.2 for a number, the nearer the better; else 0."""
    given = completion.strip()
    if given == answer:
        return 1.0
    if not given.isascii() or not given.isdigit() or len(given) > 4:
        return 0.0
    return 0.2 / (1 + abs(int(given) - int(answer)))
