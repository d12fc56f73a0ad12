"""Bring MLflow up to date with what the agents left in the store."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.artifacts import registry
from launcher.artifacts.store import Store, StoreError
from launcher.artifacts.uri import SCHEME, parse_ref
from launcher.errors import Refused
from launcher.lineage import journal, mlflow_view
from launcher.lineage.journal import Event


def sync_run(store: Store, tracking: str, run_id: str) -> str | None:
    """Replay every journal of a run from the store into MLflow, each event once; returns MLflow's run id,
    None when there is no journal.

    Runs that made its inputs and that MLflow has not seen come first, so that each artifact is shown as
    the output of what made it. Raises Refused when the store or MLflow cannot be used.
    """
    result = None
    for events in attempts(store, run_id):
        for earlier in _producers(store, events):
            if earlier != run_id and not mlflow_view.knows(tracking, earlier):
                sync_run(store, tracking, earlier)
        result = mlflow_view.apply(events, tracking=tracking, run_id=run_id, store=store)
    return result


def attempts(store: Store, run_id: str) -> list[list[Event]]:
    """The journals of a run's attempts, in order, without empty ones."""
    return [events for data in journal.kept(store, run_id) if (events := journal.read(data))]


def _producers(store: Store, events: Sequence[Event]) -> list[str]:
    """The runs that made this attempt's inputs."""
    made = []
    for item in events[0].get("inputs") or []:
        if str(item["uri"]).startswith(SCHEME):
            try:
                manifest = registry.resolve(store, parse_ref(item["uri"]))
            except StoreError:
                raise
            except Refused:
                continue  # it is gone, or of another store: the event itself says enough
            if run_id := manifest.producer.get("run_id"):
                made.append(str(run_id))
    return list(dict.fromkeys(made))
