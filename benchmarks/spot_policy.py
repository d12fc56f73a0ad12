"""The spot policy against other policies and perfect foresight, cross-validated.

    python benchmarks/spot_policy.py windows.json.gz [--only single,nine] [--every N] [--json|--plot FILE]

Each window is replayed with the history of those windows alone that share no time with it. ``new`` leaves
the tested zone's own history out too, as if it had never been used. Ratios are sums of cost over sums of
the optimum's. ``budget`` gives the job less money than it may need, and compares the work that is done when
the money ends. One process; all windows take some 30 minutes of one core, ``--every 7`` a seventh of that.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.money import availability, charts, simulate, traces
from launcher.money.availability import Tally
from launcher.money.simulate import OURS
from launcher.money.traces import Market

ON_DEMAND = 3.06
HOUR = 3600.0
PARTS = ("single", "new", "nine", "jobs", "pairs", "budget")
BUDGETS = (0.3, 0.5, 0.8)  # of what the work costs on-demand
JOBS = (  # hours of work, hours to the deadline, ticks of restart
    (48, 52, 4), (48, 56, 4), (48, 60, 1), (48, 60, 10), (24, 26, 4), (24, 36, 4),
)  # fmt: skip
RIVALS = ("greedy", "uniform-progress")


def measure(
    market: Market,
    past: Sequence[dict[str, Tally]],
    zones: Sequence[str],
    names: Sequence[str],
    picked: Sequence[int],
    *,
    work: float = 48,
    deadline: float = 60,
    restart: float = 4,
    unknown: bool = False,
) -> dict[str, dict[str, float]]:
    """Sums over the picked windows, by policy: dollars, missed deadlines, slowest decision in ms."""
    part = market.only(zones)
    part = replace(part, windows=tuple(part.windows[i] for i in picked))
    job = simulate.setting(
        part,
        work=work * HOUR,
        deadline=deadline * HOUR,
        restart=restart * market.gap,
        on_demand=ON_DEMAND,
        budget=None,
    )
    without = list(zones) if unknown else []
    if len(zones) > 1:  # what is known of all zones, and of this job's pools
        whole = simulate.history(market.only(zones))
        past = [known | more for known, more in zip(past, whole, strict=True)]
    found = {
        "optimum": {"cost": sum(simulate.optima(part, job)), "late": 0.0},
        "on-demand work": {"cost": job.on_demand_cost * len(picked), "late": 0.0},
    }
    for name in names:
        replays = simulate.run(
            part, job, name, lambda i: simulate.held_out(market, past, picked[i], without=without)
        )
        found[name] = {
            "cost": sum(one.cost for one in replays),
            "late": float(sum(not one.finished for one in replays)),
        }
    return found


def within(
    market: Market,
    past: Sequence[dict[str, Tally]],
    zones: Sequence[str],
    names: Sequence[str],
    picked: Sequence[int],
    share: float,
) -> dict[str, dict[str, float]]:
    """48 h of work in 60 h with ``share`` of what it costs on-demand: by policy, sums over the picked windows
    of the work that is done and of all, windows that are done, and windows that cost more than the budget."""
    part = market.only(zones)
    part = replace(part, windows=tuple(part.windows[i] for i in picked))
    budget = share * 48 * ON_DEMAND
    job = simulate.setting(
        part, work=48 * HOUR, deadline=60 * HOUR, restart=4 * market.gap, on_demand=ON_DEMAND, budget=budget
    )
    if len(zones) > 1:
        past = [known | more for known, more in zip(past, simulate.history(market.only(zones)), strict=True)]
    found = {}
    for name in names:
        replays = simulate.run(part, job, name, lambda i: simulate.held_out(market, past, picked[i]))
        found[name] = {
            "work": float(sum(one.done for one in replays)),
            "of": float(job.work * len(replays)),
            "finished": float(sum(one.finished for one in replays)),
            "above": float(sum(one.cost > budget + 1e-6 for one in replays)),
        }
    return found


def show_work(title: str, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    best = max(v["work"] for name, v in found.items() if name != OURS)
    rows = {
        name: {
            "work": round(v["work"] / v["of"], 4),
            "of_best_rule": round(v["work"] / best, 4),
            "finished": int(v["finished"]),
            "above": int(v["above"]),
        }
        for name, v in found.items()
    }
    text = ", ".join(f"{name} {row['work']:.3f}" for name, row in rows.items())
    above = sum(row["above"] for row in rows.values())
    print(f"{title}: {text}; {rows[OURS]['of_best_rule']:.3f} of the best rule; above: {above}", flush=True)
    return rows


def add(total: dict[str, dict[str, float]], one: dict[str, dict[str, float]]) -> None:
    for name, values in one.items():
        into = total.setdefault(name, dict.fromkeys(values, 0.0))
        for key, value in values.items():
            into[key] += value


def show(title: str, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    best, whole = found["optimum"]["cost"], found["on-demand work"]["cost"]
    ratios = {
        name: {
            "of_optimum": round(v["cost"] / best, 4),
            "of_on_demand": round(v["cost"] / whole, 4),
            "late": int(v["late"]),
        }
        for name, v in found.items()
        if name != "on-demand work"
    }
    text = ", ".join(
        f"{name} {r['of_on_demand']:.3f} ({r['of_optimum']:.4f})"
        + (f" LATE {r['late']}" if r["late"] else "")
        for name, r in ratios.items()
    )
    print(f"{title}: {text}", flush=True)
    return ratios


def shipped(market: Market) -> dict[str, Tally]:
    """What all windows teach of every zone, and of the pools that a job over two or all zones looks at."""
    sets = [*itertools.combinations(market.zones, 2), market.zones]
    known: dict[str, Tally] = {}
    for zones in sets:
        known |= simulate.pooled(simulate.history(market.only(zones)))
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("windows", type=Path)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--every", type=int, default=1, help="use every Nth window")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="bars of the single zones, as .png or .svg")
    parser.add_argument("--prior", type=Path, help="only write the history that comes with nemo-sky")
    wanted = parser.parse_args()
    market = traces.read(wanted.windows)
    if wanted.prior:
        availability.save_prior(shipped(market), wanted.prior)
        return
    past = simulate.history(market)
    picked = range(0, len(market.windows), wanted.every)
    results: dict[str, Any] = {"windows": len(picked)}
    parts = wanted.only.split(",")
    for part in ("single", "new"):
        if part not in parts:
            continue
        total: dict[str, dict[str, float]] = {}
        names = [OURS, *RIVALS, "sticky"] if part == "single" else [OURS]
        for zone in market.zones:
            one = measure(market, past, [zone], names, picked, unknown=part == "new")
            results[f"{part} {zone}"] = show(f"{part} {zone}", one)
            add(total, one)
        results[part] = show(f"{part}, mean of {len(market.zones)} zones", total)
    if "nine" in parts:
        one = measure(market, past, market.zones, [OURS, *RIVALS, "sticky"], picked)
        results["nine"] = show(f"all {len(market.zones)} pooled", one)
    if "jobs" in parts:
        for work, deadline, restart in JOBS:
            total = {}
            title = f"{work} h in {deadline} h, restart {restart}"
            for zone in market.zones:
                one = measure(
                    market,
                    past,
                    [zone],
                    [OURS, *RIVALS],
                    picked,
                    work=work,
                    deadline=deadline,
                    restart=restart,
                )
                results[f"{title} {zone}"] = show(f"{title} {zone}", one)
                add(total, one)
            results[title] = show(title, total)
    if "pairs" in parts:
        total = {}
        for pair in itertools.combinations(market.zones, 2):
            one = measure(market, past, pair, [OURS, *RIVALS], picked)
            results[f"pair {pair[0]} {pair[1]}"] = show(f"pair {pair[0]} {pair[1]}", one)
            add(total, one)
        results["pairs"] = show("all pairs", total)
    if "budget" in parts:
        names = [OURS, *RIVALS, "sticky"]
        for share in BUDGETS:
            total = {}
            for zone in market.zones:
                one = within(market, past, [zone], names, picked, share)
                results[f"budget {share} {zone}"] = show_work(f"budget {share} {zone}", one)
                add(total, one)
            results[f"budget {share} single"] = show_work(f"budget {share}, single zones", total)
            one = within(market, past, market.zones, names, picked, share)
            results[f"budget {share} nine"] = show_work(f"budget {share}, all {len(market.zones)}", one)
    if wanted.plot:
        rows = [
            {"zones": [zone], "policy": name, "of_on_demand": ratio["of_on_demand"]}
            for zone in market.zones
            for name, ratio in results[f"single {zone}"].items()
        ]
        charts.costs(rows, wanted.plot, f"48 h of work in 60 h, {len(picked)} windows")
    if wanted.json:
        wanted.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
