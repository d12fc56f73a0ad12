"""The lines of keys in TOML, against tomllib and against a writer that knows where it writes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import tomlfile
from launcher.errors import UserError

TEXT = st.text(st.sampled_from("ab c=#[]{},.'\"\\\n\té漢/-_1"), max_size=8)
KEYS = st.one_of(st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True), TEXT)
SCALARS = st.one_of(TEXT, st.integers(-(10**6), 10**6), st.booleans(), st.floats(allow_nan=False))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
TABLES = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=4),
    lambda inner: st.dictionaries(KEYS, st.one_of(VALUES, inner), max_size=4),
    max_leaves=8,
)


class Writer:
    """Writes values as TOML in one of many styles, and notes the line of every key."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[tuple[str, ...], int] = {}

    def flip(self) -> bool:
        return bool(self.draw(st.booleans()))

    def note(self, path: tuple[str, ...]) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def gap(self) -> None:
        self.text += self.draw(st.sampled_from(["", "\n", "# a = 1\n", "  \n# [x]\n\n"]))

    def key(self, key: str) -> str:
        bare = key.isascii() and key.replace("-", "a").replace("_", "a").isalnum()
        return key if bare and self.flip() else quoted(key)

    def table(self, path: tuple[str, ...], values: dict[str, Any]) -> None:
        tables = {key: value for key, value in values.items() if isinstance(value, dict)}
        inline = {key for key in tables if self.flip()}
        for key, value in values.items():
            if key in tables and key not in inline:
                continue
            self.gap()
            self.note((*path, key))
            self.text += f"{self.key(key)} = "
            self.value((*path, key), value)
            self.text += self.draw(st.sampled_from(["\n", "  # b = 2\n", "\n\n"]))
        for key, value in tables.items():
            if key in inline:
                continue
            self.gap()
            for length in range(1, len(path) + 2):
                self.note((*path, key)[:length])
            self.text += f"[ {' . '.join(self.key(part) for part in (*path, key))} ]\n"
            self.table((*path, key), value)

    def value(self, path: tuple[str, ...], value: Any) -> None:
        if isinstance(value, dict):
            self.text += "{"
            for index, (key, item) in enumerate(value.items()):
                self.text += ", " if index else " "
                self.note((*path, key))
                self.text += f"{self.key(key)}="
                self.value((*path, key), item)
            self.text += "}"
        elif isinstance(value, list):
            self.text += "["
            for index, item in enumerate(value):
                self.text += self.draw(st.sampled_from(["", " ", "\n", " # ], [\n  "]))
                self.note((*path, str(index)))
                self.value((*path, str(index)), item)
                self.text += "," if index < len(value) - 1 or self.flip() else ""
            self.text += self.draw(st.sampled_from(["", "\n"])) + "]"
        elif isinstance(value, str):
            literal = "'" not in value and "\n" not in value and self.flip()
            several = '"""' not in value and self.flip()
            self.text += (
                f"'{value}'" if literal else f'"""\n{multiline(value)}"""' if several else quoted(value)
            )
        else:
            self.text += json.dumps(value) if not isinstance(value, float) else repr(value)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def multiline(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


@st.composite
def documents(draw: Callable[..., Any]) -> tuple[dict[str, Any], Writer]:
    values = draw(TABLES)
    writer = Writer(draw)
    writer.table((), values)
    return values, writer


@given(documents())
def test_every_key_is_found_on_the_line_where_it_was_written(document: tuple[dict[str, Any], Writer]) -> None:
    values, writer = document
    assert tomlfile.loads(writer.text, Path("x.toml")) == values
    assert tomlfile.key_lines(writer.text) == writer.lines


def every_path(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from every_path(item, (*path, str(key)))


HARD = "\n".join(
    [
        'a.b . "c.d" = 1          # dotted keys',
        "a.e = 1979-05-27 07:32:00",
        "",
        "[[points]]",
        "x = 1",
        "[points.inner]",
        "y = { z = [1, { w = 2 }], v.u = '''",
        "[not a table]",
        "k = 3''' }",
        "[[points]]",
        'x = """quotes \\""" and ""two"""""',
        "when = [1979-05-27 07:32:00, 07:32:00]",
        "[x.\"y z\".'w']",
    ]
)


def test_notations_that_are_rare() -> None:
    lines = tomlfile.key_lines(HARD, first_line=101)
    assert set(lines) == set(every_path(tomllib.loads(HARD)))
    assert lines["a", "b", "c.d"] == 101
    assert lines["a", "e"] == 102
    assert lines["points",] == lines["points", "0"] == 104
    assert lines["points", "0", "inner", "y", "z", "1", "w"] == 107
    assert lines["points", "0", "inner", "y", "v", "u"] == 107
    assert lines["points", "1", "x"] == 111
    assert lines["points", "1", "when", "1"] == 112
    assert lines["x", "y z", "w"] == 113


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb = \n", 2), ("a = 1\n\na = 2\n", 3), ("[a\n", 1), ('a = 1\nb = """\n\n', 3), ("", 0)],
)
def test_an_error_stands_on_its_line(text: str, line: int) -> None:
    if not line:
        assert tomlfile.loads(text, Path("x.toml")) == {}
        return
    with pytest.raises(UserError, match="not valid TOML") as caught:
        tomlfile.loads(text, Path("x.toml"), first_line=11)
    assert caught.value.where == f"x.toml:{10 + line}"
