"""Script -> Runspec. As lenient as Nemotron's own parser, so that its scripts are read without change.

Only what a Runspec cannot hold is refused here; ``launcher.runspec.check`` is the strict reader.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.errors import UserError, did_you_mean
from launcher.runspec import table
from launcher.runspec.block import Block, find_block, read_text
from launcher.runspec.models import ConfigSpec, Output, Resources, Run, Runspec, Sky
from launcher.runspec.table import Field, fields_of

# Told the keys of what is wrong, and what is wrong with it.
Report = Callable[[tuple[str, ...], str], None]


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

    Raises UserError when the block is not TOML or has no ``[tool.runspec]``.
    """
    data = block.data
    require_runspec(block)
    if data.get("tool", {}).get("nemo_sky") is not None and not isinstance(data["tool"]["nemo_sky"], dict):
        report(table.SKY, "[tool.nemo_sky] must be a table")
    sky = _values(data, table.SKY, report)
    output = _values(data, table.OUTPUT, report)
    for key in ("name", "type"):
        if (sky["output"] is not None) and not output[key]:
            report(table.OUTPUT, f"[tool.nemo_sky.output] needs {key!r}")
    top = _values(data, table.RUNSPEC, report)
    sky["output"] = Output(**output) if output["name"] and output["type"] else None
    top["run"] = Run(**_values(data, table.RUN, report))
    top["config"] = ConfigSpec(**_values(data, table.CONFIG, report))
    top["resources"] = Resources(**_values(data, table.RESOURCES, report))
    return Runspec(
        **top,
        sky=Sky(**sky),
        dependencies=_pep723(data, "dependencies", table.TEXTS, (), report),
        requires_python=_pep723(data, "requires-python", table.TEXT, None, report),
        script_path=block.path.absolute(),
    )


def require_runspec(block: Block) -> None:
    """Raises UserError when the block has no ``[tool.runspec]``, or an empty one."""
    tool = block.data.get("tool")
    spec = tool.get("runspec") if isinstance(tool, dict) else None
    if isinstance(spec, dict) and spec:
        return
    if spec is not None:
        what = "is empty" if isinstance(spec, dict) else "must be a table"
        raise UserError(f"[tool.runspec] {what}", where=f"{block.path}:{block.line(*table.RUNSPEC)}")
    others = [key for key in tool if key != "nemo_sky"] if isinstance(tool, dict) else []
    typo = next((key for key in others if did_you_mean(key, ["runspec"])), None)
    raise UserError(
        f"no [tool.runspec] in the block, but [tool.{typo}]; did you mean 'runspec'?"
        if typo
        else "no [tool.runspec] in the block",
        where=f"{block.path}:{block.line('tool', typo) if typo else block.opening}",
    )


def _values(data: dict[str, Any], path: tuple[str, ...], report: Report) -> dict[str, Any]:
    """The value, or else the default, of every field of one table."""
    given: Any = data
    for key in path:
        given = given.get(key, {}) if isinstance(given, dict) else {}
    if not isinstance(given, dict):  # reported as a field of the table above
        given = {}
    return {field.key: _value(given, field, report) for field in fields_of(path)}


def _value(given: dict[str, Any], field: Field, report: Report) -> Any:
    if field.key not in given:
        return field.default
    value = given[field.key]
    if not field.kind.accepts(value):
        report(_culprit(field, value), wrong_type(field, value))
        return field.default
    return field.kind.read(value)


def _culprit(field: Field, value: Any) -> tuple[str, ...]:
    """The item that spoils a list or a table, so that the error stands on its line."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
        wrap: Callable[[str, Any], Any] = lambda _, item: [item]  # noqa: E731
    elif isinstance(value, dict):
        items = list(value.items())
        wrap = lambda name, item: {name: item}  # noqa: E731
    for name, item in items:
        if not field.kind.accepts(wrap(name, item)):
            return (*field.path, name)
    return field.path


def wrong_type(field: Field, value: Any) -> str:
    dotted = ".".join(field.path[1:])
    return f"{dotted} must be {field.kind.name}, not {shown(value)}"


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
