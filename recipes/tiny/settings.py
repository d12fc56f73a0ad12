"""A stage's settings: plain YAML into frozen dataclasses, every mistake named before any work starts."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")

# Read by the launcher, not by the stage.
LAUNCHER_SECTION = "run"


class ConfigError(Exception):
    """A setting, or what it points to, is wrong: one line for a person, no traceback."""


def run(main: Callable[[Path], None]) -> None:
    """Call ``main`` with the file given as ``--config``; a ConfigError ends the process with status 2.

    Under torchrun every rank finds the same mistake, and the first of each node tells it.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="plain YAML")
    arguments = parser.parse_args()
    try:
        main(arguments.config)
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def load(cls: type[T], path: Path) -> T:
    """The settings of ``path`` as ``cls``. Raises ConfigError, naming the key, for anything wrong."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds no settings")
    return build(cls, {key: value for key, value in values.items() if key != LAUNCHER_SECTION})


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass ``cls``. Raises ConfigError for unknown, missing and mistyped keys."""
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in fields(typing.cast(Any, cls))}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            guess = f"; did you mean {_dotted(where, close[0])}?" if close else ""
            raise ConfigError(f"unknown setting {_dotted(where, str(key))}{guess}")
    given = {}
    for name, item in known.items():
        if name in values:
            given[name] = _checked(values[name], hints[name], _dotted(where, name))
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"setting {_dotted(where, name)} is missing")
    return cls(**given)


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _checked(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        hint = next(item for item in typing.get_args(hint) if item is not type(None))
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a section, not {value!r}")
        return build(typing.cast("type[Any]", hint), value, where)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3 as text: only 1.0e-3 is a number to it.
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"{where} must be a number, not {value!r}") from None
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
        raise ConfigError(f"{where} must be {names.get(hint, hint.__name__)}, not {value!r}")
    return value
