"""``nemo-sky plan``: every place that can run a stage, what it costs there, and with what chance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.cli.common import (
    CloudOption,
    ClusterOption,
    ConfigOption,
    Context,
    GpusOption,
    JsonOption,
    NodesOption,
    ProjectOption,
    RegionOption,
    StageArgument,
    ZoneOption,
    cluster_name,
    in_hours,
    parsed,
    print_json,
    print_table,
    say,
    stage_name,
    writable,
)
from launcher.errors import Refused, UserError, did_you_mean

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.money.estimate import Past
    from launcher.money.quote import Quote, Row
    from launcher.plan import Plan, Request
    from launcher.project import Project

ROWS = 20
PATIENCE_S = 5.0
"""For the store to say which inputs there are."""
COLUMNS = ("place", "instance", "market", "$/h node", "$/h all", "time", "$ mean", "$ most", "chance", "note")


def plan(
    context: typer.Context,
    stage: StageArgument,
    cloud: CloudOption = None,
    cluster: ClusterOption = None,
    config: ConfigOption = None,
    nodes: NodesOption = None,
    region: RegionOption = None,
    zone: ZoneOption = None,
    gpus: GpusOption = None,
    spot: Annotated[bool, typer.Option("--spot", help="Only spot nodes.")] = False,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="DOLLARS", help="What the run may cost, as 400 or $1.5k."),
    ] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="TIME", help="When it must be done, from now, as 36h.")
    ] = None,
    work: Annotated[
        str | None, typer.Option("--work", metavar="TIME", help="How long it works, if you know, as 12h.")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option("--mfu", metavar="SHARE", help="Share of the GPUs' peak that it reaches.")
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", metavar="cost|hours|price|place", help="What the table is sorted by.")
    ] = "cost",
    every: Annotated[bool, typer.Option("--all", help=f"Print all rows, not the first {ROWS}.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw cost against time, as .png or .svg.")
    ] = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Show where a stage can run, for how long, at what cost, and its chance to be done in time.

    Prices come from SkyPilot's catalogs on this machine, hours from earlier runs in the artifact store where
    it answers; no account or server is needed.
    """
    from launcher import clusters
    from launcher.money import amounts, estimate, past, quote
    from launcher.money.want import MARKETS
    from launcher.plan import Request

    known: Context = context.obj
    name = stage_name(stage)
    if name.stage == "all":
        raise UserError("a plan is made for one stage", hint="`nemo-sky recipes list` shows them")
    if sort not in quote.SORTS:
        raise UserError(
            f"--sort {sort}{did_you_mean(sort, quote.SORTS)}", hint=f"one of {', '.join(quote.SORTS)}"
        )
    found = known.project(project)
    request = Request(
        family=name.family,
        stage=name.stage,
        cluster=cluster_name(cloud, cluster, default="any"),
        config=config,
        overrides=name.overrides,
        script_args=known.script_args,
        nodes=nodes,
        placement=clusters.Placement(region, zone, gpus, "spot" if spot else None),
    )
    writable("--plot", plot)
    takes = in_hours("--work", work)
    limit = in_hours("--deadline", deadline)
    cap = parsed("--budget", amounts.parse_dollars, budget) if budget else None
    planned, task, store, notes = _planned(request, found)
    earlier: Sequence[Past] = ()
    if store and not takes:
        earlier, notes = past.past_of(store, planned.name, planned.config_name, planned.values)
    spec = planned.spec.sky
    markets = ("spot",) if spot else ("on-demand",) if spec.spot is False else MARKETS
    seen = None
    if store and not notes and planned.profile.backend == "sky" and "spot" in markets:
        from launcher.money import spots

        seen, notes = spots.learn(store, time.time())
    result = quote.quote(
        planned.profile,
        task,
        estimate.work_of(planned.values, mfu=mfu, hours=takes, past=earlier),
        gpu_gb=spec.min_gpu_memory_gb,
        markets=markets,
        deadline=limit,
        budget=cap,
        spots=seen,
    )
    rows = quote.sort(result.rows, sort)
    if plot:
        from launcher.money import charts

        charts.plan(
            [_facts(row) for row in rows], plot, title=f"{planned.name}, {result.nodes} x {result.gpus}"
        )
    if json:
        print_json(_json(planned, result, rows, notes, deadline=limit, budget=cap))
    else:
        _show(planned, result, rows if every else rows[:ROWS], cap)
        for note in notes:
            say(note)
    if not rows:
        from launcher.money import offers, want

        wrong = next(filter(None, map(offers.misnamed, want.want_of(task))), None)
        hint = "`--region`, `--zone`, `--gpus` and the profile say where it may run, and on what"
        raise Refused(wrong or f"no place can run {planned.name} so", hint=hint)


def _planned(request: Request, project: Project) -> tuple[Plan, dict[str, Any], Store | None, list[str]]:
    """The plan and the very task that a launch would submit, inputs pinned where the store has them; and the
    store, or None and words for people where it does not answer."""
    from launcher import launch as flow
    from launcher.artifacts.store import StoreError, soon
    from launcher.plan import pin, plans, select, to_task

    [draft] = plans(request, project, select(request, project))
    store, plan, notes = flow.open_store(project), draft, []
    try:
        plan = soon(store, PATIENCE_S, lambda: pin(draft, request, project, store, {}))
    except StoreError as error:
        notes = [f"computed without the artifact store, its inputs and earlier runs: {error.message}"]
    except Refused:  # what an input would tell, such as its pack size, is then not known
        pass
    task = to_task(plan, project, job_dir=f"tasks/{plan.name}")
    return plan, task, None if notes else store, notes


def _facts(row: Row) -> dict[str, Any]:
    offer, seen = row.offer, row.outlook
    return {
        "place": offer.place,
        "cloud": offer.cloud,
        "region": offer.region,
        "zone": offer.zone,
        "instance": offer.instance,
        "gpu": offer.gpu,
        "gpus_per_node": offer.gpus,
        "nodes": offer.nodes,
        "market": row.market,
        "launch": row.launch,
        "price_per_node_hour": offer.price(row.market),
        "price_per_hour": row.hourly,
        "work_hours": row.estimate.hours,
        "work_from": row.estimate.source,
        "hours": seen.elapsed if seen else None,
        "cost_usd": seen.cost if seen else None,
        "cost_to_finish_usd": seen.needed if seen else None,
        "worst_cost_usd": seen.worst if seen else None,
        "chance": seen.chance if seen else None,
        "spot_share": row.at.share if seen and row.market == "spot" else None,
        "launchable": offer.ask is None,
        "note": offer.note,
    }


def _json(
    planned: Plan,
    result: Quote,
    rows: list[Row],
    notes: list[str],
    *,
    deadline: float | None,
    budget: float | None,
) -> dict[str, Any]:
    return {
        "stage": planned.name,
        "config": planned.config_name,
        "managed": planned.managed,
        "nodes": result.nodes,
        "gpus": result.gpus,
        "tokens": result.work.tokens,
        "deadline_hours": deadline,
        "budget_usd": budget,
        "best": _facts(result.best) if result.best else None,
        "rows": [_facts(row) for row in rows],
        "left_out": dict(result.left_out),
        "notes": notes,
    }


def _show(planned: Plan, result: Quote, rows: list[Row], budget: float | None) -> None:
    from launcher.money import forecast
    from launcher.money.amounts import format_dollars

    count = f"{result.nodes} node{'s' if result.nodes > 1 else ''}"
    print(f"{planned.name}, config {planned.config_name}: {count} with {result.gpus}")
    for hours, source in {row.estimate.hours: row.estimate.source for row in reversed(rows)}.items():
        print(f"  works {_hours(hours)}: {source}")
    on_spot = not planned.managed and any(row.market == "spot" for row in rows)
    print(f"  runs {planned.kind}{', on spot as a managed job' if on_spot else ''}")
    print_table(COLUMNS, [_cells(row) for row in rows], empty="no place can run this")
    if len(rows) < len(result.rows):
        say(f"{len(result.rows) - len(rows)} more rows: --all")
    if result.best and result.best.outlook and result.best.outlook.chance == 0:
        print("best: none, for no place is expected to be done within these limits")
    elif result.best and result.best.outlook:
        best, seen = result.best, result.best.outlook
        chance = "" if seen.chance is None else f", done within the limits with a chance of {seen.chance:.0%}"
        print(
            f"best: {best.offer.place} {best.launch}, "
            f"{format_dollars(seen.cost)} in {_hours(seen.elapsed)}{chance}"
        )
    if budget is not None and (least := result.least) is not None and least > budget:
        short = f"{format_dollars(budget)} falls short by {format_dollars(least - budget)}"
        print(f"{short}: the cheapest place needs {format_dollars(least)}")
    if any(row.hourly is not None and row.estimate.hours is None for row in rows):
        say("`--work 12h` says how long it works; cost and chance follow from that")
    if result.left_out:
        print("left out: " + "; ".join(f"{cloud} ({why})" for cloud, why in sorted(result.left_out.items())))
    if at := [row.at for row in rows if row.outlook and row.market == "spot"]:
        say(forecast.assumes(any(row.rescue for row in rows), at))


def _cells(row: Row) -> list[str]:
    offer, seen = row.offer, row.outlook
    unknown = "unknown"
    one = offer.price(row.market)
    return [
        offer.place,
        offer.instance,
        row.launch,
        unknown if one is None else f"{one:.2f}",
        unknown if row.hourly is None else f"{row.hourly:.2f}",
        _hours(seen.elapsed) if seen else unknown,
        f"{seen.cost:,.0f}" if seen else unknown,
        unknown if not seen else "no bound" if seen.worst is None else f"{seen.worst:,.0f}",
        unknown if not seen else "-" if seen.chance is None else f"{seen.chance:.0%}",
        offer.note,
    ]


def _hours(hours: float | None) -> str:
    from launcher.money.amounts import format_duration

    return "for a time not known" if hours is None else format_duration(hours * 3600)
