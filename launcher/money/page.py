"""The report of an experiment or a run: one HTML file that needs nothing else, with charts of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from launcher.money import story, svg
from launcher.money.account import MICROS
from launcher.money.amounts import format_dollars
from launcher.money.story import Stay

MARKETS = {"spot": "#76b900", "on-demand": "#4c78a8"}
SETUP, LOST, ENDED = "#c9ccd1", "#f2a59d", "#b3261e"
STYLE = """
body{font:14px/1.5 system-ui,sans-serif;color:#202124;max-width:920px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}svg{max-width:100%;height:auto}
table{border-collapse:collapse;font-size:12px;width:100%}
td,th{padding:3px 8px;text-align:left;border-bottom:1px solid #e3e5e8;white-space:nowrap}
.scroll{overflow-x:auto}.cards{display:flex;flex-wrap:wrap;gap:10px}
.cards div{border:1px solid #e3e5e8;border-radius:6px;padding:6px 12px}.cards b{display:block;font-size:1.2em}
.legend span{margin-right:14px;font-size:12px}
.legend i{display:inline-block;width:10px;height:10px;margin-right:5px}.quiet{color:#5f6368}
"""


def page(
    title: str,
    stays: Sequence[Stay],
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    now: int,
) -> str:
    """The report. ``facts`` are the totals and ``rows`` the attempts as ``nemo-sky cost --json`` has them;
    ``now`` is in milliseconds since the epoch."""
    when = datetime.fromtimestamp(now / 1000, UTC).isoformat(" ", "minutes")
    unknown = facts.get("unknown_price")
    note = f"{unknown} attempts have no price and are in no sum." if unknown else ""
    parts = [
        f"<h1>{escape(title)}</h1><p class='quiet'>{when}, from the ledger. {note}</p>",
        f'<div class="cards">{"".join(_card(name, value) for name, value in facts.items())}</div>',
        "<h2>Cost over time</h2>" + _costs(stays, facts.get("budget_usd")),
        "<h2>Loss against dollars</h2>" + _losses(stays),
        "<h2>Attempts and preemptions</h2>" + _timeline(stays),
        f'<h2>Receipt</h2><div class="scroll">{_table(rows)}</div>',
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _costs(stays: Sequence[Stay], budget: float | None) -> str:
    by_run = _by_run(stays)
    named = [("all runs", story.spending([stay.line for stay in stays]))] if len(by_run) != 1 else []
    if len(by_run) <= len(svg.LINES) - 1:
        named += [(run, story.spending([stay.line for stay in own])) for run, own in by_run.items()]
    series = [(name, [(float(at), cost / MICROS) for at, cost in points]) for name, points in named if points]
    if not series:
        return _nothing("no attempt has a price")
    x = svg.times(round(min(p[0][0] for _, p in series)), round(max(p[-1][0] for _, p in series)))
    highest = max(p[-1][1] for _, p in series)
    y = svg.numbers(
        [0.0, highest, *([budget] if budget and budget < 3 * highest else [])], _dollars, zero=True
    )
    level = (budget, f"budget {format_dollars(budget)}") if budget else None
    return svg.lines(series, x, y, labels=("UTC", "dollars"), level=level)


def _losses(stays: Sequence[Stay]) -> str:
    series = []
    for run, own in list(_by_run(stays).items())[: len(svg.LINES)]:
        if any(stay.entry.price is None for stay in own):
            continue
        entries = [stay.entry for stay in own]
        points = [
            (story.spent(entries, at) / MICROS, value) for stay in own for at, _, value in thin(stay.loss)
        ]
        if len(points) > 1:
            series.append((run, points))
    if not series:
        return _nothing("no run with a price has reported a loss")
    x = svg.numbers([px for _, points in series for px, _ in points], _dollars, zero=True)
    y = svg.numbers([py for _, points in series for _, py in points], lambda value: f"{value:g}")
    return svg.lines(series, x, y, labels=("dollars spent on the run", "loss"))


def _timeline(stays: Sequence[Stay]) -> str:
    named = []
    for run, own in _by_run(stays).items():
        bars, marks = [], []
        for stay in own:
            more_bars, more_marks = _drawn(stay)
            bars += more_bars
            marks += more_marks
        named.append((run, bars, marks))
    low, high = min(stay.entry.launched for stay in stays), max(stay.entry.end for stay in stays)
    entries = [*MARKETS.items(), ("set-up", SETUP), ("work that was lost", LOST)]
    signs = "<p class='quiet'>| a committed checkpoint, &times; an attempt that ended without success</p>"
    return svg.rows(named, svg.times(low, high)) + svg.legend(entries) + signs


def _drawn(stay: Stay) -> tuple[list[svg.Bar], list[svg.Mark]]:
    entry = stay.entry
    begun = min(stay.begun or entry.end, entry.end)
    kept = max(stay.kept or begun, begun)
    cost = "cost unknown" if entry.price is None else format_dollars(entry.cost / MICROS)
    words = f"attempt {entry.attempt or '?'}, {entry.market}, {stay.how}, {cost}"
    colour = MARKETS.get(entry.market, MARKETS["on-demand"])
    stretches = ((entry.launched, begun, SETUP), (begun, kept, colour), (kept, entry.end, LOST))
    bars = [svg.Bar(low, high, paint, words) for low, high, paint in stretches if high > low]
    marks = [svg.Mark(at, "|", "#202124", f"checkpoint {step}") for at, step in stay.checkpoints]
    if stay.how not in ("succeeded", "running"):
        marks.append(svg.Mark(entry.end, "x", ENDED, words))
    return bars, marks


def thin(points: Sequence[tuple[int, int, float]], most: int = 600) -> Sequence[tuple[int, int, float]]:
    """At most so many of them, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(n * (len(points) - 1) / (most - 1))] for n in range(most)]


def _by_run(stays: Sequence[Stay]) -> dict[str, list[Stay]]:
    runs: dict[str, list[Stay]] = {}
    for stay in stays:
        runs.setdefault(stay.entry.run, []).append(stay)
    return runs


def _card(name: str, value: object) -> str:
    return f"<div>{escape(_words(name))}<b>{escape(_value(name, value))}</b></div>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [name for name in rows[0] if name != "so_far_usd" or any(row[name] is not None for row in rows)]
    head = "".join(f"<th>{escape(_words(name))}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_value(name, row[name]))}</td>" for name in columns) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _words(name: str) -> str:
    return (
        name.replace("usd_per_billion_tokens", "$ per billion tokens")
        .replace("_usd", ", $")
        .replace("_", " ")
    )


def _value(name: str, value: object) -> str:
    if value is None:
        return "unknown" if name not in ("budget_usd", "left_usd") else "none"
    return f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _dollars(value: float) -> str:
    return f"${value:,.10g}"


def _nothing(why: str) -> str:
    return f"<p class='quiet'>Nothing to draw: {escape(why)}.</p>"
