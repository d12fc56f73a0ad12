"""Find the stages under the recipe folders. On the path of every command, so it reads as little as it can."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from launcher.errors import UserError, did_you_mean
from launcher.runspec.block import find_block, read_text
from launcher.runspec.models import Problem, Runspec
from launcher.runspec.parse import NotAStage, parse

_OPENING = re.compile(rb"^#[ \t]*///[ \t]*script[ \t]*\r?$", re.MULTILINE)
_SKIPPED = ("__pycache__", "node_modules")


def scripts_under(folders: Iterable[Path]) -> Iterator[Path]:
    """Every ``*.py`` with a ``script`` block, by path; hidden folders are not entered.

    A folder may also be a script itself, which is then taken as it is.
    """
    for folder in folders:
        if folder.is_file():
            yield folder
        for here, inner, names in os.walk(folder):
            inner[:] = sorted(name for name in inner if name not in _SKIPPED and not name.startswith("."))
            for name in sorted(names):
                if name.endswith(".py") and _has_block(os.path.join(here, name)):
                    yield Path(here, name)


def _has_block(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return _OPENING.search(file.read()) is not None
    except OSError:
        return False  # not a file, or gone since it was listed


def discover(folders: Sequence[Path]) -> tuple[list[Runspec], list[Problem]]:
    """Every stage under ``folders``, by path, and what keeps others from being read.

    Two stages of one name are a problem; a script whose block has no ``[tool.runspec]`` is not a stage.
    """
    specs: dict[Path, Runspec] = {}
    problems: list[Problem] = []
    for path in scripts_under(folders):
        try:
            specs[path] = parse(path)
        except NotAStage:
            continue
        except UserError as error:
            problems.append(as_problem(error, path))
    return list(specs.values()), problems + same_names(specs)


def as_problem(error: UserError, path: Path) -> Problem:
    """An error as a problem of ``path``, or of the file and line that it names itself."""
    file, _, line = (error.where or "").rpartition(":")
    return (
        Problem(Path(file), int(line), error.message) if line.isdigit() else Problem(path, 1, error.message)
    )


def same_names(specs: Mapping[Path, Runspec]) -> list[Problem]:
    """A problem for every stage that has the name of an earlier one."""
    problems = []
    first: dict[str, Path] = {}
    for path, spec in specs.items():
        other = first.setdefault(spec.name, path)
        if spec.name and other != path:
            line = find_block(read_text(path), path).line("tool", "runspec", "name")
            problems.append(Problem(path, line, f"{spec.name!r} is also the name of {other}"))
    return problems


def find(folders: Sequence[Path], name: str) -> Runspec:
    """The stage called ``name``, such as ``tiny/data/prep/pretrain``.

    Raises UserError with the nearest name when there is none, and when two stages share the name.
    """
    written = re.compile(rf"""^#[ \t]*name[ \t]*=[ \t]*["']{re.escape(name)}["']""", re.MULTILINE)
    # Reading the text is cheap and parsing is not: only scripts that write this very name are parsed.
    likely = [path for path in scripts_under(folders) if written.search(read_text(path))]
    found = [spec for spec in map(parse, likely) if spec.name == name]
    problems: list[Problem] = []
    if not found:
        specs, problems = discover(folders)
        found = [spec for spec in specs if spec.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"two stages are called {name!r}: {found[0].script_path} and {found[1].script_path}",
            hint="give one of them another `name` in its [tool.runspec]",
        )
    names = [spec.name for spec in specs]
    hint = "`nemo-sky recipes list` shows them all"
    if problems:
        hint = f"not every script could be read: {problems[0]}"
    raise UserError(f"there is no stage {name!r}{did_you_mean(name, names)}", hint=hint)
