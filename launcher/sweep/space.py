"""The space file of a sweep: which keys of a config vary, what is measured, when the weak are stopped.

    metric: valid_loss                 # as the script logs it; this is the default
    direction: minimize                # or maximize
    resource: {key: train.steps, min: 50, max: 400, reduction: 3}
    seed: 7
    space:
      train.lr: {low: 1e-4, high: 1e-1, log: true}
      model.layers: {low: 2, high: 8, int: true}
      train.global_batch_size: {choices: [8, 16, 32]}

Without ``resource`` every trial trains to its end.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import yamlfile
from launcher.config import Composed, parse_override
from launcher.errors import UserError, did_you_mean
from launcher.yamlfile import YamlFile

SECTIONS = ("metric", "direction", "resource", "seed", "space")
DIRECTIONS = ("minimize", "maximize")
RANGE = ("low", "high", "log", "int")
CHOICES = "choices"
RESOURCE = ("key", "min", "max", "reduction")
Value = bool | int | float | str | None


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, both included; ``log``: as many in each decade."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Choices:
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Resource:
    """What a trial gets more of while it does well: the config's ``key``, in the steps of the metric.

    A trial is judged at ``min``, ``min * reduction``, ``min * reduction ** 2``, ..., where only the best
    ``1 / reduction`` go on; ``max`` (None: what the config says) is where it ends.
    """

    key: str
    min: int
    max: int | None
    reduction: int


@dataclass(frozen=True)
class Space:
    """What a sweep varies and measures. ``seed`` of the proposals is None for one by chance."""

    file: YamlFile
    keys: Mapping[str, Range | Choices]
    metric: str = "valid_loss"
    direction: str = "minimize"
    resource: Resource | None = None
    seed: int | None = None

    def where(self, *path: str) -> str:
        return self.file.where(*path)


def read(path: Path) -> Space:
    """Read a space file. Raises UserError, with file:line and the nearest key, for what is wrong in it."""
    file = yamlfile.read(path)
    _require_keys(file, (), SECTIONS)
    keys = _table(file, "space")
    if not keys:
        raise UserError(
            "a space needs keys to vary",
            where=file.where("space"),
            hint="for example `space: {train.lr: {low: 1e-4, high: 1e-1, log: true}}`",
        )
    metric = file.values.get("metric", "valid_loss")
    if not isinstance(metric, str) or not metric:
        raise UserError(f"metric must be the name of a metric, not {metric!r}", where=file.where("metric"))
    direction = file.values.get("direction", "minimize")
    if direction not in DIRECTIONS:
        guess = did_you_mean(str(direction), DIRECTIONS)
        raise UserError(
            f"direction must be minimize or maximize, not {direction!r}{guess}", where=file.where("direction")
        )
    seed = file.values.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**32):
        raise UserError(f"seed must be a whole number from 0, not {seed!r}", where=file.where("seed"))
    return Space(
        file,
        {str(key): _parameter(file, key) for key in keys},
        metric,
        direction,
        _resource(file) if "resource" in file.values else None,
        seed,
    )


def check(space: Space, composed: Composed, known: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Raises UserError, with file:line and the nearest key, for a key that the composed config does not
    have, one that is a section of it, one that the command line sets already, and numbers of the wrong kind.

    ``known`` are keys that the recipe knows besides those of the config.
    """
    from launcher.config import flatten
    from launcher.config.compose import _guess

    leaves = set(flatten(composed.values))
    set_already = {parse_override(text).key: text for text in overrides}
    wanted = {key: ("space", key) for key in space.keys}
    if space.resource:
        if space.resource.key in wanted:
            where = space.where("resource", "key")
            raise UserError(f"{space.resource.key} is the resource and stands in the space, too", where=where)
        wanted[space.resource.key] = ("resource", "key")
    for key, path in wanted.items():
        where = space.where(*path)
        if key in set_already and (key in space.keys or (space.resource and space.resource.max)):
            said = "varies" if key in space.keys else f"ends at {space.resource and space.resource.max}"
            raise UserError(f"{key} {said}, and the command line sets it: {set_already[key]}", where=where)
        if any(leaf.startswith(f"{key}.") for leaf in leaves):
            raise UserError(f"{key} is a section of the config, not a value", where=where)
        if key not in leaves and key not in known:
            raise UserError(
                f"unknown key {key!r}{_guess(key, [*leaves, *known])}",
                where=where,
                hint=f"to vary a key that the config does not have, add it on the command line: +{key}=...",
            )
        _require_kind(space, key, lookup(composed.values, key), where)


def override(key: str, value: Value) -> str:
    """``key=value`` that sets exactly this value; of text ``${...}`` is filled in, as in any override."""
    if not isinstance(value, str):
        return f"{key}={json.dumps(value)}"
    # Backslashes count only in front of the quote that ends the text.
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return f'{key}="{escaped}"'


def lookup(values: Mapping[str, Any], dotted: str) -> Any:
    node: Any = values
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _parameter(file: YamlFile, key: str) -> Range | Choices:
    where, path = file.where("space", key), ("space", key)
    table = file.values["space"][key]
    if not isinstance(table, dict):
        raise UserError(
            f"{key} must be a range or choices, not {table!r}",
            where=where,
            hint=f"write `{key}: {{low: 1, high: 8}}` or `{key}: {{choices: [1, 2]}}`",
        )
    try:
        plain = parse_override(f"{key}=1").key == key
    except UserError:
        plain = False
    if not plain:
        raise UserError(f"{key!r} is not a key such as train.lr", where=where)
    _require_keys(file, path, (*RANGE, CHOICES))
    if CHOICES in table:
        if others := [name for name in table if name != CHOICES]:
            raise UserError(
                f"{key} has choices and {others[0]}: give one", where=file.where(*path, others[0])
            )
        return _choices(file, key, table[CHOICES])
    return _range(file, key, table)


def _choices(file: YamlFile, key: str, values: Any) -> Choices:
    where = file.where("space", key, CHOICES)
    if not isinstance(values, list) or not values:
        raise UserError(f"{key}.choices must be a list of values, not {values!r}", where=where)
    for number, value in enumerate(values):
        if not isinstance(value, Value) or (isinstance(value, float) and not math.isfinite(value)):
            at = file.where("space", key, CHOICES, str(number))
            raise UserError(f"{key}.choices: {value!r} is no number, text, true, false or null", where=at)
        try:
            parse_override(override(key, value))
        except UserError as error:
            raise UserError(error.message, where=file.where("space", key, CHOICES, str(number))) from None
        if any(value == other for other in values[:number]):  # for Optuna 1, 1.0 and true are one
            at = file.where("space", key, CHOICES, str(number))
            raise UserError(f"{key}.choices has {value!r} twice", where=at)
    return Choices(tuple(values))


def _range(file: YamlFile, key: str, table: Mapping[str, Any]) -> Range:
    def where(name: str) -> str:
        return file.where("space", key, name)

    for bound in ("low", "high"):
        if bound not in table:
            raise UserError(f"{key} needs {bound}, or choices", where=file.where("space", key))
        value = table[bound]
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UserError(f"{key}.{bound} must be a number, not {value!r}", where=where(bound))
    low, high = table["low"], table["high"]
    # `{low: 1, high: 8, int}` is YAML for a key without a value.
    whole, log = (table.get(name, False) is None or table.get(name, False) for name in ("int", "log"))
    for name, flag in (("int", whole), ("log", log)):
        if type(flag) is not bool:
            raise UserError(f"{key}.{name} must be true or false, not {flag!r}", where=where(name))
    if low >= high:
        raise UserError(f"{key}: low is {low!r}, which is not below high, {high!r}", where=where("low"))
    if log and low <= 0:
        raise UserError(f"{key}.low must be above 0 for a range with log, not {low!r}", where=where("low"))
    if whole and (bad := [name for name in ("low", "high") if type(table[name]) is not int]):
        message = f"{key}.{bad[0]} must be a whole number, for it says int, not {table[bad[0]]!r}"
        raise UserError(message, where=where(bad[0]))
    return Range(low, high, log, whole)


def _resource(file: YamlFile) -> Resource:
    _table(file, "resource")
    _require_keys(file, ("resource",), RESOURCE)
    table = file.values["resource"]
    key = table.get("key")
    if not isinstance(key, str) or not key:
        raise UserError(
            "resource needs the key that says how long a trial trains",
            where=file.where("resource", "key"),
            hint="for example `key: train.steps`",
        )

    def whole(name: str, default: int | None, least: int) -> int | None:
        value = table.get(name, default)
        if value is not None and (type(value) is not int or value < least):
            message = f"resource.{name} must be a whole number from {least}, not {value!r}"
            raise UserError(message, where=file.where("resource", name))
        return value

    least, most, reduction = whole("min", None, 1), whole("max", None, 1), whole("reduction", 3, 2)
    if least is None:
        raise UserError("resource needs min: after how many steps a trial is first judged",
                        where=file.where("resource"))  # fmt: skip
    if most is not None and most <= least:
        message = f"resource.max is {most}, which is not above min, {least}"
        raise UserError(message, where=file.where("resource", "max"))
    assert reduction is not None
    return Resource(key, least, most, reduction)


def _require_kind(space: Space, key: str, now: Any, where: str) -> None:
    """A trainer that wants a whole number would fail at the first trial that got another."""
    spec = space.keys.get(key)
    if type(now) is int and isinstance(spec, Range) and not spec.whole:
        raise UserError(
            f"{key} is {now} in the config, a whole number, and the range is of any",
            where=where,
            hint="add `int: true` to it",
        )
    if spec is None and (type(now) is not int or now < 1):
        raise UserError(f"the resource {key} is {now!r} in the config, no number of steps", where=where)


def _require_keys(file: YamlFile, path: tuple[str, ...], known: tuple[str, ...]) -> None:
    table: Any = file.values
    for part in path:
        table = table[part]
    for key in table:
        if key not in known:
            name = ".".join((*path[1:], str(key)) if path[:1] == ("space",) else (*path, str(key)))
            guess = did_you_mean(str(key), known)
            raise UserError(
                f"unknown key {name!r}{guess}",
                where=file.where(*path, str(key)),
                hint=f"there are: {', '.join(known)}",
            )


def _table(file: YamlFile, key: str) -> Mapping[Any, Any]:
    table = file.values.get(key) or {}
    if not isinstance(table, dict):
        raise UserError(f"{key} must be a table, not {table!r}", where=file.where(key))
    for name in table:
        if not isinstance(name, str):
            message = f"the key {name!r} of {key} is not text: write it in quotes"
            raise UserError(message, where=file.where(key))
    return table
