"""The best validation loss for the same money: `nemo-sky sweep` beside a grid.

    python -m benchmarks.sweep [--budget 165] [--trials 30] [--out FILE]

Both search learning rate, initial spread and weight decay of a small `tiny pretrain`, each over three
decades, with no hint of where it is good. The grid has the low end, the middle and the high end of each, 27
points in random order, each trained to its end; the sweep proposes up to 30 and stops the weak. Each has the
same budget in the ledger, $360 an hour, start-up included. They run at the same time, one trial each, so that
whatever else slows this machine slows both. A launch of the grid begins while its first lease fits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher import launch as flow
from launcher import project, runs
from launcher.money.account import MICROS, Account, charge
from launcher.money.ledger import open_ledger
from launcher.sweep.trials import metric_points
from tests.e2e.conftest import Project, make_project

STEPS, EVALUATE, FIRST_RUNG = 800, 50, 100
BASE = ("tiny", "pretrain", "-c", "smoke", "--cloud", "priced")
FIXED = (f"train.steps={STEPS}", f"train.eval_interval={EVALUATE}", "train.min_lr=0")
RANGES = {"train.lr": (1e-4, 1e-1), "model.init_std": (1e-3, 1.0), "train.weight_decay": (1e-3, 1.0)}
PROFILE = 'extends: local\nprice_per_hour: 360\nenv: {NEMO_SKY_GRACE_S: "4"}\n'
SHARES = (0.25, 0.5, 0.75, 1.0)
GRID, SWEEP = "grid", "found"


def space(seed: int) -> dict[str, Any]:
    """The sweep's space file; YAML takes JSON."""
    return {
        "seed": seed,
        "resource": {"key": "train.steps", "min": FIRST_RUNG, "reduction": 3},
        "space": {key: {"low": low, "high": high, "log": True} for key, (low, high) in RANGES.items()},
    }


def grid(seed: int) -> list[list[str]]:
    """The overrides of every point, in random order: money may end before the grid does."""
    levels = [
        [(key, value) for value in (low, (low * high) ** 0.5, high)] for key, (low, high) in RANGES.items()
    ]
    points = [[f"{key}={value:.6g}" for key, value in point] for point in itertools.product(*levels)]
    random.Random(seed).shuffle(points)
    return points


def run_grid(here: Project, budget: float, seed: int) -> None:
    """One launch after the other until the ledger refuses one. A launch that the budget stopped is launched
    again while there is money, as a sweep does."""
    caps = ("--experiment", GRID, "--experiment-budget", f"{budget:g}")
    for point in grid(seed):
        words = ["launch", *BASE, *FIXED, *point, *caps]
        while (done := run(here, words)).returncode == 5:
            pass
        if done.returncode == 3:
            return
        if done.returncode not in (0, 1):  # a point that diverges is a point
            sys.exit(f"{' '.join(words)} failed:\n{done.stderr}")


def run_sweep(here: Project, budget: float, trials: int) -> None:
    words = ["sweep", *BASE, *FIXED, "--space", "space.json", "--budget", f"{budget:g}", "--name", SWEEP]
    done = run(here, [*words, "--trials", str(trials)])
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed")


def run(here: Project, words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "nemo-sky"), *words]
    env = {**here.environment(), "PYTHONPATH": str(Path(flow.__file__).parents[1])}
    return subprocess.run(command, cwd=here.root, env=env, capture_output=True, text=True, check=False)


def outcome(found: project.Project, name: str) -> dict[str, Any]:
    """Trials, dollars, and the best final loss by the time each share of the budget was spent."""
    store = flow.open_store(found)
    held = open_ledger(store).read(f"experiments/{name}")
    budget = (held.budget or 0) / MICROS
    ended = []
    for run_id in held.runs:
        points = metric_points(store, run_id, "valid_loss")
        if points and points[-1][0] == STEPS:
            end = max(entry.end for entry in held.of(run_id))
            ended.append((spent_by(held, end), points[-1][1], runs.load(found.runs, run_id).run_id))
    losses = {
        f"{share:.0%}": min((loss for dollars, loss, _ in ended if dollars <= share * budget), default=None)
        for share in SHARES
    }
    best = min(ended, key=lambda item: item[1])
    return {
        "trials": len(held.runs),
        "to_the_end": len(ended),
        "budget_usd": budget,
        "spent_usd": round(held.committed() / MICROS, 2),
        "best_loss": round(best[1], 4),
        "best_at_usd": round(best[0], 2),
        "best_loss_by_share": losses,
        "all": [(round(dollars, 2), round(loss, 4)) for dollars, loss, _ in sorted(ended)],
    }


def spent_by(held: Account, moment: int) -> float:
    """Dollars until ``moment``, in milliseconds since the epoch."""
    entries = held.entries.values()
    return sum(charge(e.price or 0, min(e.end, moment) - e.launched) for e in entries) / MICROS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=165.0, help="dollars for each")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        here = make_project(Path(temporary) / "project")
        (here.root / "clusters" / "priced.yaml").write_text(PROFILE)
        (here.root / "space.json").write_text(json.dumps(space(asked.seed)))
        with (here.root / "nemo-sky.yaml").open("a") as file:
            file.write("money: {check_every: 10s, setup: 20s}\n")
        here.run("launch", "tiny", "data/prep/pretrain", "-c", "smoke", "--cloud", "local")
        with ThreadPoolExecutor(2) as pool:
            both = [
                pool.submit(run_sweep, here, asked.budget, asked.trials),
                pool.submit(run_grid, here, asked.budget, asked.seed),
            ]
            for each in both:
                each.result()
        found = project.read(here.root)
        result = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} cores",
            "load_average": round(os.getloadavg()[1], 1),
            "seed": asked.seed,
            "sweep": outcome(found, SWEEP),
            "grid": outcome(found, GRID),
        }
    for name in ("sweep", "grid"):
        one: Any = result[name]
        shares = ", ".join(
            f"{loss:.3f} by {share}" for share, loss in one["best_loss_by_share"].items() if loss is not None
        )
        print(
            f"{name:5} best loss {one['best_loss']:.4f} at ${one['best_at_usd']:.2f}; "
            f"{one['trials']} trials, {one['to_the_end']} to the end, "
            f"${one['spent_usd']:.2f} of ${one['budget_usd']:.2f}; {shares}"
        )
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
