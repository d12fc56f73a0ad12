"""Durations and dollars as people write them: ``36h``, ``2d``, ``1h30m``, ``$1.5k``, ``400``."""

from __future__ import annotations

import math
import re

from launcher.errors import UserError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6}
_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]+)\s*")
_DOLLARS = re.compile(r"\$?\s*(\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)\s*([km]?)")
_LONG = {
    "sec": "s", "secs": "s", "second": "s", "seconds": "s",
    "min": "m", "mins": "m", "minute": "m", "minutes": "m",
    "hr": "h", "hrs": "h", "hour": "h", "hours": "h",
    "day": "d", "days": "d", "week": "w", "weeks": "w",
}  # fmt: skip


def parse_duration(text: str) -> float:
    """Seconds of ``36h``, ``2d``, ``0.2h``, ``13m``, ``1h30m`` or ``90 min``.

    A number needs its unit: nobody can tell whether ``36`` means hours or seconds. Raises UserError for
    anything else, for zero, and for more than a century, which is a slip of the keyboard.
    """
    words = text.strip().lower()
    total, at = 0.0, 0
    while at < len(words):
        part = _PART.match(words, at)
        unit = _LONG.get(part[2], part[2]) if part else ""
        if part is None or unit not in _SECONDS:
            hint = "write a number and its unit: 36h, 2d, 13m, 90s, 1h30m"
            raise UserError(f"{text!r} is not a duration", hint=hint)
        total += float(part[1]) * _SECONDS[unit]
        at = part.end()
    if not 0 < total < 100 * 366 * 86400:
        raise UserError(f"{text!r} is not a duration that a run can take", hint="for example 36h or 2d")
    return total


def parse_dollars(text: str) -> float:
    """Dollars of ``400``, ``$400``, ``$1.5k``, ``1,500`` or ``2m`` (millions).

    Raises UserError for anything else and for zero: a cap of nothing would refuse every launch.
    """
    found = _DOLLARS.fullmatch(text.strip().lower())
    value = float(found[1].replace(",", "")) * _SCALE[found[2]] if found else 0.0
    if not 0 < value < 1e12:
        raise UserError(f"{text!r} is not an amount of dollars", hint="for example 400, $400 or $1.5k")
    return value


def format_duration(seconds: float) -> str:
    """``5400`` is ``1h30m``: the two largest units that matter, rounded; ``-`` before a negative one."""
    if not math.isfinite(seconds):
        return "never" if seconds > 0 else "unknown"
    sign, left = ("-", -seconds) if seconds < 0 else ("", seconds)
    for big, small in (("d", "h"), ("h", "m"), ("m", "s")):
        step = _SECONDS[small]
        count = round(left / step)
        if count * step >= _SECONDS[big]:
            whole, rest = divmod(count, round(_SECONDS[big] / step))
            return f"{sign}{whole}{big}{rest}{small}" if rest else f"{sign}{whole}{big}"
    return f"{sign}{left:.0f}s"


def enough_duration(seconds: float) -> str:
    """The shortest duration of two units that is no less: written as a limit, it is enough."""
    text = format_duration(math.ceil(seconds))
    for unit in ("s", "m", "h"):
        if parse_duration(text) >= seconds:
            break
        step = _SECONDS[unit]
        text = format_duration(math.ceil(seconds / step) * step)
    return text


def format_dollars(amount: float) -> str:
    """``1234.5`` is ``$1,234.50``; cents always, since a receipt must add up."""
    return f"-${-amount:,.2f}" if amount < 0 else f"${amount:,.2f}"
