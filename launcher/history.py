"""What became of the runs: the backend's state joined with the journal that the agent left in the store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from launcher import backends, runs
from launcher.errors import Refused
from launcher.project import Project

if TYPE_CHECKING:
    from launcher.artifacts.store import Store
    from launcher.money.account import Entry

AT_ONCE = 8
"""Runs whose state is asked for at the same time."""
UNKNOWN = "UNKNOWN"
NO_END = "no end recorded"
"""The status of a run whose place does not answer."""


def every(project: Project, active_only: bool = False) -> list[dict[str, Any]]:
    """The facts of `runs list`, newest first; with ``active_only`` those of `queue`."""

    def state_of(run: runs.Run) -> backends.State:
        try:
            return backends.get(run.backend).status(runs.directory(project.runs, run.run_id))
        except Refused as error:  # one place that does not answer hides no run of another
            return backends.State(UNKNOWN, reason=error.message)

    facts = []
    known = runs.every(project.runs)
    # SkyPilot takes a second or so for each run that has not ended.
    with ThreadPoolExecutor(AT_ONCE) as pool:
        states = list(pool.map(state_of, known))
    for run, state in zip(known, states, strict=True):
        if active_only and not state.active and state.status != UNKNOWN:
            continue
        facts.append(
            {
                "run_id": run.run_id,
                "family": run.family,
                "stage": run.stage,
                "config": run.config,
                "status": state.status,
                "reason": state.reason,
                "cluster": run.cluster,
                "nodes": run.nodes,
                "attempts": max(len(state.attempts), state.preemptions + 1),
                "created_at": run.created_at,
                **_whereabouts(state),
            }
        )
    return facts


def _whereabouts(state: backends.State) -> dict[str, Any]:
    """Where a run is and what an hour of it costs, in dollars for all its nodes; None is unknown."""
    place = [str(state.place[key]) for key in ("cloud", "region", "zone") if state.place.get(key)]
    return {
        "preemptions": state.preemptions,
        "place": "/".join(place) or None,
        "price_per_hour": state.price_per_hour,
        "links": dict(state.links),
    }


def show(project: Project, run_id: str) -> dict[str, Any]:
    """The facts of `runs show`: costs in dollars (None is unknown), durations in hours.

    Raises UserError when there is no such run.
    """
    from launcher.lineage import mlflow_view
    from launcher.lineage import sync as sync_library
    from launcher.money import booking

    run = runs.load(project.runs, run_id)
    folder = runs.directory(project.runs, run.run_id)
    state = backends.get(run.backend).status(folder)
    store = _store(run, project)
    if not state.active:
        booking.settle(store, run, state, gone=False)
    # No node of a cloud could reach a tracker on this machine; one of this machine writes by itself.
    behind = run.backend != "local" or (not state.active and (folder / runs.UNTRACKED).exists())
    untracked = track(project, run) if behind else None
    attempts = [attempt_facts(events) for events in sync_library.attempts(store, run.run_id)]
    metrics: dict[str, float] = {}
    for attempt in attempts:
        metrics.update(attempt.pop("metrics"))
    entries = _entries(store, run)
    ledger_costs, total = _costs(entries)
    if state.active and attempts and attempts[-1]["status"] == NO_END:
        attempts[-1]["status"] = "running"
    for attempt in attempts:
        attempt["cost_usd"] = ledger_costs.get(attempt["attempt"], attempt["cost_usd"])
    known_costs = [a["cost_usd"] for a in attempts if a["cost_usd"] is not None]
    outputs = [a["output"] for a in attempts if a["output"]]
    where = _whereabouts(state)
    if state.active and where["price_per_hour"] is None:
        where["price_per_hour"] = _newest_price(entries)
    where["links"] |= mlflow_view.links(run.tracking, run.run_id) if run.tracking else {}
    return {
        "run_id": run.run_id,
        "stage": f"{run.family}/{run.stage}",
        "config": run.config,
        "status": state.status,
        "reason": state.reason,
        "cluster": run.cluster,
        "nodes": run.nodes,
        "created_at": run.created_at,
        **where,
        "output": outputs[-1] if outputs else None,
        # The ledger's: it has reservations, too, that no attempt took over. A journal may be older than it.
        "cost_usd": total if total is not None or not known_costs else round(sum(known_costs), 6),
        "command": run.command,
        "fingerprint": run.fingerprint[:12],
        "folder": project.show(folder),
        "tracking": run.tracking,
        "untracked": untracked,
        "metrics": {key: value for key, value in metrics.items() if not key.startswith("system/")},
        "attempt_list": attempts,
    }


def attempt_facts(events: list[dict[str, Any]]) -> dict[str, Any]:
    """One attempt's story from its journal."""
    facts: dict[str, Any] = {
        "attempt": None,
        "status": "unknown",
        "started_at": None,
        "hours": None,
        "cost_usd": None,
        "restored_from": None,
        "checkpoints": [],
        "output": None,
        "metrics": {},
    }
    for event in events:
        match event["type"]:
            case "attempt_started":
                started = datetime.fromtimestamp(event["ts"], UTC).isoformat(timespec="seconds")
                # Without an end the attempt was killed or still runs; its last event bounds its hours.
                facts |= {"attempt": event["attempt"], "status": NO_END, "started_at": started}
            case "restored":
                facts["restored_from"] = event["step"]
            case "checkpoint":
                facts["checkpoints"].append(event["step"])
            case "metrics":
                for point in event["points"]:
                    facts["metrics"][point["key"]] = point["value"]
            case "notice":
                facts["status"] = "preempted"  # unless it lives to write its end
            case "output":
                manifest = event["manifest"]
                facts["output"] = f"art://{manifest['name']}:v{manifest['version']}"
            case "attempt_ended":
                facts |= {"status": event["status"], "hours": event["hours"], "cost_usd": event["cost_usd"]}
    if facts["hours"] is None and events:
        facts["hours"] = round((events[-1]["ts"] - events[0]["ts"]) / 3600, 4)
    return facts


def settle(project: Project, run: runs.Run) -> str | None:
    """The run has just ended: what it reserved in the ledger and did not use is free again. Returns its
    receipt in a line, if there is one."""
    from launcher.money import booking

    state = backends.get(run.backend).status(runs.directory(project.runs, run.run_id))
    return booking.settle(_store(run, project), run, state)


def track(project: Project, run: runs.Run) -> str | None:
    """Bring MLflow up to date: the run's journals, each event once, and what the ledger says that it cost.

    Returns a line that says why it could not be: the run is none the worse for it, and ``show`` tries again.
    """
    from launcher.lineage import mlflow_view
    from launcher.lineage import sync as sync_library
    from launcher.money.ledger import now_ms

    mark = runs.directory(project.runs, run.run_id) / runs.UNTRACKED
    store = _store(run, project)
    try:
        if sync_library.sync_run(store, run.tracking, run.run_id):
            now = now_ms()  # what is open counts as it is reserved
            by_attempt, total = _costs([one for one in _entries(store, run) if not one.is_open(now)])
            if total is not None:
                mlflow_view.costs(by_attempt, total, tracking=run.tracking, run_id=run.run_id)
    except Refused as error:
        runs.write_text(mark, f"{error.message}\n")
        return (
            f"MLflow does not show all of {run.run_id}: {error.message} "
            f"(`nemo-sky runs show {run.run_id}` tries again)"
        )
    mark.unlink(missing_ok=True)
    return None


def _entries(store: Store, run: runs.Run) -> list[Entry]:
    """The run's entries in the ledger, in the order of their launch."""
    from launcher.money.ledger import account_name, open_ledger

    return open_ledger(store).read(account_name(run.run_id, run.experiment)).of(run.run_id)


def _costs(entries: Sequence[Entry]) -> tuple[dict[int, float], float | None]:
    """Dollars by attempt, from launch to end, and in all: the ledger knows more than an attempt's own
    journal. None: unknown."""
    from launcher.money.account import MICROS

    priced = [entry for entry in entries if entry.price is not None]
    by_attempt = {entry.attempt: entry.cost / MICROS for entry in priced if entry.attempt is not None}
    return by_attempt, sum(entry.cost for entry in priced) / MICROS if priced else None


def _newest_price(entries: Sequence[Entry]) -> float | None:
    """Dollars per hour of all nodes by the ledger's newest entry: SkyPilot names none of a managed job."""
    from launcher.money.account import MICROS

    price = entries[-1].price if entries else None
    return None if price is None else price / MICROS


def _store(run: runs.Run, project: Project) -> Store:
    from launcher.artifacts.store import open_store

    return open_store(run.artifacts, project.s3_endpoint)
