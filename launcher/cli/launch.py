"""``nemo-sky launch``: run a stage, or all stages of a family in order."""

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


def launch(
    context: typer.Context,
    stage: StageArgument,
    cloud: CloudOption = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    nodes: NodesOption = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="With `all`: start here.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="With `all`: end here.")] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Take up this run, even if code or config changed."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it again, though it was made before.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the run has started.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the exact task and start nothing.")
    ] = False,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Run a stage, or `all` stages of a family in order.

    A stage whose exact code, config and inputs already made an artifact is skipped; an unfinished run
    of the same is resumed at its newest committed checkpoint. What follows `--` goes to the script.
    """
    from launcher import launch as flow
    from launcher import summary
    from launcher.plan import Request

    known: Context = context.obj
    name = stage_name(stage)
    found = known.project(project)
    request = Request(
        family=name.family,
        stage=name.stage,
        cluster=cluster_name(cloud, cluster, default=None),
        config=config,
        overrides=name.overrides,
        script_args=known.script_args,
        nodes=nodes,
        first=first,
        last=last,
        resume=resume,
        force=force,
        detach=detach,
        command=flow.command_line(known.argv),
    )
    if dry_run:
        for plan, task in flow.dry_run(request, found, say):
            print_json({"stage": plan.name, "task": task}) if json else print(summary.dry(plan, task), end="")
        return
    outcomes = flow.launch(request, found, say, log=say if json else lambda line: print(line, flush=True))
    if json:
        print_json([summary.facts(outcome) for outcome in outcomes])
    elif not detach:
        summary.show(outcomes, found, flow.open_store(found))
