"""``nemo-sky launch``: run a stage, or all stages of a family in order."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.common import (
    CloudOption,
    ClusterOption,
    ConfigOption,
    Context,
    GpusOption,
    JsonOption,
    ManagedOption,
    NodesOption,
    OnDemandOption,
    ProjectOption,
    RegionOption,
    RetriesOption,
    SecretsOption,
    SpotFirstOption,
    SpotOption,
    StageArgument,
    ZoneOption,
    cluster_name,
    in_hours,
    market,
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
    region: RegionOption = None,
    zone: ZoneOption = None,
    gpus: GpusOption = None,
    spot: SpotOption = False,
    on_demand: OnDemandOption = False,
    spot_first: SpotFirstOption = False,
    managed: ManagedOption = False,
    retries: RetriesOption = 0,
    preemptions: Annotated[
        int | None,
        typer.Option("--preemptions", min=0, help="How many preemptions it may suffer; default: any number."),
    ] = None,
    secrets: SecretsOption = None,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="$", help="The most the run may cost, all attempts.")
    ] = None,
    max_hourly: Annotated[
        str | None, typer.Option("--max-hourly", metavar="$", help="The most an hour may cost, all nodes.")
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", metavar="TIME", help="From now on, the longest it may take: 36h, 2d."),
    ] = None,
    work: Annotated[
        str | None, typer.Option("--work", metavar="TIME", help="How long it works in all, if you know: 12h.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", metavar="NAME", help="The experiment that it is part of.")
    ] = None,
    experiment_budget: Annotated[
        str | None,
        typer.Option("--experiment-budget", metavar="$", help="The most all of the experiment may cost."),
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="With `all`: start here.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="With `all`: end here.")] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Take up this run, even if code or config changed."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Make it again from the start, in spite of estimates too.")
    ] = False,
    ignore_estimates: Annotated[
        bool,
        typer.Option(
            "--ignore-estimates", help="Go on in spite of an estimate of memory, disk, money or quota."
        ),
    ] = False,
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
    from launcher import dry, pipeline, summary
    from launcher import launch as flow
    from launcher.clusters import Placement
    from launcher.money.caps import from_flags
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
        placement=Placement(region, zone, gpus, market(spot, on_demand, spot_first)),
        managed=managed,
        retries=retries,
        preemptions=preemptions,
        secrets=secrets,
        caps=from_flags(budget, max_hourly, deadline, experiment, experiment_budget),
        work=in_hours("--work", work),
        first=first,
        last=last,
        resume=resume,
        force=force,
        ignore_estimates=ignore_estimates,
        detach=detach,
        command=flow.command_line(known.argv),
    )
    if dry_run:
        tasks = dry.dry_run(request, found, say)
        if pipeline.fits([plan for plan, _ in tasks], request, found):
            say(f"a launch hands these {len(tasks)} tasks to SkyPilot as one managed job")
        if json:
            print_json([{"stage": plan.name, "managed": plan.managed, "task": task} for plan, task in tasks])
        else:
            print("---\n".join(summary.dry(plan, task) for plan, task in tasks), end="")
        return
    outcomes = flow.launch(request, found, say, log=say if json else lambda line: print(line, flush=True))
    if json:
        print_json([summary.facts(outcome) for outcome in outcomes])
    elif not detach:
        summary.show(outcomes, found, flow.open_store(found))
