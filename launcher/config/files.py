"""Configuration files: find one by name, read it whatever its format, follow its ``defaults``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from launcher import tomlfile, yamlfile
from launcher.errors import UserError, did_you_mean

KeyPath = tuple[str, ...]

SUFFIXES = (".yaml", ".yml", ".toml", ".json")
DEFAULTS = "defaults"
SELF = "_self_"

_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class Source:
    """One file's own values; ``lines`` gives the line of each key, list items being named by index."""

    path: Path
    values: dict[str, Any]
    lines: dict[KeyPath, int]

    def line(self, keys: KeyPath) -> int:
        """The line of a key, or of its nearest ancestor that stands in the file."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)

    def where(self, *keys: str) -> str:
        return f"{self.path}:{self.line(keys)}"


def locate(name: str, folder: Path, where: str | None = None) -> Path:
    """The file that ``name`` means: a configuration of ``folder``, or a path when it has ``/`` or a suffix.

    A path is taken from the current directory, then from ``folder``. Raises UserError with the nearest name.
    """
    if "/" in name or name.endswith(SUFFIXES):
        given = Path(name).expanduser()
        for path in (given, folder / given):
            if path.is_file():
                return path
        guess = did_you_mean(given.name, [path.name for path in configs(folder)])
        raise UserError(f"there is no config file {name}{guess}", where=where)
    found = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(path.name for path in found)
        raise UserError(f"config {name!r} is ambiguous in {folder}: {both}", where=where)
    names = [path.stem for path in configs(folder)]
    raise UserError(
        f"no config {name!r} in {folder}{did_you_mean(name, names)}",
        where=where,
        hint=f"there are: {', '.join(names) or 'none'}; a path to any other file works too",
    )


def configs(folder: Path) -> list[Path]:
    """The configuration files of ``folder``, sorted."""
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)


def layers(path: Path) -> list[Source]:
    """``path`` and all that it inherits from, in the order in which they are merged: the last one wins.

    Raises UserError for a missing or circular ``defaults``, naming the line that asks for it.
    """
    return list(_layers(path, ()))


def _layers(path: Path, chain: tuple[Path, ...]) -> Iterator[Source]:
    source = read(path)
    given = source.values.pop(DEFAULTS, [])
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{DEFAULTS} must be the name of a config or a list of names, not {given!r}",
            where=source.where(DEFAULTS),
        )
    if SELF not in names:
        names = [*names, SELF]
    chain = (*chain, path.resolve())
    for index, name in enumerate(names):
        if name == SELF:
            yield source
            continue
        where = source.where(DEFAULTS, str(index))
        base = _base(name, path.parent, where)
        if base.resolve() in chain:
            circle = [*chain[chain.index(base.resolve()) :], base]
            raise UserError(
                f"{DEFAULTS} goes in a circle: {' -> '.join(item.stem for item in circle)}", where=where
            )
        yield from _layers(base, chain)


def _base(name: str, folder: Path, where: str) -> Path:
    """A base is named from the file that inherits it, never from the current directory."""
    path = folder / Path(name).expanduser()
    if path.suffix in SUFFIXES and path.is_file():
        return path
    return locate(path.name, path.parent, where)


def read(path: Path) -> Source:
    """One file's values as plain text, numbers, booleans, None, lists and tables; dates become text.

    Raises UserError, with file:line, when it is absent, ill-formed, has a key twice, or is no mapping.
    """
    try:
        if path.suffix == ".toml":
            text = _text(path)
            values, lines = tomlfile.loads(text, path), tomlfile.key_lines(text)
        elif path.suffix == ".json":
            values, lines = _read_json(_text(path), path)
        else:
            file = yamlfile.read(path)
            values, lines = file.values, file.lines
        source = Source(path, values, lines)
        return Source(path, _plain(values, (), source), lines)
    except RecursionError:
        raise UserError("the file is nested too deep, or refers to itself", where=f"{path}:1") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: byte {error.start} is invalid", where=f"{path}:1") from None


def _plain(value: Any, keys: KeyPath, source: Source) -> Any:
    """A copy of its own, so that two YAML aliases of one table can be changed apart."""
    if isinstance(value, dict):
        _require_text_keys(value, keys, source)
        return {key: _plain(item, (*keys, key), source) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, (*keys, str(index)), source) for index, item in enumerate(value)]
    if isinstance(value, date | time):
        return value.isoformat()
    if value is not None and not isinstance(value, str | bool | int | float):
        raise UserError(
            f"{'.'.join(keys)}: a config cannot hold {type(value).__name__}", where=source.where(*keys)
        )
    return value


def _require_text_keys(table: dict[Any, Any], keys: KeyPath, source: Source) -> None:
    for key in table:
        if not isinstance(key, str):  # the lines know it as it is written: `on`, which YAML reads as True
            inside = [path[-1] for path in source.lines if path[:-1] == keys]
            written = next((name for name in inside if name not in table), str(key))
            raise UserError(
                f"the key {written!r} means {key!r}, not text: write it in quotes",
                where=source.where(*keys, written),
            )


def _read_json(text: str, path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    if not isinstance(values, dict):
        raise UserError("expected a mapping of keys to values", where=f"{path}:1")
    lines: dict[KeyPath, int] = {}
    _walk_json(text, 0, (), lines, path)
    return values, lines


def _walk_json(text: str, pos: int, keys: KeyPath, lines: dict[KeyPath, int], path: Path) -> int:
    """Note the line of every key of the valid JSON value at ``pos``; returns the position behind it."""
    pos = _skip(text, pos, " \t\r\n")
    if text[pos] not in "{[":
        return _JSON.raw_decode(text, pos)[1]
    table, pos, index = text[pos] == "{", pos + 1, 0
    while text[pos := _skip(text, pos, " \t\r\n,")] not in "}]":
        line = text.count("\n", 0, pos) + 1
        name = str(index)
        if table:
            name, pos = _JSON.raw_decode(text, pos)
            pos = _skip(text, pos, " \t\r\n:")
        if (*keys, name) in lines:
            twice = f"key {'.'.join((*keys, name))!r} stands here and on line {lines[(*keys, name)]}"
            raise UserError(twice, where=f"{path}:{line}")
        lines[(*keys, name)] = line
        pos = _walk_json(text, pos, (*keys, name), lines, path)
        index += 1
    return pos + 1


def _skip(text: str, pos: int, characters: str) -> int:
    while pos < len(text) and text[pos] in characters:
        pos += 1
    return pos


def dotted_keys(values: dict[str, Any]) -> Iterator[str]:
    """Every key of nested tables, sections as well as values, joined by dots."""
    for key, value in values.items():
        yield key
        if isinstance(value, dict):
            for inner in dotted_keys(value):
                yield f"{key}.{inner}"


def known_keys(path: Path) -> set[str]:
    """Every dotted key of the file and of all that it inherits from. Raises UserError as :func:`layers`."""
    return {key for source in layers(path) for key in dotted_keys(source.values)}


def matches(key: str, globs: Iterable[str]) -> bool:
    """Whether one of ``globs`` means ``key``; ``*`` also stands for several levels."""
    return any(fnmatchcase(key, glob) for glob in globs)
