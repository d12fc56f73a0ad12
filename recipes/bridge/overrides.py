"""Settings from YAML into a ``ConfigContainer``: every key must be a field, every value of its type.

Bridge has a function for this that passes over unknown keys with a warning; a typo would then train for a
day with the default.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from recipes.bridge.common import ConfigError, did_you_mean

TARGET = "_target_"


def apply(config: Any, values: Mapping[str, Any]) -> None:
    """Set ``values`` (sections of fields) on ``config``, in place.

    A section with ``_target_`` replaces what is there by that class with those arguments; ``null`` removes
    it. Raises ConfigError, naming the dotted key, for an unknown field or a value of the wrong kind.
    """
    _apply(config, values, "")


def _apply(owner: Any, values: Mapping[str, Any], where: str) -> None:
    known = _names(owner)
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(
                f"{dotted}: no such setting in {type(owner).__name__}{_guess(key, known, where)}"
            )
        current = getattr(owner, key, None)
        if isinstance(value, Mapping) and TARGET in value:
            setattr(owner, key, _instantiate(value, dotted))
        elif isinstance(value, Mapping) and not isinstance(current, Mapping):
            if not is_dataclass(current):
                raise ConfigError(
                    f"{dotted} is {current!r} in this recipe: give its class as {dotted}.{TARGET} to set it"
                )
            _apply(current, value, dotted)
        else:
            setattr(owner, key, _converted(value, current, dotted))


def _names(owner: Any) -> set[str]:
    """Fields, and properties that can be set, such as ``dataset.seq_length``."""
    names = {item.name for item in fields(owner)} if is_dataclass(owner) else set()
    for name in dir(type(owner)):
        attribute = getattr(type(owner), name, None)
        if isinstance(attribute, property) and attribute.fset is not None:
            names.add(name)
    return names | {name for name in vars(owner) if not name.startswith("_")}


def _guess(key: object, known: set[str], where: str) -> str:
    guess = did_you_mean(str(key), known)
    return guess.replace("did you mean '", f"did you mean '{where}.") if where and guess else guess


def _converted(value: Any, current: Any, where: str) -> Any:
    if value is None or current is None:
        return _number(value) if current is None else value
    if isinstance(current, enum.Enum) and isinstance(value, str):
        members = type(current).__members__
        if value not in members:
            raise ConfigError(f"{where}: {value!r} is none of {', '.join(members)}")
        return members[value]
    if type(current).__name__ == "dtype" and isinstance(value, str):
        return _dtype(value, where)
    if isinstance(current, bool) != isinstance(value, bool) and isinstance(current, (bool, int, float)):
        kind = "true or false" if isinstance(current, bool) else "a number"
        raise ConfigError(f"{where} must be {kind}, not {value!r}")
    if isinstance(current, (int, float)) and isinstance(value, str):
        number = _number(value)
        if isinstance(number, str):
            raise ConfigError(f"{where} must be a number, not {value!r}")
        return number
    return value


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text: only 1.0e-3 is a number to it."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _dtype(text: str, where: str) -> Any:
    import torch

    found = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"{where}: torch has no dtype {text!r}")
    return found


def _instantiate(value: Mapping[str, Any], where: str) -> Any:
    import importlib

    target = str(value[TARGET])
    module, _, name = target.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
        arguments = {key: item for key, item in value.items() if key != TARGET}
        for key, item in arguments.items():
            if key.endswith("dtype") and isinstance(item, str):
                arguments[key] = _dtype(item, f"{where}.{key}")
        return function(**arguments)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(f"{where}.{TARGET}: there is no {target!r}") from None
    except TypeError as error:
        raise ConfigError(f"{where}: {target} does not take these arguments: {error}") from None
