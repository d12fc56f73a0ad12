"""TOML with line numbers: tomllib gives values only, and an error must name the line of its key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from launcher.errors import UserError

KeyPath = tuple[str, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'  # up to two more quotes belong to the text, not to its end
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^\s,\]}#]+(?: \d\d:[^\s,\]}#]+)?")  # a date may have a space before its time
_ERROR_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def loads(text: str, path: Path, first_line: int = 1) -> dict[str, Any]:
    """The values of ``text``, which begins on line ``first_line`` of ``path``.

    Raises UserError with the file and line where it stops being TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = _ERROR_LINE.search(message)
        at_end = max(len(text.splitlines()), 1)
        line = int(found[1]) if found and found[1] else at_end
        what = _ERROR_LINE.sub("", message)
        raise UserError(
            f"not valid TOML: {what[:1].lower()}{what[1:]}", where=f"{path}:{first_line + line - 1}"
        ) from None


def key_lines(text: str, first_line: int = 1) -> dict[KeyPath, int]:
    """The line of every key, table and list item of ``text``, which must be valid TOML.

    List items are named by their index: the second of ``a = [1, 2]`` is ``("a", "1")``. A key that dotted
    keys or headers imply (``a`` in ``a.b = 1``) has the line where it is first seen.
    """
    return _Scanner(text, first_line).run()


class _Scanner:
    """Walks valid TOML; what tomllib would refuse is not looked for again."""

    def __init__(self, text: str, first_line: int) -> None:
        self.text = text.replace("\r\n", "\n")
        self.pos = 0
        self.counted, self.line = 0, first_line
        self.lines: dict[KeyPath, int] = {}
        self.tables: dict[KeyPath, int] = {}  # how many items an array of tables has so far

    def run(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self.blank()
        while self.pos < len(self.text):
            if self.text[self.pos] == "[":
                table = self.header()
            else:
                self.pair(table)
            self.blank()
        return self.lines

    def blank(self) -> None:
        match = _BLANK.match(self.text, self.pos)
        assert match
        self.pos = match.end()

    def note(self, path: KeyPath) -> None:
        self.line += self.text.count("\n", self.counted, self.pos)
        self.counted = self.pos
        self.lines.setdefault(path, self.line)

    def key(self) -> list[str]:
        parts = []
        while True:
            self.blank()
            if match := _STRING.match(self.text, self.pos):
                parts.append(str(tomllib.loads(f"k = {match[0]}")["k"]))
            else:
                match = _BARE_KEY.match(self.text, self.pos)
                assert match, self.text[self.pos :]
                parts.append(match[0])
            self.pos = match.end()
            self.blank()
            if self.text[self.pos] != ".":
                return parts
            self.pos += 1

    def header(self) -> KeyPath:
        double = self.text.startswith("[[", self.pos)
        start = self.pos
        self.pos += 2 if double else 1
        parts = self.key()
        end, self.pos = self.pos + (2 if double else 1), start
        path: KeyPath = ()
        for index, part in enumerate(parts):
            path = (*path, part)
            self.note(path)
            last = index == len(parts) - 1
            if double and last:
                self.tables[path] = self.tables.get(path, 0) + 1
            if path in self.tables:
                path = (*path, str(self.tables[path] - 1))
                self.note(path)
        self.pos = end
        return path

    def pair(self, table: KeyPath) -> None:
        self.blank()
        start = self.pos
        parts = self.key()
        end, self.pos = self.pos + 1, start
        for count in range(1, len(parts) + 1):
            self.note((*table, *parts[:count]))
        self.pos = end
        self.value((*table, *parts))

    def value(self, path: KeyPath) -> None:
        self.blank()
        opening = self.text[self.pos]
        if opening in "[{":
            self.pos += 1
            index = 0
            self.blank()
            while self.text[self.pos] not in "]}":
                if opening == "{":
                    self.pair(path)
                else:
                    self.note((*path, str(index)))
                    self.value((*path, str(index)))
                index += 1
                self.blank()
                if self.text[self.pos] == ",":
                    self.pos += 1
                    self.blank()
            self.pos += 1
            return
        match = _STRING.match(self.text, self.pos) or _BARE_VALUE.match(self.text, self.pos)
        assert match, self.text[self.pos :]
        self.pos = match.end()
