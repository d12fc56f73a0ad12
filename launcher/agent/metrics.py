"""The script's metrics: JSON lines that it appends to $NEMO_SKY_METRICS, read while it writes them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from launcher.agent.ends import say

Point = dict[str, Any]


class MetricsFile:
    """New points of a file that grows: ``{"step": 10, "loss": 3.2}``, with ``ts`` in milliseconds if it
    matters. What is not a number is left out, and said once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        self._rest = b""
        self._step = 0
        self._complained: set[str] = set()

    def points(self, final: bool = False) -> list[Point]:
        """What came since the last call; ``final`` takes a last line without end, if it is whole."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if final and _is_json(self._rest):
            lines.append(self._rest)
            self._rest = b""
        return [point for line in lines if line.strip() for point in self._read(line)]

    def _read(self, line: bytes) -> list[Point]:
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            self._complain("line", f"a line that is no JSON object: {line[:80].decode(errors='replace')!r}")
            return []
        step = values.pop("step", self._step)
        stamp = values.pop("ts", None)
        if not _is_number(step) or step != step or abs(step) == float("inf"):
            self._complain("step", f"the step {step!r} is not a whole number")
            return []
        self._step = int(step)
        when = stamp / 1000 if _is_number(stamp) else time.time()
        points = []
        for key, value in values.items():
            if _is_number(value):
                points.append({"key": key, "value": value, "step": self._step, "ts": when})
            else:
                self._complain(f"key {key}", f"{key} is not a number: {value!r:.80}")
        return points

    def _complain(self, what: str, text: str) -> None:
        if what not in self._complained:
            self._complained.add(what)
            say(f"metrics: left out, {text}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
