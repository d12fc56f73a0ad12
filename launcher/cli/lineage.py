"""``nemo-sky lineage``: what an artifact came from, and what came from it."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import Context, JsonOption, ProjectOption, print_json
from launcher.errors import UserError

app = typer.Typer(help="Show what an artifact came from, and what came from it.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Show what an artifact came from, and what came from it."""


@app.command("show")
def show(
    context: typer.Context,
    uri: Annotated[str, typer.Argument(metavar="URI", help="art://NAME[:vN|:latest|:ALIAS]")],
    up: Annotated[bool, typer.Option("--up", help="What it came from (the default).")] = False,
    down: Annotated[bool, typer.Option("--down", help="What came from it.")] = False,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Draw the lineage of an artifact with the code, image, versions and cost of each step."""
    from launcher import summary
    from launcher.lineage import graph

    known: Context = context.obj
    known.no_script_args()
    if up and down:
        raise UserError("--up and --down are two questions; ask one")
    found = known.project(project)
    manifest = summary.find_artifact(found, uri)
    store = summary.open_store(found)
    node = graph.down(store, manifest.uri) if down else graph.up(store, manifest.uri)
    if json:
        print_json(graph.to_json(node))
    else:
        summary.print_tree(node)
