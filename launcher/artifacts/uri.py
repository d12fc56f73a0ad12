"""``art://`` references.

    art://NAME            the highest version
    art://NAME:latest     the same
    art://NAME:v3         version 3
    art://NAME:champion   the version that an alias names (kept in MLflow)

The ``art://`` may be left out, and ``NAME:3`` means ``NAME:v3``, as in Nemotron's configs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from launcher.errors import UserError

SCHEME = "art://"
# Also a folder's name in a store and, with "/" replaced, a registered model's name in MLflow (256).
MAX_NAME = 200
MAX_ALIAS = 100

_FORM = "an artifact is written art://NAME, art://NAME:vN, art://NAME:latest or art://NAME:ALIAS"
_BAD_CHARACTER = re.compile(r"[^A-Za-z0-9._-]")
_PATH_STARTS = ("/", "./", "../", "~", "file://")


@dataclass(frozen=True)
class ArtifactRef:
    """One version of an artifact, or its newest when neither ``version`` nor ``alias`` is given."""

    name: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{SCHEME}{self.name}:v{self.version}"
        return f"{SCHEME}{self.name}:{self.alias}" if self.alias else f"{SCHEME}{self.name}"


def parse_ref(text: str) -> ArtifactRef:
    """Read a reference; ``:latest`` is what no version means, so it is not kept.

    Raises UserError naming the character, counted from 1, at which ``text`` stops being a reference.
    """
    start = len(SCHEME) if text.startswith(SCHEME) else 0
    if start == 0 and "://" in text:
        scheme = text.split("://")[0]
        _malformed(text, 1, f"the scheme {scheme + '://'!r} is not art://")
    name, colon, label = text[start:].partition(":")
    _check_name(text, name, start)
    if not colon:
        return ArtifactRef(name)
    return _with_label(text, name, label, start + len(name) + 2)


def is_path_ref(text: str) -> bool:
    """Whether an input's value names a file or folder of this machine rather than an artifact."""
    return text in (".", "..") or text.startswith(_PATH_STARTS)


def check_name(name: str) -> str:
    """``name`` itself when it may name an artifact. Raises UserError otherwise."""
    _check_name(name, name, 0)
    return name


def check_alias(alias: str) -> str:
    """``alias`` itself when it may name a version. Raises UserError otherwise."""
    ref = _with_label(alias, "artifact", alias, 1)
    if ref.alias is None:
        raise UserError(f"{alias!r} cannot be an alias: it already has a meaning", hint=_FORM)
    return alias


def encode_name(name: str) -> str:
    """The name as one path segment: stores and MLflow take no ``/`` in it. ``~`` is in no name."""
    return name.replace("/", "~")


def decode_name(segment: str) -> str:
    """The name that ``encode_name`` made ``segment`` of."""
    return segment.replace("~", "/")


def _check_name(text: str, name: str, start: int) -> None:
    """``start`` characters of ``text`` stand before ``name``."""
    if not name:
        _malformed(text, start + 1, "the name is missing")
    if len(name) > MAX_NAME:
        _malformed(text, start + MAX_NAME + 1, f"the name is longer than {MAX_NAME} characters")
    at = start
    for segment in name.split("/"):
        if not segment:
            _malformed(text, at + 1, "an empty part between slashes")
        if bad := _BAD_CHARACTER.search(segment):
            _malformed(text, at + bad.start() + 1, f"{bad.group()!r} may not stand in a name")
        if not segment[0].isalnum():
            _malformed(text, at + 1, f"a name begins with a letter or a digit, not {segment[0]!r}")
        at += len(segment) + 1


def _with_label(text: str, name: str, label: str, at: int) -> ArtifactRef:
    """The reference with what stands after its colon; ``at`` is the place of the label's first character."""
    if not label:
        _malformed(text, at, "nothing stands after the colon")
    if bad := _BAD_CHARACTER.search(label):
        _malformed(text, at + bad.start(), f"{bad.group()!r} may not stand in a version or alias")
    if label == "latest":
        return ArtifactRef(name)
    digits = label.removeprefix("v")
    if digits.isdecimal():
        if digits[0] == "0":
            _malformed(text, at, f"{label!r} is not a version: they are v1, v2, ...")
        if len(digits) > 9:
            _malformed(text, at, f"no version has the {len(digits)} digits of {label!r}")
        return ArtifactRef(name, version=int(digits))
    if not label[0].isalpha():
        _malformed(text, at, f"an alias begins with a letter, not {label[0]!r}")
    if len(label) > MAX_ALIAS:
        _malformed(text, at + MAX_ALIAS, f"the alias is longer than {MAX_ALIAS} characters")
    return ArtifactRef(name, alias=label)


def _malformed(text: str, character: int, problem: str) -> NoReturn:
    raise UserError(f"{text!r} is not an artifact: at character {character}, {problem}", hint=_FORM)
