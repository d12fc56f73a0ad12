"""``nemo-sky runs``: what was launched, how it stands, its log, and stopping it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import Context, JsonOption, ProjectOption, print_json, print_table, say

if TYPE_CHECKING:
    from launcher.backends import State
    from launcher.project import Project
    from launcher.runs import Run

app = typer.Typer(help="List, show, follow and cancel runs.", no_args_is_help=True)
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the beginning of it.")]


@app.command("list")
def list_(context: typer.Context, project: ProjectOption = None, json: JsonOption = False) -> None:
    """List the runs of this project, newest first."""
    from launcher import history

    known: Context = context.obj
    known.no_script_args()
    facts = history.every(known.project(project))
    if json:
        print_json(facts)
        return
    columns = ("run", "stage", "status", "where", "attempts", "created (UTC)")
    rows = [
        (
            f["run_id"],
            f"{f['family']}/{f['stage']}",
            f["status"],
            f["cluster"],
            f["attempts"],
            f["created_at"],
        )
        for f in facts
    ]
    print_table(columns, rows, empty="nothing was launched yet")


@app.command("show")
def show(
    context: typer.Context, run: RunArgument, project: ProjectOption = None, json: JsonOption = False
) -> None:
    """Show one run: attempts, last metrics, checkpoints, artifact, cost, and its place in MLflow."""
    from launcher import history

    known: Context = context.obj
    known.no_script_args()
    facts = history.show(known.project(project), run)
    if json:
        print_json(facts)
        return
    plain = [(key, value) for key, value in facts.items() if not isinstance(value, (dict, list))]
    metrics = [(f"metric {key}", value) for key, value in facts["metrics"].items()]
    links = [(f"link {key}", value) for key, value in facts["links"].items()]
    print_table(
        ("field", "value"), [(k, v) for k, v in [*plain, *metrics, *links] if v is not None], empty=""
    )
    attempts = [
        (a["attempt"], a["status"], a["started_at"], a["hours"], a["cost_usd"], a["restored_from"] or "-")
        for a in facts["attempt_list"]
    ]
    columns = ("attempt", "status", "started (UTC)", "hours", "cost, $", "restored from step")
    print_table(columns, attempts, empty="no attempt has started")


@app.command("logs")
def logs(
    context: typer.Context,
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    project: ProjectOption = None,
) -> None:
    """Print a run's log, every line of a run on several nodes marked with its node."""
    from launcher import backends, runs

    known: Context = context.obj
    known.no_script_args()
    found = known.project(project)
    record = runs.load(found.runs, run)
    folder = runs.directory(found.runs, record.run_id)
    try:
        for line in backends.get(record.backend).follow(folder, wait=follow):
            print(line, flush=follow)
    except KeyboardInterrupt:
        say(f"the run goes on; `nemo-sky runs cancel {record.run_id}` stops it")
        raise


@app.command("cancel")
def cancel(
    context: typer.Context, run: RunArgument, project: ProjectOption = None, json: JsonOption = False
) -> None:
    """Stop a run, and with a stage of a pipeline all of it. What trains saves a checkpoint first if it can;
    launching it again resumes there."""
    from launcher import backends, runs

    known: Context = context.obj
    known.no_script_args()
    found = known.project(project)
    record = runs.load(found.runs, run)
    before, after = _stop(found, record, release=False)
    if json:
        print_json({"run_id": record.run_id, "status": after.status})
    elif before.active:
        print(f"{record.run_id} is {after.status.lower()}")
        if others := backends.get(record.backend).together(runs.directory(found.runs, record.run_id)):
            print(f"with it ends what was left of its pipeline: {', '.join(others)}")
    else:
        print(f"{record.run_id} was {after.status.lower()} already")


@app.command("ssh")
def ssh(context: typer.Context, run: RunArgument, project: ProjectOption = None) -> None:
    """Open a shell on the first node of a run; what follows `--` is run there instead."""
    import os

    from launcher import backends, runs

    known: Context = context.obj
    found = known.project(project)
    record = runs.load(found.runs, run)
    words = backends.get(record.backend).shell(runs.directory(found.runs, record.run_id))
    os.execvp(words[0], [*words, *known.script_args])


def queue(context: typer.Context, project: ProjectOption = None, json: JsonOption = False) -> None:
    """Show the runs that are active now: where they are, how often preempted, and their price."""
    from launcher import history

    known: Context = context.obj
    known.no_script_args()
    facts = history.every(known.project(project), active_only=True)
    if json:
        print_json(facts)
        return
    columns = ("run", "status", "place", "nodes", "attempts", "preemptions", "$ an hour", "dashboard")
    rows = [
        (
            f["run_id"],
            f["status"],
            f["place"] or f["cluster"],
            f["nodes"],
            f["attempts"],
            f["preemptions"],
            f["price_per_hour"],
            f["links"].get("skypilot"),
        )
        for f in facts
    ]
    print_table(columns, rows, empty="nothing is active")


def down(
    context: typer.Context,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's id, or the beginning of it.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every run of this project.")] = False,
    project: ProjectOption = None,
) -> None:
    """Stop a run if it is active and release the nodes that it still holds."""
    from launcher import runs
    from launcher.errors import Refused, UserError

    known: Context = context.obj
    known.no_script_args()
    found = known.project(project)
    if (run is None) != every:
        raise UserError("name a run, or say --all", hint="`nemo-sky queue` shows the active ones")
    troubled = []
    for record in runs.every(found.runs) if run is None else [runs.load(found.runs, run)]:
        try:
            _, after = _stop(found, record, release=True)
            print(f"{record.run_id} is {after.status.lower()} and holds no node")
        except Refused as error:  # the others are brought down all the same
            if not every:
                raise
            say(f"{record.run_id}: {error.message}")
            troubled.append(record.run_id)
    if troubled:
        raise Refused(
            f"{len(troubled)} of the runs could not be brought down: {', '.join(troubled)}",
            hint="they may hold nodes; the same command tries again",
        )


def _stop(project: Project, record: Run, *, release: bool) -> tuple[State, State]:
    """Cancel the run if it is active and settle what it cost; with ``release`` give back what it holds, even
    if it has ended. Its state before and after. MLflow comes last: neither nodes nor money wait for it."""
    from launcher import backends, history, runs

    backend = backends.get(record.backend)
    folder = runs.directory(project.runs, record.run_id)
    before = backend.status(folder)
    if before.active:
        backend.cancel(folder)
        if receipt := history.settle(project, record):
            say(receipt)
    if release:
        backend.down(folder)
    if before.active and (trouble := history.track(project, record)):
        say(trouble)
    return before, backend.status(folder)
