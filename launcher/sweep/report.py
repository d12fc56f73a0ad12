"""What came out of a sweep: every trial with what it measured and cost, and loss against dollars."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import runs
from launcher.money.account import MICROS, Account, charge
from launcher.sweep.study import Trial, best

if TYPE_CHECKING:
    from launcher.sweep.trials import Sweep


@dataclass(frozen=True)
class Result:
    """A sweep as programs see it. ``rows`` has a trial each, by number; amounts are in dollars.

    A row's ``spent_usd`` is what the whole sweep had cost when the trial ended, None for one that has not.
    ``launch`` is the command for the best; it finds what the trial ``published``, if its stage publishes.
    """

    name: str
    metric: str
    direction: str
    why: str
    budget_usd: float
    spent_usd: float
    best: dict[str, Any] | None
    rows: list[dict[str, Any]]
    launch: str
    published: bool


def make(
    asked: Sweep, trials: Sequence[Trial], held: Account, why: str, best_file: str, published: bool
) -> Result:
    """The result as Optuna's file and the ledger have it now; the config of the best is in ``best_file``."""
    rows = [_row(trial, held) for trial in trials]
    chosen, request = best(trials, asked.space.direction), asked.request
    # With the arguments of the script, which are part of what a run is known by.
    words = ["nemo-sky", "launch", request.family, request.stage, "--cloud", request.cluster, "-c", best_file]
    launch = shlex.join([*words, *(["--", *request.script_args] if request.script_args else [])])
    return Result(
        asked.name,
        asked.space.metric,
        asked.space.direction,
        why,
        asked.budget / MICROS,
        held.committed() / MICROS,
        next((row for row in rows if chosen and row["trial"] == chosen.number), None),
        rows,
        launch,
        published,
    )


def save(result: Result, folder: Path) -> None:
    """``trials.json``; a chart where matplotlib is installed and something was measured."""
    from launcher.errors import Refused
    from launcher.money import charts

    runs.write_text(folder / "trials.json", json.dumps(vars(result), indent=2, default=str) + "\n")
    if any(row["value"] is not None and row["spent_usd"] is not None for row in result.rows):
        try:
            charts.sweep(vars(result), folder / "chart.png")
        except Refused:
            return


def _row(trial: Trial, held: Account) -> dict[str, Any]:
    entries = held.of(trial.run_id)
    ended = max((entry.end for entry in entries), default=None) if trial.status != "open" else None
    spent = None
    if ended is not None:
        spent = sum(
            charge(entry.price or 0, min(entry.end, ended) - entry.launched)
            for entry in held.entries.values()
            if entry.launched < ended
        )
    return {
        "trial": trial.number,
        "status": trial.status,
        "value": trial.value,
        "step": trial.step,
        "cost_usd": held.committed(trial.run_id) / MICROS,
        "spent_usd": None if spent is None else spent / MICROS,
        "params": dict(trial.params),
        "run_id": trial.run_id,
        "reason": trial.reason,
    }
