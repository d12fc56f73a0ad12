"""What earlier runs of a stage measured, on every machine that shares the store, by their journals in it.

    runs/FAMILY-STAGE-TIME-ID/journal/N.jsonl    found by the beginning of their names, the newest first

MLflow is made from these journals, so that it knows no more, and nothing here imports it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launcher import runs
from launcher.artifacts.store import Store, StoreError, soon
from launcher.lineage import journal
from launcher.lineage.journal import Event
from launcher.money.estimate import STEPS, Past

RUNS = 5
"""So many runs that measured something are enough."""
LOOKED_AT = 20
"""At most so many are looked at."""
PATIENCE_S = 2.0
"""For all of them."""
SAMPLE = 400
"""So many lines of a long journal tell the speed."""
_MODEL = {"recipe", "model", "model_name"}


def past_of(
    store: Store, name: str, config: str, values: Mapping[str, Any], patience: float = PATIENCE_S
) -> tuple[list[Past], list[str]]:
    """What the newest runs of stage ``name`` measured that had this config and the model of its ``values``,
    and in words what was not looked at: nothing waits longer than ``patience`` seconds for a store."""
    family, _, stage = name.partition("/")
    stem, end = runs.stem(family, stage), time.monotonic() + patience
    wanted = {"family": family, "stage": stage, "config": config}
    model = _model(journal.flat(values))
    found: list[Past] = []

    def look() -> None:
        ids = re.compile(rf"{re.escape(stem)}\d{{8}}-\d{{6}}-[0-9a-f]+")  # and not those of STAGE-OTHER
        names = [one.removesuffix("/") for one in store.children("runs", stem)]
        for run_id in list(filter(ids.fullmatch, reversed(names)))[:LOOKED_AT]:
            if len(found) == RUNS:
                return
            if time.monotonic() > end:
                raise TimeoutError  # nobody waits for it any more
            try:
                one = _measured(run_id, journal.kept(store, run_id), wanted, model)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # of another version, or damaged
            if one:
                found.append(one)

    try:
        soon(store, patience, look)
    except StoreError as error:
        less = "not all earlier runs were" if found else "no earlier run was"
        return list(found), [f"{less} looked at: {error.message}"]
    return found, []


def _measured(
    run_id: str, journals: Sequence[bytes], wanted: Mapping[str, str], model: Mapping[str, str]
) -> Past | None:
    """What a run measured where its last attempt ran; None where that is nothing, and for a run of something
    else. Only the lines that tell it are read: a journal may have many megabytes."""
    begun: list[Event] = [json.loads(data[: data.find(b"\n")]) for data in journals]
    if not begun or any(begun[-1]["run"][key] != value for key, value in wanted.items()):
        return None
    params = begun[-1]["params"]
    theirs = _model(params)
    for key in {*model, *theirs}:
        # What differs from node to node, such as a path, says nothing.
        if "$" not in (asked := model.get(key, "")) and asked != theirs.get(key, ""):
            return None
    where = _where(begun[-1])
    alike = [data for data, one in zip(journals, begun, strict=True) if _where(one) == where]
    ends = [_last(data) for data in journals]
    hours = None
    if len(alike) == len(journals) and ends[-1].get("status") == "succeeded":
        hours = sum(map(_hours, begun, ends)) or None
    speeds = sorted(speed for data in alike for speed in _speeds(data))
    speed = speeds[len(speeds) // 2] if speeds else None
    steps = next((int(params[key]) for key in STEPS if params.get(key, "").isdecimal()), None)
    kind, _, each = (where[0] or "").partition(":")
    gpus = int(each or 0) * where[1]
    return Past(run_id, kind or None, gpus, where[1], speed, hours, steps) if speed or hours else None


def _where(started: Event) -> tuple[str | None, int]:
    """The GPUs of each node, as ``H100:8``, and the number of nodes of an attempt."""
    return started["run"]["gpus"], started["place"]["nodes"]


def _hours(started: Event, last: Event) -> float:
    """What an attempt took: one that was killed, to its last event."""
    ended = last["type"] == "attempt_ended"
    return float(last["hours"] if ended else (last["ts"] - started["ts"]) / 3600)


def _last(data: bytes) -> Event:
    """The last event that is whole."""
    end = data.rfind(b"\n")
    return dict(json.loads(data[data.rfind(b"\n", 0, end) + 1 : end]))


def _speeds(data: bytes) -> list[float]:
    """Tokens per second in the later half of an attempt, for the first steps compile and fill caches: by
    lines that lie evenly in its journal."""
    found: list[float] = []
    at, stride = data.find(b"\n") + 1, len(data) // SAMPLE
    while (end := data.find(b"\n", at)) >= 0:
        line = data[data.rfind(b"\n", 0, at) + 1 : end]
        at = max(at + stride, end + 1)
        if b'"tokens_per_second"' in line and (event := json.loads(line))["type"] == "metrics":
            speeds = (one["value"] for one in event["points"] if one["key"] == "tokens_per_second")
            found += [float(speed) for speed in speeds if speed > 0]
    return found[len(found) // 2 :]


def _model(params: Mapping[str, str]) -> dict[str, str]:
    """What of a flat config says which model it is: runs of one config may have others, by an override."""
    return {key: value for key, value in params.items() if _MODEL & set(key.split("."))}
