"""Text of an override -> value, in Hydra's notation.

3  1e-4  true  null          numbers, booleans, null
text, a/b.c, art://data:v2   anything else is text, with no need for quotes
'it, has: [marks]'  "…"      quotes keep everything
[1, a]  {x: 1, y: [2]}       lists and tables, nested at will
${model.hidden}              stays, to be filled in later
"""

from __future__ import annotations

import re
from typing import Any

_INTEGER = re.compile(r"[+-]?(?:0|[1-9](?:_?[0-9])*)")
_POINT = r"(?:(?:0|[1-9](?:_?[0-9])*)?\.[0-9](?:_?[0-9])*|(?:0|[1-9](?:_?[0-9])*)\.)"
_FLOAT = re.compile(
    rf"[+-]?(?:{_POINT}|(?:{_POINT}|0|[1-9](?:_?[0-9])*)e[+-]?[0-9](?:_?[0-9])*|inf|nan)", re.IGNORECASE
)
_WORDS = {"true": True, "false": False, "null": None}
_ESCAPABLE = "\\()[]{}:=, \t"


class NotAValue(ValueError):
    """What is wrong with the text; ``position`` counts its characters from 0."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def parse_value(text: str) -> Any:
    """Read the right side of an override. Raises NotAValue."""
    reader = _Reader(text)
    if not text.strip():
        return ""
    value = reader.element(top=True)
    reader.space()
    if reader.pos < len(text):
        reader.fail("nothing may follow the closing mark")
    return value


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0

    def fail(self, message: str) -> None:
        raise NotAValue(message, self.pos)

    @property
    def next(self) -> str:
        return self.text[self.pos : self.pos + 1]

    def space(self) -> None:
        while self.next in (" ", "\t") and self.next:
            self.pos += 1

    def element(self, top: bool = False) -> Any:
        self.space()
        if self.next == "[":
            return self.items()
        if self.next == "{":
            return self.table()
        if self.next in ("'", '"'):
            return self.quoted()
        return self.plain(top)

    def items(self) -> list[Any]:
        result: list[Any] = []
        while self.more("]", bool(result)):
            result.append(self.element())
        return result

    def table(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while self.more("}", bool(result)):
            self.space()
            start = self.pos
            key = self.quoted() if self.next in ("'", '"') else self.key()
            self.space()
            if self.next != ":":
                self.fail(f"a ':' is missing after {key!r}")
            self.pos += 1
            if key in result:
                self.pos = start
                self.fail(f"the key {key!r} stands twice")
            result[key] = self.element()
        return result

    def more(self, closing: str, begun: bool) -> bool:
        """Step over the opening bracket or a comma; whether another item follows."""
        self.space()
        if begun and self.next == closing:
            self.pos += 1
            return False
        if begun and self.next != ",":
            self.fail(f"{closing!r} or ',' is missing")
        self.pos += 1
        self.space()
        if not begun and self.next == closing:
            self.pos += 1
            return False
        return True

    def key(self) -> str:
        start = self.pos
        while self.next and self.next not in "\\()[]{}:,'\"":
            self.pos += 1
        key = self.text[start : self.pos].strip()
        if not key:
            self.fail("a key is missing")
        return key

    def quoted(self) -> str:
        """A backslash counts only in front of the closing kind of quote."""
        quote, start = self.next, self.pos
        self.pos += 1
        parts = []
        while self.next != quote:
            if not self.next:
                self.pos = start
                self.fail(f"the quote {quote} is never closed")
            if self.text.startswith("${", self.pos):
                parts.append(self.interpolation())
                continue
            slashes = len(self.text[self.pos :]) - len(self.text[self.pos :].lstrip("\\"))
            if slashes and self.text[self.pos + slashes : self.pos + slashes + 1] == quote:
                parts.append("\\" * (slashes // 2) + quote * (slashes % 2))
                self.pos += slashes + slashes % 2
            else:
                parts.append(self.text[self.pos : self.pos + max(slashes, 1)])
                self.pos += max(slashes, 1)
        self.pos += 1
        return "".join(parts)

    def interpolation(self) -> str:
        """``${…}`` as it stands, braces and quotes inside it balanced."""
        start, depth, quote = self.pos, 0, ""
        while self.next:
            here = self.next
            self.pos += 1
            if quote:
                quote = "" if here == quote else quote
            elif here in "'\"":
                quote = here
            elif here == "{":
                depth += 1
            elif here == "}":
                depth -= 1
                if not depth:
                    return self.text[start : self.pos]
        self.pos = start
        self.fail("'${' is never closed")
        raise AssertionError

    def plain(self, top: bool) -> Any:
        parts: list[str] = []
        end = 0  # how much of the parts to keep: space at the end counts only when escaped
        while self.next:
            here = self.next
            if self.text.startswith("${", self.pos):
                parts.append(self.interpolation())
                end = len(parts)
            elif here == "\\" and self.text[self.pos + 1 : self.pos + 2] in tuple(_ESCAPABLE):
                parts.append(self.text[self.pos + 1])
                self.pos += 2
                end = len(parts)
            elif here == "," and top:
                self.fail("',' outside of brackets: write a list as [a,b], or put text in quotes")
            elif not top and here in ",]}":
                break
            elif here in "()[]{}":
                self.fail(f"{here!r} in plain text: put it in quotes")
            else:
                parts.append(here)
                self.pos += 1
                end = end if here in " \t" else len(parts)
        if not end:
            self.fail("a value is missing")
        return _scalar("".join(parts[:end]))


def _scalar(word: str) -> Any:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _FLOAT.fullmatch(word) else word
