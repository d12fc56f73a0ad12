"""Read a YAML mapping and know on which line every key stands.

PyYAML silently keeps the last of two equal keys and reads ``1e-4`` as a string; both have cost people
training runs, so both are mended here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import UserError

KeyPath = tuple[str, ...]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loader that reads numbers as YAML 1.2 does, so that ``1e-4`` is a float; dates stay text."""


_Loader.yaml_implicit_resolvers = {
    # Dates stay the text that was written, as OmegaConf leaves them.
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?(?:[0-9][0-9_]*)[eE][-+]?[0-9]+"
        r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class YamlFile:
    """A parsed mapping; ``lines`` gives the 1-based line of each key by its path."""

    path: Path
    values: dict[str, Any]
    lines: dict[KeyPath, int]

    def where(self, *keys: str) -> str:
        """``file:line`` of a key, or of its nearest ancestor that stands in the file."""
        path = tuple(keys)
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.path}:{self.lines.get(path, 1)}"


def read(path: Path) -> YamlFile:
    """Read ``path`` as a mapping.

    Raises UserError, with file:line, when the file is absent, is no YAML, has a key twice, or is not a
    mapping with text keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} is invalid") from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlFile(path, {}, {})
        if not isinstance(node, yaml.MappingNode):
            raise UserError("expected a mapping of keys to values", where=f"{path}:1")
        lines: dict[KeyPath, int] = {}
        _walk(node, (), lines, path)
        return YamlFile(path, loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"not valid YAML: {error.problem}", where=f"{path}:{line}") from None
    except RecursionError:
        raise UserError("an alias refers to itself", where=f"{path}:1") from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", where=f"{path}:1") from None
    finally:
        loader.dispose()


def _walk(node: yaml.Node, prefix: KeyPath, lines: dict[KeyPath, int], path: Path) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*prefix, str(index))] = item.start_mark.line + 1
            _walk(item, (*prefix, str(index)), lines, path)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        line = key.start_mark.line + 1
        where = f"{path}:{line}"
        if not isinstance(key, yaml.ScalarNode):
            raise UserError("a key must be plain text", where=where)
        if key.value == "<<":
            continue
        full = (*prefix, key.value)
        if full in lines:
            raise UserError(f"key {'.'.join(full)!r} stands here and on line {lines[full]}", where=where)
        lines[full] = line
        _walk(value, full, lines, path)
