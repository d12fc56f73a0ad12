"""``nemo-sky sweep``: many launches of one stage under one budget, proposed by Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import (
    CloudOption,
    ClusterOption,
    ConfigOption,
    Context,
    GpusOption,
    JsonOption,
    NodesOption,
    OnDemandOption,
    ProjectOption,
    RegionOption,
    SpotFirstOption,
    SpotOption,
    StageArgument,
    ZoneOption,
    cluster_name,
    in_hours,
    market,
    print_json,
    print_table,
    say,
    stage_name,
)
from launcher.errors import UserError

if TYPE_CHECKING:
    from launcher.sweep.report import Result


def sweep(
    context: typer.Context,
    stage: StageArgument,
    space: Annotated[Path, typer.Option("--space", metavar="FILE", help="What varies: a space file.")],
    budget: Annotated[
        str, typer.Option("--budget", metavar="$", help="The most all trials together may cost.")
    ],
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="How many; default: as many as the budget pays.")
    ] = None,
    max_parallel: Annotated[
        int | None,
        typer.Option("--max-parallel", min=1, help="Trials at once; default: 8, and 1 on this machine."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The sweep's name; default: stage and space file."),
    ] = None,
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
    secrets: Annotated[
        Path | None,
        typer.Option("--secrets", metavar="FILE", help="NAME=value lines that every trial needs."),
    ] = None,
    work: Annotated[
        str | None, typer.Option("--work", metavar="TIME", help="How long a trial works, if you know: 12h.")
    ] = None,
    max_hourly: Annotated[
        str | None, typer.Option("--max-hourly", metavar="$", help="The most an hour of one trial may cost.")
    ] = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Search a space of configs for the best, under one budget.

    Every trial is a launch. The weak are stopped early. The same command goes on with a sweep that was
    killed or has more money now.
    """
    from dataclasses import replace

    from launcher import launch as flow
    from launcher.clusters import Placement
    from launcher.clusters import load as load_profile
    from launcher.money.caps import Caps, from_flags
    from launcher.plan import Request
    from launcher.sweep import run
    from launcher.sweep import space as spaces
    from launcher.sweep.trials import Sweep

    known: Context = context.obj
    named = stage_name(stage)
    found = known.project(project)
    if named.stage == "all":
        raise UserError("a sweep is of one stage, not of `all`")
    varied = spaces.read(space)
    request = Request(
        family=named.family,
        stage=named.stage,
        cluster=cluster_name(cloud, cluster, default=None),
        config=config,
        overrides=named.overrides,
        script_args=known.script_args,
        nodes=nodes,
        placement=Placement(region, zone, gpus, market(spot, on_demand, spot_first)),
        secrets=secrets,
        work=in_hours("--work", work),
        command=flow.command_line(known.argv),
    )
    name = name or run.default_name(request, space)
    try:
        given = from_flags(budget, max_hourly, experiment=name)
    except UserError as error:  # a sweep's name is its experiment's
        raise UserError(error.message.replace("--experiment:", "--name:"), hint=error.hint) from None
    caps = Caps(max_hourly=given.max_hourly, experiment=name, experiment_budget=given.budget)
    assert given.budget is not None
    backend = load_profile(request.cluster, found.clusters).backend
    asked = Sweep(
        name, replace(request, caps=caps), varied, given.budget, trials, max_parallel or run.PARALLEL[backend]
    )
    result = run.sweep(asked, found, say)
    folder = found.show(run.folder_of(found, name))
    print_json(vars(result)) if json else _show(result, folder)


def _show(result: Result, folder: str) -> None:
    """The table of trials, the best first, and what to do with it."""
    from launcher.money.amounts import format_dollars

    sign = 1 if result.direction == "minimize" else -1
    order = {"complete": 0, "stopped": 1, "open": 2, "failed": 3}
    rows = sorted(
        result.rows,
        key=lambda row: (order[row["status"]], sign * row["value"] if row["value"] is not None else 0.0),
    )
    keys = list(dict.fromkeys(key for row in rows for key in row["params"]))
    print_table(
        ("trial", "", *keys, result.metric, "at", "cost, $", "run"),
        [
            (
                row["trial"],
                row["status"],
                *(row["params"].get(key) for key in keys),
                row["value"],
                row["step"],
                f"{row['cost_usd']:.4f}",
                row["run_id"],
            )
            for row in rows
        ],
        empty="no trial was begun",
    )
    print(
        f"{len(rows)} trials, {format_dollars(result.spent_usd)} of {format_dollars(result.budget_usd)}: "
        f"{result.why}"
    )
    if result.best:
        print(f"best     {result.metric} {result.best['value']:.5g}, trial {result.best['trial']}")
        again = "" if result.published else "   # trains it again: the stage publishes nothing"
        print(f"launch   {result.launch}{again}")
        print(f"chart    {folder}/chart.png")
