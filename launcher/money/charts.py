"""Charts of simulations, plans, sweeps, receipts. matplotlib is imported only here, when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.errors import Refused, UserError

COLOURS = {
    "optimum": "#9aa0a6",
    "nemo-sky": "#76b900",
    "uniform-progress": "#4c78a8",
    "greedy": "#f58518",
    "sticky": "#e45756",
    "on-demand": "#b279a2",
    "failover": "#8c6d31",
    "eager-next-region": "#bab0ac",
}


def plan(rows: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Cost against time of a plan's rows, a colour per cloud; places that nothing beats in both are named.

    ``rows`` as ``nemo-sky plan --json`` prints them. Raises UserError for a name that is not .png or .svg and
    for rows without a cost, Refused without matplotlib.
    """
    known = [row for row in rows if row["cost_usd"] is not None and row["hours"] is not None]
    pyplot = _pyplot(path)
    if not known:
        raise UserError("no place has both a price and a duration: there is nothing to draw")
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    for cloud in dict.fromkeys(row["cloud"] for row in known):
        for market, marker in (("on-demand", "s"), ("spot", "o")):
            here = [row for row in known if (row["cloud"], row["market"]) == (cloud, market)]
            if here:
                xs, ys = [row["hours"] for row in here], [row["cost_usd"] for row in here]
                axes.scatter(xs, ys, s=22, marker=marker, alpha=0.75, label=f"{cloud} {market}")
    for row in _front(known):
        spot = (row["hours"], row["cost_usd"])
        axes.annotate(row["place"], spot, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel("hours from start to end")
    axes.set_ylabel("expected cost, $")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)


def spending(
    points: Sequence[tuple[int, int]], path: Path, title: str = "", budget: float | None = None
) -> None:
    """What was spent over time: (milliseconds since the epoch, micro-dollars), and the budget in dollars.

    Raises UserError for a name that is not .png or .svg and where nothing has a price, Refused without
    matplotlib.
    """
    pyplot = _pyplot(path)
    if not points:
        raise UserError("no attempt has a price: there is nothing to draw")
    figure, axes = pyplot.subplots(figsize=(7.5, 3.8))
    axes.plot(
        [datetime.fromtimestamp(at / 1000, UTC) for at, _ in points], [cost / 1e6 for _, cost in points]
    )
    if budget is not None:
        axes.axhline(budget, color="#e45756", linewidth=0.8, linestyle="--")
    axes.set_xlabel("time, UTC")
    axes.set_ylabel("spent, $")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.autofmt_xdate()
    _save(figure, path)


def _front(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that no other undercuts in both time and cost, one for each cost."""
    front: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda r: (r["hours"], r["cost_usd"], r["place"])):
        if not front or row["cost_usd"] < front[-1]["cost_usd"]:
            front.append(row)
    return front


def costs(rows: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """Bars of cost over on-demand cost, one group per set of zones and one bar per policy.

    ``rows`` as ``nemo-sky simulate --json`` prints them. Raises UserError for a name that is not .png or
    .svg, Refused without matplotlib.
    """
    pyplot = _pyplot(path)
    groups = list(dict.fromkeys(tuple(row["zones"]) for row in rows))
    names = list(dict.fromkeys(row["policy"] for row in rows))
    figure, axes = pyplot.subplots(figsize=(max(6.0, 1.0 + len(groups) * 1.1), 3.6))
    width = 0.84 / len(names)
    for k, name in enumerate(names):
        heights = {tuple(r["zones"]): r["of_on_demand"] for r in rows if r["policy"] == name}
        at = [g + (k - (len(names) - 1) / 2) * width for g, zones in enumerate(groups) if zones in heights]
        axes.bar(at, list(heights.values()), width, label=name, color=COLOURS.get(name))
    labels = [zones[0].split("_")[0] if len(zones) == 1 else f"{len(zones)} zones" for zones in groups]
    axes.set_xticks(range(len(groups)), labels, rotation=30 if len(groups) > 4 else 0, ha="center")
    axes.axhline(1.0, color="#5f6368", linewidth=0.6)
    axes.set_ylabel("cost / on-demand cost")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    _save(figure, path)


def sweep(result: Mapping[str, Any], path: Path) -> None:
    """What each trial of a sweep measured against what the sweep had spent by its end, and the best so far.

    ``result`` as ``nemo-sky sweep --json`` prints it. Raises UserError for a name that is not .png or .svg,
    Refused without matplotlib.
    """
    pyplot = _pyplot(path)
    figure, axes = pyplot.subplots(figsize=(7.5, 4.0))
    rows = [r for r in result["rows"] if r["value"] is not None and r["spent_usd"] is not None]
    for status, face in (("complete", COLOURS["nemo-sky"]), ("stopped", "none")):
        here = [row for row in rows if row["status"] == status]
        xs, ys = [row["spent_usd"] for row in here], [row["value"] for row in here]
        axes.scatter(xs, ys, s=26, facecolors=face, edgecolors=COLOURS["nemo-sky"], label=status, zorder=3)
    pick = min if result["direction"] == "minimize" else max
    done = sorted((r for r in rows if r["status"] == "complete"), key=lambda row: row["spent_usd"])
    if done:
        best = [pick(row["value"] for row in done[: n + 1]) for n in range(len(done))]
        xs = [*(row["spent_usd"] for row in done), result["spent_usd"]]
        axes.step(xs, [*best, best[-1]], where="post", color="#5f6368", linewidth=1.0, label="best so far")
    axes.set_xlabel("spent by the sweep, $")
    axes.set_ylabel(result["metric"])
    axes.set_xlim(left=0)
    axes.set_title(result["name"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    _save(figure, path)


def _pyplot(path: Path) -> Any:
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"a chart is written as .png or .svg, not {path.name!r}")
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise Refused("--plot needs matplotlib", hint="pip install matplotlib") from None
    matplotlib.rcParams["svg.hashsalt"] = "nemo-sky"  # the same numbers give the same file
    return pyplot


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    # Neither a date nor a version inside.
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata=metadata)
    pyplot.close(figure)
