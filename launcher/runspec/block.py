"""Find the ``# /// script`` block (PEP 723) of a script, and the line of each of its keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher import tomlfile
from launcher.errors import UserError

OPENING = "# /// script"
CLOSING = "# ///"
_NEARLY_OPENING = re.compile(r"#\s*///\s*script\s*$")


@dataclass(frozen=True)
class Block:
    """The TOML of one block; ``opening`` is the line of its ``# /// script``."""

    path: Path
    opening: int
    toml: str

    @cached_property
    def data(self) -> dict[str, Any]:
        """Raises UserError, with the line in the script, when the block is not TOML."""
        return tomlfile.loads(self.toml, self.path, self.opening + 1)

    @cached_property
    def lines(self) -> dict[tuple[str, ...], int]:
        return tomlfile.key_lines(self.toml, self.opening + 1)

    def line(self, *keys: str) -> int:
        """The line of a key, or of its nearest ancestor that the block has."""
        path = tuple(keys)
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, self.opening)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: byte {error.start} is invalid", where=f"{path}:1") from None


def openings(text: str) -> list[int]:
    """The 1-based lines where a ``script`` block opens; PEP 723 allows one."""
    return [number for number, line in enumerate(text.split("\n"), 1) if line == OPENING]


def find_block(text: str, path: Path) -> Block:
    """The first ``script`` block of ``text``.

    Raises UserError when there is none that PEP 723 would see, naming the line that spoils it.
    """
    lines = text.split("\n")
    found = openings(text)
    if not found:
        for number, line in enumerate(lines, 1):
            if _NEARLY_OPENING.match(line):
                raise UserError(
                    f"a block opens with exactly {OPENING!r}, not {line!r}", where=f"{path}:{number}"
                )
        raise UserError(
            f"no {OPENING!r} block",
            where=f"{path}:1",
            hint="a stage's script begins with one that holds [tool.runspec]; see docs/runspec.md",
        )
    opening = found[0]
    end = opening  # 0-based index of the line below the opening
    closing = None
    while end < len(lines) and _is_content(lines[end]) and lines[end] != OPENING:
        if lines[end] == CLOSING:
            closing = end  # PEP 723: the last one of an unbroken run of comments closes the block
        end += 1
    if closing is None:
        raise _unclosed(lines, opening, end, path)
    return Block(path, opening, "\n".join(line[2:] for line in lines[opening:closing]))


def _is_content(line: str) -> bool:
    return line == "#" or line.startswith("# ")


def _unclosed(lines: list[str], opening: int, end: int, path: Path) -> UserError:
    if end < len(lines) and lines[end].startswith("#") and lines[end] != OPENING:
        return UserError(f"{lines[end]!r}: a line of the block begins with '# '", where=f"{path}:{end + 1}")
    return UserError(f"the block that opens here is never closed by {CLOSING!r}", where=f"{path}:{opening}")
