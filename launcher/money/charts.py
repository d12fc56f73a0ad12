"""Charts of a simulation. matplotlib is imported only here, and only when a chart is asked for."""

from __future__ import annotations

from collections.abc import Sequence
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


def costs(rows: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """Bars of cost over on-demand cost, one group per set of zones and one bar per policy.

    ``rows`` as ``nemo-sky simulate --json`` prints them. Raises UserError for a name that is not .png or
    .svg, Refused without matplotlib.
    """
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"a chart is written as .png or .svg, not {path.name!r}")
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise Refused("--plot needs matplotlib", hint="pip install matplotlib") from None
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
    path.parent.mkdir(parents=True, exist_ok=True)
    # Neither a date nor a version inside: the same numbers give the same file.
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata=metadata)
    pyplot.close(figure)
