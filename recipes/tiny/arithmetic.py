"""Questions whose answers can be checked: sums and differences of small whole numbers.

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

    largest: int = 12
    val: float = 0.1
    test: float = 0.2
    seed: int = 1234


@dataclass(frozen=True)
class Problem:
    question: str
    answer: int


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
    """All questions by split, in a fixed order; no answer is negative."""
    result: dict[str, list[Problem]] = {name: [] for name in SPLITS}
    numbers = range(settings.largest + 1)
    pairs = [(one, other) for one in numbers for other in numbers]
    problems = [Problem(f"{one}+{other}=", one + other) for one, other in pairs]
    problems += [Problem(f"{one}-{other}=", one - other) for one, other in pairs if one >= other]
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
