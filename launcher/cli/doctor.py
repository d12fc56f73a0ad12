"""``nemo-sky doctor``: what a launch would need, checked without launching."""

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
    ZoneOption,
    cluster_name,
    market,
    print_json,
    stage_name,
)
from launcher.errors import Refused, UserError

NOT_READY = 3
MARKS = {True: "ok", False: "FAILED", None: "unknown"}


def doctor(
    context: typer.Context,
    stage: Annotated[
        list[str] | None,
        typer.Argument(metavar="STAGE", help="Also what this stage needs: FAMILY STAGE, then overrides."),
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
    managed: ManagedOption = False,
    retries: RetriesOption = 0,
    secrets: SecretsOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Check the store, the tracker, the clock, a cloud's credentials and, with STAGE, what it needs.

    Says how to mend each failure; exits 3 when there is one. A launch checks the same by itself.
    """
    from dataclasses import asdict

    from launcher import clusters, preflight
    from launcher import launch as flow
    from launcher.money import able
    from launcher.plan import Request, awaited, plans, select, to_task

    known: Context = context.obj
    known.no_script_args()
    found = known.project(project)
    place = cluster_name(cloud, cluster, default="local")
    store = flow.open_store(found)
    placement = clusters.Placement(region, zone, gpus, market(spot, on_demand, spot_first))
    of_a_stage = (config, nodes, managed, retries, secrets, placement != clusters.Placement())
    if not stage and any(of_a_stage):
        raise UserError(
            "--config, --nodes and the like say what a stage needs, and none is named",
            hint="nemo-sky doctor FAMILY STAGE ...",
        )
    findings = list(preflight.of_project(found, store))
    findings += preflight.of_place(clusters.load(place, found.clusters))
    if stage:
        name = stage_name(stage)
        request = Request(
            name.family,
            name.stage,
            place,
            config,
            name.overrides,
            nodes=nodes,
            placement=placement,
            managed=managed,
            retries=retries,
            secrets=secrets,
        )
        drafts = plans(request, found, select(request, found))
        tasks = [to_task(draft, found, job_dir="") for draft in drafts]
        for draft, task, later in zip(drafts, tasks, awaited(drafts), strict=True):
            findings += preflight.of_inputs(draft, later, found, store)
            try:
                able.require(draft, task)
            except Refused as unable:
                findings.append(preflight.Finding("place", False, unable.message, unable.hint))
            findings += preflight.of_plan(draft, found, secrets)
        findings += preflight.controller(drafts)
        findings += preflight.quotas(tasks)
    if json:
        print_json([asdict(item) for item in findings])
    else:
        for item in findings:
            print(f"{MARKS[item.ok]:>7}  {item.check}: {item.says}")
            if item.hint and item.ok is not True:
                print(f"{'':>9}{item.hint}")
    if any(item.ok is False for item in findings):
        raise SystemExit(NOT_READY)
