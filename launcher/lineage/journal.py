"""The journal of an attempt: what happened, one JSON line each, on disk before anything relies on it.

Each event has ``seq`` (1, 2, ...), ``ts`` (seconds since the epoch) and ``type``; by type also:

    attempt_started  attempt, run {...}, params {...}, inputs [{name, uri, type, digest, base_uri}],
                     place {cloud, region, zone, nodes, instance}, price_per_hour, and where it is not the
                     recipe's: saving {steps, seconds, step, checkpoint, between}
    metrics, system  points [{key, value, step, ts}], ts in seconds
    checkpoint       step, uri, bytes, seconds
    restored         step, uri
    notice           reason, leaves_at: the cloud takes an instance away then, in seconds since the epoch. The
                     attempt waits for it, so that mostly it has no end of its own
    interrupted      signal
    output           manifest {...}
    attempt_ended    status (succeeded | failed | interrupted | cancelled), exit_code, hours, cost_usd,
                     reason
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import UserError

if TYPE_CHECKING:
    from launcher.artifacts.store import Store

Event = dict[str, Any]


class Journal:
    """Appends events to the file ``path``, which is made when absent and continued when not.

    A last line that a crash tore is cut off. Safe to use from several threads, not from two processes.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        events = read(data)
        whole = _whole_lines(data)
        self.path = path
        self._seq = len(events)
        self._lock = threading.Lock()
        self._file = path.open("ab")
        self._file.truncate(len(whole))

    def append(self, type: str, **fields: Any) -> Event:
        """Write one event and wait until it is on disk. Non-finite numbers are kept."""
        with self._lock:
            event = {"seq": self._seq + 1, "ts": time.time(), "type": type, **fields}
            self._file.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._seq += 1
        return event

    def close(self) -> None:
        self._file.close()


def read(source: Path | bytes) -> list[Event]:
    """The events of a journal, in order; a torn last line is left out, an absent file is empty.

    Raises UserError, naming the line, when a whole line is not the event that must stand there.
    """
    if isinstance(source, Path):
        name = str(source)
        data = source.read_bytes() if source.exists() else b""
    else:
        name, data = "a journal", source
    events: list[Event] = []
    for number, line in enumerate(_whole_lines(data).split(b"\n")[:-1], start=1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if (
            not isinstance(event, dict)
            or event.get("seq") != number
            or "ts" not in event
            or "type" not in event
        ):
            raise UserError("this line is not the event that belongs here", where=f"{name}:{number}")
        events.append(event)
    return events


def kept(store: Store, run_id: str) -> list[bytes]:
    """The journals of a run's attempts in the store, in order, without empty ones. Raises StoreError."""
    folder = f"runs/{run_id}/journal"
    numbers = [name.removesuffix(".jsonl") for name in store.children(folder) if name.endswith(".jsonl")]
    found = [store.get_bytes(f"{folder}/{n}.jsonl") for n in sorted(filter(str.isdecimal, numbers), key=int)]
    return [data for data in found if data]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and texts: ``params``, as MLflow has them."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def _whole_lines(data: bytes) -> bytes:
    """Without a last line that lacks its end: an append that a crash cut short."""
    return data[: data.rfind(b"\n") + 1]
