"""How the nodes of an attempt find each other and agree: through small objects in the store.

    runs/RUN_ID/attempts/K.json           claimed by node 0, once and for all
    runs/RUN_ID/attempts/K/node-R.json    node R asks to join, with an id of its own
    runs/RUN_ID/attempts/K/node-R.ok      node 0 answers that id: from which checkpoint all go on
    runs/RUN_ID/attempts/K/saved.json     node 0's trainer has saved this step: every node uploads its part
    runs/RUN_ID/attempts/K/stop.json      node 0, whoever cancels the run, or the node whose instance is to
                                          go: every node saves and ends
    runs/RUN_ID/attempts/K/end.json       node 0's command has ended and what it saved is committed

An earlier attempt that was killed looks like one that starts; only a living node 0 answers.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from launcher.agent.ends import NO_STORE, Ended
from launcher.artifacts.store import Store

STOP = "stop.json"
JOIN_S = 900.0  # nodes of one launch start within minutes of each other
_POLL_S = 0.2


@dataclass(frozen=True)
class Attempt:
    """The attempt ``number`` of a run, and its objects in the store."""

    store: Store
    run_id: str
    number: int

    def read(self, name: str) -> dict[str, Any] | None:
        data = self.store.get_bytes(f"{_folder(self.run_id)}/{self.number}/{name}")
        return None if data is None else dict(json.loads(data))

    def write(self, name: str, values: dict[str, Any], *, if_absent: bool = False) -> None:
        key = f"{_folder(self.run_id)}/{self.number}/{name}"
        self.store.put_bytes(key, json.dumps(values).encode(), if_absent=if_absent)

    def announce(self, step: int) -> None:
        """Every node is to upload its part of this step."""
        self.write("saved.json", {"step": step})

    def announced(self) -> int | None:
        values = self.read("saved.json")
        return None if values is None else int(values["step"])

    def end(self, code: int) -> None:
        """Node 0 is done with its command, which ended with ``code``."""
        self.write("end.json", {"code": code})

    def stop(self, status: str, code: int, reason: str | None, leaves_at: float | None = None) -> None:
        """Every node is to save and to end like this. With ``leaves_at``, when an instance goes, in seconds
        since the epoch, they wait for that: any other reason stands above it."""
        facts = {"status": status, "code": code, "reason": reason, "leaves_at": leaves_at}
        self.write(STOP, facts, if_absent=leaves_at is not None)

    def ended(self) -> int | None:
        values = self.read("end.json")
        return None if values is None else int(values["code"])


def claim(store: Store, run_id: str) -> Attempt:
    """The next attempt's number, which no other node 0 can have."""
    facts = {"id": uuid.uuid4().hex, "claimed_at": time.time()}
    number = max(_claimed(store, run_id), default=0) + 1
    while True:
        data = json.dumps({"attempt": number, **facts}).encode()
        if store.put_bytes(f"{_folder(run_id)}/{number}.json", data, if_absent=True):
            return Attempt(store, run_id, number)
        number += 1


def gather(attempt: Attempt, nodes: int, restore: int | None, timeout_s: float = JOIN_S) -> None:
    """Node 0: wait for every other node, and tell each the step of the checkpoint to go on from.

    Raises Ended when one does not come.
    """
    missing = set(range(1, nodes))
    deadline = time.monotonic() + timeout_s
    while missing:
        for rank in sorted(missing):
            if asked := attempt.read(f"node-{rank}.json"):
                attempt.write(f"node-{rank}.ok", {"id": asked["id"], "restore": restore})
                missing.discard(rank)
        if missing and time.monotonic() > deadline:
            who = ", ".join(map(str, sorted(missing)))
            raise Ended(NO_STORE, f"of {nodes} nodes, these did not join within {timeout_s:.0f} s: {who}")
        if missing:
            time.sleep(_POLL_S)


def join(store: Store, run_id: str, rank: int, timeout_s: float = JOIN_S) -> tuple[Attempt, int | None]:
    """Another node: the attempt that node 0 leads, and the step of the checkpoint to go on from.

    Raises Ended when no node 0 answers.
    """
    me = uuid.uuid4().hex
    asked: Attempt | None = None
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        newest = max(_claimed(store, run_id), default=0)
        if newest and (asked is None or asked.number != newest):
            asked = Attempt(store, run_id, newest)
            asked.write(f"node-{rank}.json", {"id": me})
        answer = asked.read(f"node-{rank}.ok") if asked else None
        if asked and answer and answer["id"] == me:
            restore = answer["restore"]
            return asked, None if restore is None else int(restore)
        time.sleep(_POLL_S)
    raise Ended(
        NO_STORE,
        f"node 0 did not answer within {timeout_s:.0f} s through {store.url}: "
        "can every node reach that store, or is it a folder of one of them?",
    )


def _claimed(store: Store, run_id: str) -> list[int]:
    names = (name.removesuffix(".json") for name in store.children(_folder(run_id)) if name.endswith(".json"))
    return [int(name) for name in names if name.isdecimal()]


def _folder(run_id: str) -> str:
    return f"runs/{run_id}/attempts"
