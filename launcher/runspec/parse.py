"""Script -> Runspec. As lenient as Nemotron's own parser, so that its scripts are read without change.

Only what a Runspec cannot hold is refused here; ``launcher.runspec.check`` is the strict reader.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.errors import UserError, nearest
from launcher.runspec import table
from launcher.runspec.block import Block, find_block, read_text
from launcher.runspec.models import ConfigSpec, Output, Resources, Run, Runspec, Sky
from launcher.runspec.table import Field, fields_of

# Told the keys of what is wrong, and what is wrong with it.
Report = Callable[[tuple[str, ...], str], None]


class NotAStage(UserError):
    """The script's block is sound but somebody else's: it has no ``[tool.runspec]``."""


def parse(path: Path) -> Runspec:
    """Read the runspec of the script at ``path``.

    Raises UserError, with file:line, when there is no ``script`` block, it is not TOML, it has no
    ``[tool.runspec]``, or a known key has the wrong type.
    """
    block = find_block(read_text(path), path)

    def refuse(keys: tuple[str, ...], message: str) -> None:
        raise UserError(message, where=f"{path}:{block.line(*keys)}")

    return read(block, refuse)


def read(block: Block, report: Report) -> Runspec:
    """Turn a block's values into a Runspec; a wrong one is reported and its default taken instead.

    Raises UserError when the block is not TOML, NotAStage when it has no ``[tool.runspec]``.
    """
    data = block.data
    _require_runspec(block)
    if not isinstance(data["tool"].get("nemo_sky", {}), dict):
        report(table.SKY, "[tool.nemo_sky] must be a table")
    top = _values(data, table.RUNSPEC, report)
    top["run"] = Run(**_values(data, table.RUN, report))
    top["config"] = ConfigSpec(**_values(data, table.CONFIG, report))
    top["resources"] = Resources(**_values(data, table.RESOURCES, report))
    sky = _values(data, table.SKY, report)
    if sky["output"] is not None:
        sky["output"] = _output(sky["output"], _values(data, table.OUTPUT, report), report)
    return Runspec(
        **top,
        sky=Sky(**sky),
        dependencies=_pep723(data, "dependencies", table.TEXTS, (), report),
        requires_python=_pep723(data, "requires-python", table.TEXT, None, report),
        script_path=block.path.absolute(),
    )


def _require_runspec(block: Block) -> None:
    tool = block.data.get("tool")
    if not isinstance(tool, dict):
        tool = {}
    if "runspec" in tool:
        if isinstance(tool["runspec"], dict) and tool["runspec"]:
            return
        what = "is empty" if tool["runspec"] == {} else "must be a table"
        raise UserError(f"[tool.runspec] {what}", where=f"{block.path}:{block.line(*table.RUNSPEC)}")
    if "nemo_sky" in tool:
        where = f"{block.path}:{block.line(*table.SKY)}"
        raise UserError("[tool.nemo_sky] without [tool.runspec], which it completes", where=where)
    if typo := nearest("runspec", tool):
        where = f"{block.path}:{block.line('tool', typo)}"
        raise UserError(
            f"no [tool.runspec] in the block, but [tool.{typo}]; did you mean 'runspec'?", where=where
        )
    raise NotAStage("no [tool.runspec] in the block", where=f"{block.path}:{block.opening}")


def _values(data: dict[str, Any], path: tuple[str, ...], report: Report) -> dict[str, Any]:
    """The value, or else the default, of every field of one table."""
    given: Any = data
    for key in path:
        given = given.get(key, {}) if isinstance(given, dict) else {}
    if not isinstance(given, dict):  # reported as a field of the table above
        given = {}
    return {field.key: _value(given, field, report) for field in fields_of(path)}


def _output(given: dict[str, Any], values: dict[str, Any], report: Report) -> Output | None:
    for key in values:
        if key not in given:
            report((*table.OUTPUT, key), f"nemo_sky.output needs {key!r}")
    return Output(**values) if all(values.values()) else None


def _value(given: dict[str, Any], field: Field, report: Report) -> Any:
    if field.key not in given:
        return field.default
    value = given[field.key]
    if field.kind.accepts(value):
        return field.kind.read(value)
    # One item may spoil a list or a table: the error stands on its line.
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        if not field.kind.accepts({name: item} if isinstance(value, dict) else [item]):
            wrong = f"{field.name} must be {field.kind.name}, but {name} is {shown(item)}"
            report((*field.path, str(name)), wrong)
            return field.default
    report(field.path, f"{field.name} must be {field.kind.name}, not {shown(value)}")
    return field.default


def shown(value: Any) -> str:
    """A TOML value as a person would write it, short."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _pep723(data: dict[str, Any], key: str, kind: table.Kind, default: Any, report: Report) -> Any:
    if key not in data:
        return default
    if not kind.accepts(data[key]):
        report((key,), f"{key} must be {kind.name}, not {shown(data[key])}")
        return default
    return kind.read(data[key])
