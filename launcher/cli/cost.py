"""``nemo-sky cost``: receipts, from the ledger."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.cli.common import (
    Context,
    JsonOption,
    ProjectOption,
    parsed,
    print_json,
    print_table,
    say,
    writable,
)
from launcher.errors import UserError, did_you_mean


def cost(
    context: typer.Context,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="One run, by its id or the beginning of it.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", metavar="NAME", help="Only the runs of this experiment.")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="GROUP,...", help="Sums by family, stage, place, user, ...")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only attempts that ran in the last 30d, 36h, ..."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a report of the run or experiment, one file."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw cost over time, as .png or .svg.")
    ] = None,
    price: Annotated[
        str | None,
        typer.Option("--price", metavar="AMOUNT", help="Say what an hour of a node of RUN cost, if unknown."),
    ] = None,
    project: ProjectOption = None,
    json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
) -> None:
    """Show what runs cost, attempt by attempt or in groups, and what was wasted."""
    from launcher import runs
    from launcher.launch import open_store
    from launcher.money import account as accounts
    from launcher.money import receipts, story
    from launcher.money.amounts import parse_dollars, parse_duration
    from launcher.money.ledger import account_name, now_ms, open_ledger

    known: Context = context.obj
    known.no_script_args()
    if html and not (run or experiment):
        raise UserError(
            "--html tells of one run or experiment: which?", hint="add --experiment NAME or a RUN"
        )
    each = None
    if price is not None:
        if not run:
            hint = "`nemo-sky cost RUN --price 2.50`"
            raise UserError("--price says what a node of one run cost: which?", hint=hint)
        own = price.strip().lstrip("$") == "0"  # a price, though no cap
        each = 0 if own else round(parsed("--price", parse_dollars, price) * accounts.MICROS)
    store = open_store(known.project(project))
    ledger = open_ledger(store)
    writable("--plot", plot)
    writable("--html", html)
    start = now_ms() - round(1000 * parsed("--since", parse_duration, since)) if since else 0
    found = receipts.lines(ledger)
    if experiment:
        names = {line.experiment for line in found if line.experiment}
        if experiment not in names:
            raise UserError(
                f"no experiment {experiment!r} in the ledger{did_you_mean(experiment, names)}",
                hint="`nemo-sky cost --by experiment` lists them",
            )
        found = [line for line in found if line.experiment == experiment]
    if run:
        ids = {line.entry.run for line in found if line.entry.run.startswith(run)}
        if len(ids) != 1:
            some = f"any of {len(ids)} runs" if ids else "no run in the ledger"
            raise UserError(f"{run!r} names {some}", hint="`nemo-sky cost --by run` lists them")
        found = [line for line in found if line.entry.run in ids]
    if each is not None:
        [priced], name = ids, account_name(found[0].entry.run, found[0].experiment)
        held = ledger.change(name, lambda held: accounts.set_price(held, priced, each))
        found = [replace(line, entry=held.entries[line.entry.key]) for line in found]
    whole, found = found, [line for line in found if line.entry.end >= start]
    facts: dict[str, Any] = receipts.totals(found)
    if run or experiment:
        first = whole[0]
        name = account_name(first.entry.run, first.experiment)
        facts |= receipts.caps_of(ledger.read(name), first.entry.run if run else None)
        facts |= receipts.waste(store, found)
    now = now_ms()
    rows = receipts.by_group(found, by.split(",")) if by else receipts.attempts(found, now)
    title = f"experiment {experiment}" if experiment else f"run {whole[0].entry.run}" if run else "all runs"
    if plot:
        from launcher.money import charts

        charts.spending(story.spending(found), plot, title, facts.get("budget_usd"))
        say(f"written: {plot}")
    if html and not found:
        raise UserError(f"{title}: nothing ran in the last {since}, so there is nothing to tell")
    if html:
        from launcher.money import page

        stays = story.stays(store, found, now)
        runs.write_text(html, page.page(title, stays, facts, receipts.attempts(found, now), now))
        say(f"written: {html}")
    if json:
        print_json({"total": facts, "rows": rows})
    elif as_csv:
        _csv(rows)
    else:
        _table(rows, facts)


def _csv(rows: list[dict[str, Any]]) -> None:
    if rows:
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _table(rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)] if rows else []
    cells = [[_cell(name, row[name]) for name in columns] for row in rows]
    print_table(
        [name.replace("_usd", ", $").replace("_", " ") for name in columns], cells, empty="no cost yet"
    )
    if rows:
        said = [(name.replace("_usd", ", $").replace("_", " "), _cell(name, v)) for name, v in facts.items()]
        print_table(("in all", ""), [row for row in said if row[1] != "-"], empty="")


def _cell(name: str, value: object) -> object:
    """Dollars keep six digits, as the ledger does: the rows add up to the sum."""
    if isinstance(value, float) and name.endswith("_usd"):
        return f"{value:,.6f}"
    return "-" if value is None else value
