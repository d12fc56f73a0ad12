"""Publishes what the command made, with its metadata, what it was made of, and what it cost."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.agent.ends import END_RETRY_S, insist
from launcher.agent.inputs import Input
from launcher.agent.job import Job, Node
from launcher.artifacts import checkpoints, registry
from launcher.artifacts.manifest import Manifest
from launcher.artifacts.store import Store
from launcher.errors import UserError
from launcher.lineage import journal


@dataclass(frozen=True)
class Spent:
    """Hours on the nodes and dollars for all of them; a cost is None when a price is unknown."""

    hours: float
    cost_usd: float | None


@dataclass(frozen=True)
class Clock:
    """Counts what a run takes: ``before`` by earlier attempts, and since ``began`` (seconds since the epoch)
    at ``price_per_hour`` dollars for all nodes."""

    before: Spent
    began: float
    price_per_hour: float | None

    def attempt(self) -> Spent:
        """This attempt until now."""
        hours = (time.time() - self.began) / 3600
        price = self.price_per_hour
        return Spent(round(hours, 6), None if price is None else round(hours * price, 6))

    def run(self) -> Spent:
        """All attempts until now."""
        now = self.attempt()
        costs = (now.cost_usd, self.before.cost_usd)
        cost = None if costs[0] is None or costs[1] is None else round(costs[0] + costs[1], 6)
        return Spent(round(now.hours + self.before.hours, 6), cost)


def spent_before(store: Store, run_id: str, attempt: int) -> Spent:
    """What the earlier attempts took, by their journals. One that was killed counts to its last event."""
    hours, cost = 0.0, 0.0
    known = True
    for number in range(1, attempt):
        data = store.get_bytes(f"runs/{run_id}/journal/{number}.jsonl")
        try:
            events = journal.read(data or b"")
        except UserError:
            known = False
            continue
        if not events:
            continue
        ended = events[-1]["type"] == "attempt_ended"
        took = events[-1]["hours"] if ended else (events[-1]["ts"] - events[0]["ts"]) / 3600
        price = events[0].get("price_per_hour")
        hours += took
        if price is None:
            known = False
        else:
            cost += took * price
    return Spent(hours, cost if known else None)


def read_metadata(node: Node) -> dict[str, Any]:
    """What the script wrote to $NEMO_SKY_METADATA; nothing written is no metadata.

    Raises UserError when it is not a JSON object.
    """
    try:
        values = json.loads(node.metadata.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"$NEMO_SKY_METADATA is not JSON: {error}", where=str(node.metadata)) from error
    if not isinstance(values, dict):
        raise UserError("$NEMO_SKY_METADATA must hold a JSON object", where=str(node.metadata))
    return values


def publish(
    job: Job,
    node: Node,
    store: Store,
    output: Mapping[str, str],
    inputs: list[Input],
    producer: Mapping[str, Any],
    saved: int | None,
) -> Manifest:
    """Make the next version of the stage's artifact.

    It is the folder $NEMO_SKY_OUTPUT; a model that wrote none is its newest committed checkpoint, which is
    not copied. ``saved`` is the newest step that the trainer saved. Raises UserError for a bad output,
    StoreError when the store fails.
    """
    metadata = read_metadata(node)

    def once() -> Manifest:
        checkpoint = None
        if not node.output.exists():
            if output["type"] != "model":
                raise UserError(f"the stage wrote nothing to $NEMO_SKY_OUTPUT ({node.output})")
            checkpoint = checkpoints.newest(store, job.run_id)
            if checkpoint is None or (saved is not None and checkpoint.step < saved):
                raise UserError(
                    "the stage wrote no $NEMO_SKY_OUTPUT and its last checkpoint is not committed"
                )
        return registry.publish(
            store,
            name=output["name"],
            type=output["type"],
            metadata=metadata,
            inputs={item.name: item.uri for item in inputs},
            producer=producer,
            directory=None if checkpoint else node.output,
            checkpoint=checkpoint,
        )

    return insist(once, END_RETRY_S)
