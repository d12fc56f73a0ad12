"""``nemo-sky render``: the SkyPilot task of a stage, or all of ``tasks/``."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import (
    CloudOption,
    ClusterOption,
    ConfigOption,
    Context,
    JsonOption,
    NodesOption,
    ProjectOption,
    StageArgument,
    cluster_name,
    print_json,
    say,
    stage_name,
)
from launcher.errors import UserError

FOUND_PROBLEMS = 4


def render(
    context: typer.Context,
    stage: StageArgument = [],  # noqa: B006 - typer copies it; None would not say "list" in the help
    every: Annotated[
        bool, typer.Option("--all", help="Write every stage of every family to tasks/.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="With --all: write nothing; exit 4 when stale or faulty.")
    ] = False,
    cloud: CloudOption = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    nodes: NodesOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Print the SkyPilot task of a stage, or write all of tasks/."""
    from launcher import render as library
    from launcher import task
    from launcher.plan import Request

    known: Context = context.obj
    found = known.project(project)
    if every:
        if stage or cloud or cluster or config or nodes or known.script_args:
            raise UserError("--all renders every stage as it is; it takes no stage, place or config")
        if not check:
            written = library.write(found)
            print_json([found.show(path) for path in written]) if json else say(
                f"{len(written)} files in tasks/"
            )
            return
        rendered = library.render_all(found)
        differences, faulty = library.stale(found, rendered), library.faulty(found, rendered)
        problems = [*differences, *faulty]
        print_json(problems) if json else print("\n".join(problems) or "tasks/ is current")
        if differences:
            say("`nemo-sky render --all` brings tasks/ up to date")
        if faulty:
            say(f"the profile {library.DEFAULT_CLUSTER!r}, or the task itself, overrules the recipe")
        if problems:
            raise typer.Exit(FOUND_PROBLEMS)
        return
    if check:
        raise UserError("--check goes with --all")
    name = stage_name(stage)
    request = Request(
        family=name.family,
        stage=name.stage,
        cluster=cluster_name(cloud, cluster, default=library.DEFAULT_CLUSTER),
        config=config,
        overrides=name.overrides,
        script_args=known.script_args,
        nodes=nodes,
        draft=True,
    )
    tasks = [built for _, built in library.render(request, found)]
    if json:
        print_json(tasks)
    else:
        print("---\n".join(task.dump(built) for built in tasks), end="")
