"""``nemo-sky check``: every problem of recipes and cluster profiles, as ``file:line: message``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.common import Context, JsonOption, ProjectOption, print_json, say

FOUND_PROBLEMS = 4


def check(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...", help="Scripts or folders; default: the project's recipes and clusters."
        ),
    ] = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Check runspecs and cluster profiles strictly. Exits with 4 when anything is wrong."""
    from launcher import checks

    known: Context = context.obj
    known.no_script_args()
    problems, count = checks.check_paths(paths) if paths else checks.check_project(known.project(project))
    if json:
        print_json([{"file": str(p.file), "line": p.line, "message": p.message} for p in problems])
    else:
        for problem in problems:
            print(f"{problem.file}:{problem.line}: {problem.message}")
        say(f"{count} files checked, {len(problems)} problem{'' if len(problems) == 1 else 's'}")
    if problems:
        raise typer.Exit(FOUND_PROBLEMS)
