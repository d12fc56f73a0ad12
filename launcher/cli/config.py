"""``nemo-sky config``: what a stage's script would be given, and where each value came from."""

from __future__ import annotations

import typer

from launcher.cli.common import (
    ConfigOption,
    Context,
    JsonOption,
    ProjectOption,
    StageArgument,
    print_json,
    print_table,
    stage_name,
)

app = typer.Typer(help="Show composed configs.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Show composed configs."""


@app.command("show")
def show(
    context: typer.Context,
    stage: StageArgument,
    config: ConfigOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Print the composed config of FAMILY STAGE with the origin of every value."""
    from launcher.config import rows
    from launcher.plan import Request, plans, select

    known: Context = context.obj
    known.no_script_args()
    name = stage_name(stage)
    found = known.project(project)
    request = Request(
        name.family, name.stage, cluster="local", config=config, overrides=name.overrides, draft=True
    )
    for plan in plans(request, found, select(request, found)):
        composed = rows(plan.composed)
        if json:
            origins = {key: origin for key, _, origin in composed}
            print_json({"stage": plan.name, "values": plan.values, "origin": origins})
        else:
            print(plan.name)
            print_table(("key", "value", "from"), composed, empty="the config is empty")
