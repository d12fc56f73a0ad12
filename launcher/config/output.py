"""What becomes of composed values: rows to show, flat text for MLflow, YAML for the script."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from launcher.config.files import KeyPath

if TYPE_CHECKING:
    from launcher.config.compose import Composed


def leaves(values: Mapping[str, Any], under: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Paths and their values; a list is one value, and so is an empty table."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*under, key))
        else:
            yield (*under, key), value


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys and their values as text: text as it is, all else as JSON would write it."""
    return {".".join(path): _text(value) for path, value in leaves(values)}


def rows(composed: Composed) -> list[tuple[str, str, str]]:
    """Key, value and origin of every value, in the order of the files."""
    return [(key, value, composed.origin[key]) for key, value in flatten(composed.values).items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of plain values: the same values give the same bytes, everywhere.

    Keys keep their order and nothing is abbreviated by anchors. Any YAML reader, 1.1 or 1.2, gets the same
    values back: text that looks like a number or a date to one of them is quoted.
    """
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """PyYAML's own emitter, not libyaml's: their line breaks differ, and not every machine has both."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes these line breaks of Unicode as they are and reads them back as spaces or "\n".
    style = '"' if not {"\x85", "\u2028", "\u2029"}.isdisjoint(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
# Text that YAML 1.2 takes for a number though PyYAML would not: with this it is quoted.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|0o[0-7]+)$"),
    list("-+0123456789."),
)
