"""``nemo-sky simulate``: replay recorded spot markets under our policy and its rivals."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.cli.common import JsonOption, parsed, print_json, print_table, say, writable
from launcher.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from launcher.money.availability import Prior
    from launcher.money.simulate import Replay, Setting
    from launcher.money.traces import Market


HISTORIES = ("shipped", "held-out", "none")


def simulate(
    windows: Annotated[
        Path, typer.Option("--windows", metavar="FILE|DIR", help="Recorded windows, .json or .json.gz.")
    ],
    work: Annotated[str, typer.Option("--work", metavar="TIME", help="Work of the job, as 48h.")] = "48h",
    deadline: Annotated[
        str, typer.Option("--deadline", metavar="TIME", help="Time to the deadline, at most the window.")
    ] = "60h",
    restart: Annotated[
        str, typer.Option("--restart", metavar="TIME", help="What every new stay pays before it works.")
    ] = "13m",
    on_demand: Annotated[
        str, typer.Option("--on-demand", metavar="DOLLARS", help="On-demand price per hour.")
    ] = "3.06",
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="DOLLARS", help="Cap on what a job may spend.")
    ] = None,
    policy: Annotated[
        list[str], typer.Option("--policy", metavar="NAME", help="Replay only this policy (repeatable).")
    ] = [],  # noqa: B006 - typer copies it
    zone: Annotated[
        list[str], typer.Option("--zone", metavar="ZONE", help="Use only this zone (repeatable).")
    ] = [],  # noqa: B006 - typer copies it
    each: Annotated[bool, typer.Option("--each", help="Each zone alone, instead of all pooled.")] = False,
    history: Annotated[
        str,
        typer.Option(
            "--history",
            metavar="shipped|held-out|none|FILE",
            help="What our policy knows beforehand: what comes with nemo-sky, the windows of this file "
            "that share no time with the one replayed, nothing, or other windows.",
        ),
    ] = "shipped",
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Write what was chosen at each tick.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the costs, as .png or .svg.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Replay spot windows: what our policy, other policies and perfect foresight would have paid."""
    from launcher.money import amounts, baselines, traces
    from launcher.money import simulate as library

    names = [library.OURS, *baselines.BASELINES]
    for name in policy:
        if name not in names:
            raise UserError(
                f"no policy {name!r}{did_you_mean(name, names)}", hint=f"there are {', '.join(names)}"
            )
    writable("--trace", trace)
    writable("--plot", plot)
    market = traces.read(windows)
    market = market.only(zone) if zone else market
    job = library.setting(
        market,
        work=parsed("--work", amounts.parse_duration, work),
        deadline=parsed("--deadline", amounts.parse_duration, deadline),
        restart=parsed("--restart", amounts.parse_duration, restart) if restart.strip() != "0" else 0.0,
        on_demand=parsed("--on-demand", amounts.parse_dollars, on_demand),
        budget=parsed("--budget", amounts.parse_dollars, budget) if budget else None,
    )
    sets = [[name] for name in market.zones] if each else [list(market.zones)]
    chosen = policy or names
    if trace and (len(chosen) != 1 or len(sets) != 1):
        raise UserError("--trace writes one policy over one set of zones", hint="add --policy nemo-sky")
    prior = _prior(history, market)
    if history == "shipped" and library.OURS in chosen and set(market.zones) & set(prior(0)):
        say(
            "the history that comes with nemo-sky was counted in these zones, in 2023: where the windows are "
            "of that time our policy has seen them, and --history held-out is fair"
        )
    rows: list[dict[str, Any]] = []
    for zones in sets:
        part = market.only(zones)
        rows.append(_row(zones, library.OPTIMUM, job, [], library.optima(part, job), budgeted=bool(budget)))
        best = rows[-1]["cost"]
        for name in chosen:
            if not json:
                say(f"{name} over {', '.join(zones) if len(zones) < 3 else f'{len(zones)} zones'}")
            replays = library.run(part, job, name, prior)
            row = _row(zones, name, job, replays, [r.cost for r in replays], budgeted=bool(budget))
            rows.append(row | {"of_optimum": row["cost"] / best if not budget else None})
            if trace:
                trace.write_text(jsonlib.dumps(library.trace(part, replays, job.deadline)))
    if plot:
        from launcher.money import charts

        charts.costs(rows, plot)
    if json:
        ticks = {"work": job.work, "deadline": job.deadline, "restart": job.restart, "seconds": job.gap}
        print_json({"windows": len(market.windows), "ticks": ticks, "results": rows})
        return
    columns = ("zones", "policy", "$ mean", "of on-demand", "of optimum", "finished", "work done", "stays")
    print_table(columns, (_cells(row) for row in rows), empty="no policy was replayed")


def _prior(history: str, market: Market) -> Any:
    """The history for window i, as a function of i."""
    from launcher.money import availability, traces
    from launcher.money import simulate as library

    known: Prior
    if history == "held-out":
        past = library.history(market)
        return lambda index: library.held_out(market, past, index)
    if history == "shipped":
        known = availability.load_prior()
    elif history == "none":
        known = {}
    elif not Path(history).exists():
        raise UserError(
            f"--history: no windows at {history}{did_you_mean(history, HISTORIES)}",
            hint=f"one of {', '.join(HISTORIES)}, or a file of windows",
        )
    else:
        known = library.pooled(library.history(traces.read(Path(history))))
    return lambda index: known


def _row(
    zones: list[str], name: str, job: Setting, replays: list[Replay], costs: list[float], *, budgeted: bool
) -> dict[str, Any]:
    mean = sum(costs) / len(costs)
    return {
        "zones": zones,
        "policy": name,
        "cost": mean,
        "of_on_demand": mean / job.on_demand_cost,
        "of_optimum": None if budgeted else 1.0,
        "finished": sum(r.finished for r in replays) if replays else None,
        "windows": len(costs),
        "work_done": sum(r.done for r in replays) / len(replays) / job.work if replays else None,
        "stays": sum(r.stays for r in replays) / len(replays) if replays else None,
        "slowest_decision_ms": max(r.slowest for r in replays) * 1e3 if replays else None,
        "highest_cost": max(costs),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    zones = row["zones"]
    none = "-"
    return [
        ", ".join(zones) if len(zones) < 3 else f"all {len(zones)}",
        row["policy"],
        f"{row['cost']:.2f}",
        f"{row['of_on_demand']:.3f}",
        none if row["of_optimum"] is None else f"{row['of_optimum']:.3f}",
        none if row["finished"] is None else f"{row['finished']}/{row['windows']}",
        none if row["work_done"] is None else f"{row['work_done']:.1%}",
        none if row["stays"] is None else f"{row['stays']:.1f}",
    ]
