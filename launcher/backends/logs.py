"""Log files as lines: while they grow, and their ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MAX_LINE_BYTES = 1024 * 1024
_CHUNK = 256 * 1024


class Tail:
    """Lines of a file that grows. A file that is absent yet is empty."""

    def __init__(self, path: Path, *, from_start: bool = True) -> None:
        self.path = path
        self._rest = b""
        self._at = path.stat().st_size if not from_start and path.exists() else 0

    def lines(self, final: bool = False) -> Iterator[str]:
        """The whole lines since the last call; with ``final`` also a last one that lacks its end.

        A line longer than ``MAX_LINE_BYTES`` comes in pieces.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self._at)
            while data := file.read(_CHUNK):
                self._at += len(data)
                *whole, self._rest = (self._rest + data).split(b"\n")
                yield from map(clean, whole)
                while len(self._rest) > MAX_LINE_BYTES:
                    yield clean(self._rest[:MAX_LINE_BYTES])
                    self._rest = self._rest[MAX_LINE_BYTES:]
        if final and self._rest:
            yield clean(self._rest)
            self._rest = b""


def clean(line: bytes) -> str:
    """A line as a terminal would leave it: of a progress bar that redraws itself, the last state."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")


def last_lines(path: Path, count: int) -> tuple[str, ...]:
    """The last ``count`` lines of a file, none when it is absent."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - count * 2000))
            data = file.read()
    except FileNotFoundError:
        return ()
    return tuple(clean(line) for line in data.rstrip(b"\n").split(b"\n")[-count:] if line)
