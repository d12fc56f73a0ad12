"""``key=value``, ``+key=value``, ``++key=value``, ``~key``: overrides as Hydra's users write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from launcher.config.values import NotAValue, parse_value
from launcher.errors import UserError

SET, ADD, FORCE, DELETE = "", "+", "++", "~"

_SHAPE = re.compile(r"(\+\+|\+|~|)\s*([^=]*?)\s*(?:=(.*))?", re.DOTALL)
_KEY = re.compile(r"[^\s.\[\]{}'\"=~+]+(?:\.[^\s.\[\]{}'\"=]+|\[[^\s.\[\]{}'\"=]+\])*")


@dataclass(frozen=True)
class Override:
    """``action`` is one of SET, ADD, FORCE, DELETE; ``given`` is False for a ``~key`` without a value."""

    text: str
    action: str
    path: tuple[str, ...]
    value: Any
    given: bool

    @property
    def key(self) -> str:
        return ".".join(self.path)


def parse_override(text: str) -> Override:
    """Read one override. Raises UserError saying which character spoils it."""
    found = _SHAPE.fullmatch(text)
    assert found, "the pattern takes any text"
    action, key, value = found[1], found[2], found[3]
    if not key:
        raise UserError(f"override {text!r} has no key", hint="write KEY=VALUE, as in train.lr=1e-4")
    if key.startswith("-"):
        raise UserError(
            f"{text!r} is neither an option nor an override",
            hint="arguments for the script come after --",
        )
    if not _KEY.fullmatch(key):
        raise UserError(f"override {text!r}: {key!r} is not a key such as train.lr or layers.0.size")
    if value is None and action != DELETE:
        raise UserError(
            f"override {text!r} has no '='", hint=f"write {key}=VALUE to set it, ~{key} to remove it"
        )
    try:
        parsed = None if value is None else parse_value(value)
    except NotAValue as error:
        at = found.start(3) + error.position
        raise UserError(
            f"override {text!r}, character {at + 1}: {error}",
            hint="in a shell, put the whole override in quotes: 'key=\"any text\"'",
        ) from None
    return Override(text, action, tuple(re.split(r"[.\[]", key.replace("]", ""))), parsed, value is not None)
