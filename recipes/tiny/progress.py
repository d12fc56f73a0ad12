"""A progress bar that reads well in a terminal and in a log file."""

from __future__ import annotations

import sys
import time

_WIDTH = 24
_SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Counts up to ``total`` units of work: redrawn in a terminal, a new line now and then in a log."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, max(total, 1), unit
        self._done = 0
        self._started = time.monotonic()
        self._shown = 0.0
        self._terminal = sys.stderr.isatty()

    def add(self, amount: int) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._shown >= (0.1 if self._terminal else _SECONDS_BETWEEN_LINES):
            self._shown = now
            self._draw("\r" if self._terminal else "\n")

    def finish(self) -> None:
        self._done = self._total
        self._draw("\n")

    def _draw(self, end: str) -> None:
        share = min(self._done / self._total, 1.0)
        bar = ("#" * round(share * _WIDTH)).ljust(_WIDTH, "-")
        rate = self._done / max(time.monotonic() - self._started, 1e-6)
        counts = f"{_short(self._done)} of {_short(self._total)} {self._unit}, {_short(rate)}/s"
        text = f"{self._title:<10} [{bar}] {share:4.0%}  {counts}"
        print(text, end=end, file=sys.stderr, flush=True)


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"
