"""Charts as SVG text, for pages that must need nothing else: no script, no font, no other file.

Coordinates are in pixels of a drawing of ``WIDTH``; what is drawn at a point has its words as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 860, 64, 16, 10, 34
INK, GRID = "#5f6368", "#e3e5e8"
LINES = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#8c6d31", "#9d755d")
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear scale from ``low`` to ``high``, with its ticks."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """The share of the way from low to high."""
        return (value - self.low) / (self.high - self.low)


def numbers(values: Sequence[float], show: Callable[[float], str], *, zero: bool = False) -> Axis:
    """An axis that holds all values, with about five round ticks; with ``zero`` it begins there."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = min(low, 0.0) if zero else low
    if high - low <= max(abs(low), abs(high)) * 1e-6:  # one value, or as good as one
        high = low + (abs(low) or 1.0)
    step = _round(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple((n * step, show(n * step)) for n in range(first, last + 1))
    return Axis(first * step, last * step, ticks)


def times(low: int, high: int) -> Axis:
    """An axis of milliseconds since the epoch, ticks in UTC."""
    high = max(high, low + 1000)
    span = (high - low) / 1000
    steps = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400, 7 * 86400, 30 * 86400)
    step = next((s for s in steps if span / s <= 7), steps[-1] * math.ceil(span / steps[-1] / 7))
    form = (
        "%H:%M:%S" if step < 60 else "%H:%M" if span < 86400 else "%d %b %H:%M" if step < 86400 else "%d %b"
    )
    first = math.ceil(low / 1000 / step)
    count = int((high / 1000 - first * step) / step) + 1
    marks = [(first + n) * step for n in range(max(count, 0))]
    return Axis(low, high, tuple((m * 1000.0, datetime.fromtimestamp(m, UTC).strftime(form)) for m in marks))


def lines(
    series: Sequence[tuple[str, Sequence[Point]]],
    x: Axis,
    y: Axis,
    *,
    labels: tuple[str, str],
    level: tuple[float, str] | None = None,
    height: int = 280,
) -> str:
    """A line for each named series of (x, y); ``labels`` of both axes; ``level``: a dashed line and its
    words."""
    body = [_frame(x, y, labels, height)]
    if level and y.low <= level[0] <= y.high:
        at = _y(y.at(level[0]), height)
        body.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e45756" '
            f'stroke-dasharray="5 4"/><text x="{WIDTH - RIGHT}" y="{at - 4:.1f}" text-anchor="end" '
            f'fill="#e45756">{escape(level[1])}</text>'
        )
    for number, (name, points) in enumerate(series):
        path = " ".join(f"{_x(x.at(px)):.1f},{_y(y.at(py), height):.1f}" for px, py in points)
        colour = LINES[number % len(LINES)]
        body.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6">'
            f"<title>{escape(name)}</title></polyline>"
        )
    return _svg("".join(body), height) + legend(
        [(name, LINES[n % len(LINES)]) for n, (name, _) in enumerate(series)]
    )


@dataclass(frozen=True)
class Bar:
    """A stretch of a row from ``low`` to ``high`` on the axis."""

    low: float
    high: float
    colour: str
    words: str


@dataclass(frozen=True)
class Mark:
    """A sign in a row: a tick (``|``) or a cross (``x``)."""

    at: float
    sign: str
    colour: str
    words: str


def rows(named: Sequence[tuple[str, Sequence[Bar], Sequence[Mark]]], x: Axis) -> str:
    """A row for each name: its bars, and marks over them."""
    each, left = 26, 250
    height = TOP + each * len(named) + BOTTOM
    body = []
    for value, text in x.ticks:
        at = _x(x.at(value), left)
        body.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}" stroke="{GRID}"/>'
            f'<text x="{at:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{escape(text)}</text>'
        )
    for number, (name, bars, marks) in enumerate(named):
        top = TOP + each * number
        body.append(f'<text x="{left - 8}" y="{top + 17}" text-anchor="end">{escape(name)}</text>')
        for bar in bars:
            start, end = _x(x.at(bar.low), left), _x(x.at(bar.high), left)
            body.append(
                f'<rect x="{start:.1f}" y="{top + 5}" width="{max(end - start, 0.8):.1f}" height="16" '
                f'fill="{bar.colour}"><title>{escape(bar.words)}</title></rect>'
            )
        for mark in marks:
            at = _x(x.at(mark.at), left)
            stroke = (
                f"M{at:.1f},{top + 3}v20"
                if mark.sign == "|"
                else f"M{at - 5:.1f},{top + 8}l10,10m0,-10l-10,10"
            )
            body.append(
                f'<path d="{stroke}" stroke="{mark.colour}" stroke-width="2" fill="none">'
                f"<title>{escape(mark.words)}</title></path>"
            )
    return _svg("".join(body), height)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names beside their colours, as HTML."""
    spans = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in entries
    )
    return f'<p class="legend">{spans}</p>'


def _frame(x: Axis, y: Axis, labels: tuple[str, str], height: int) -> str:
    parts = []
    for value, text in y.ticks:
        at = _y(y.at(value), height)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{GRID}"/>'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    for value, text in x.ticks:
        at = _x(x.at(value))
        parts.append(
            f'<text x="{at:.1f}" y="{height - BOTTOM + 15}" text-anchor="middle">{escape(text)}</text>'
        )
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{height - 4}" text-anchor="end">{escape(labels[0])}</text>'
        f'<text x="{LEFT}" y="{TOP}" text-anchor="start">{escape(labels[1])}</text>'
    )
    return "".join(parts)


def _svg(body: str, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="11" fill="{INK}">{body}</svg>'
    )


def _round(span: float) -> float:
    """1, 2 or 5 times a power of ten, about a fifth of ``span``."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= span / 5 - 1e-12)


def _x(share: float, left: int = LEFT) -> float:
    return left + share * (WIDTH - RIGHT - left)


def _y(share: float, height: int) -> float:
    return height - BOTTOM - share * (height - BOTTOM - TOP - 8)
