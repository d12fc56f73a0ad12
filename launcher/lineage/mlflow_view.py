"""What MLflow shows of a run: its journal's events, each applied once.

    experiment FAMILY, or the NAME of --experiment or of a sweep
    └── run RUN_ID                 parameters, metrics, system metrics, inputs, outputs, provenance
        ├── attempt 1              where it ran, its price, cost and end
        └── attempt 2

How far the journal of attempt K has been applied stands on the run as the tag ``nemo_sky.seq.K``. A crash
between an event and that tag applies the event again, so every write here is one that may be repeated.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.artifacts.manifest import Manifest
from launcher.artifacts.store import Store
from launcher.artifacts.uri import SCHEME, parse_ref
from launcher.errors import Refused, UserError
from launcher.lineage import mlflow_sweeps
from launcher.lineage.journal import Event
from launcher.lineage.mlflow_artifacts import (
    RUN_TAG,
    Known,
    LookUp,
    ensure,
    experiment,
    find_run,
    get_alias,
    look_up_in,
    of_manifest,
    register,
    set_alias,
)
from launcher.lineage.mlflow_client import check, connected

__all__ = ["apply", "check", "costs", "get_alias", "knows", "links", "register", "set_alias"]

ATTEMPT_OF = "nemo_sky.attempt_of"
ATTEMPT = "nemo_sky.attempt"
CURSOR = "nemo_sky.seq"

# MLflow's limits (mlflow/utils/validation.py): 1000 things in one call, of them 100 params and 100 tags.
_METRICS_AT_ONCE = 900
_PARAMS_AT_ONCE = 100
_TAGS_AT_ONCE = 100
_KEY_LENGTH = 250
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000
_DIGEST_LENGTH = 36
_CUT = " ...[cut]"

_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "cancelled": "KILLED",
           "budget reached": "KILLED", "deadline reached": "KILLED"}  # fmt: skip
# Where MLflow's own UI looks for what a run's provenance says.
_OWN_TAGS = {"git_sha": "mlflow.source.git.commit", "user": "mlflow.user", "command": "mlflow.source.name"}


@dataclass(frozen=True)
class _Run:
    """Where the events of one attempt go."""

    client: Any
    tracking: str
    experiment_id: str
    run: str
    child: str
    attempt: int
    look_up: LookUp


def apply(events: Sequence[Event], *, tracking: str, run_id: str, store: Store | None = None) -> str:
    """Bring MLflow up to date with the journal of one attempt; returns MLflow's id of the run.

    ``events`` is the journal from its first event on; what was applied before is skipped. ``store`` tells
    what earlier versions of an artifact are that MLflow has not seen. Raises Refused when MLflow cannot
    be used, UserError when the events are not a journal.
    """
    if not events or events[0]["type"] != "attempt_started" or events[0]["seq"] != 1:
        raise UserError(f"the journal of run {run_id} does not begin with attempt_started")
    with connected(tracking) as client:
        place = _open(client, tracking, run_id, events[0], look_up_in(store))
        tags = client.get_run(place.run).data.tags
        done = int(tags.get(f"{CURSOR}.{place.attempt}", 0))
        for group in _groups(event for event in events if event["seq"] > done):
            _apply(place, group)
        return place.run


def knows(tracking: str, run_id: str) -> bool:
    """Whether MLflow shows the run at all."""
    with connected(tracking) as client:
        return find_run(client, run_id) is not None


def links(tracking: str, run_id: str) -> dict[str, str]:
    """The run's page in MLflow's own UI as ``{"mlflow": URL}``: nothing where the tracker is a file, does not
    answer or does not know the run."""
    if not tracking.startswith(("http://", "https://")):
        return {}
    try:
        with connected(tracking) as client:
            run = find_run(client, run_id)
            if run is None:
                return {}
            home = client.get_run(run).info.experiment_id
    except Refused:
        return {}
    return {"mlflow": f"{tracking.rstrip('/')}/#/experiments/{home}/runs/{run}"}


def costs(dollars: Mapping[int, float], total: float, *, tracking: str, run_id: str) -> None:
    """Show what the ledger says: dollars by attempt, from the launch of its nodes to their end, and of the
    whole run. It knows the cost of an attempt that was killed and of the nodes' set-up; an agent's own word
    ends with the agent. What MLflow shows already is not written again.
    """
    with connected(tracking) as client:
        run = find_run(client, run_id)
        if run is None:
            return
        home = client.get_run(run).info.experiment_id
        children = _children(client, home, run_id)
        for number, child in children.items():
            if number in dollars:
                _cost(client, child.info.run_id, "cost_usd", dollars[number], number)
        _cost(client, run, "nemo_sky.cost_usd", total, max(children, default=0))


def _cost(client: Any, run: str, tag: str, dollars: float, step: int) -> None:
    if client.get_run(run).data.metrics.get("cost_usd") != dollars:
        client.log_metric(run, "cost_usd", dollars, step=step)
        client.set_tag(run, tag, dollars)


def _groups(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Neighbouring events that only hold metrics go together, as far as one call takes them."""
    group: list[Event] = []
    for event in events:
        alike = event["type"] in ("metrics", "system")
        if group and (not alike or sum(len(item["points"]) for item in group) >= _METRICS_AT_ONCE):
            yield group
            group = []
        group.append(event)
        if not alike:
            yield group
            group = []
    if group:
        yield group


def _apply(place: _Run, group: list[Event]) -> None:
    event = group[0]
    match event["type"]:
        case "metrics" | "system":
            _log(place, place.run, metrics=[point for item in group for point in _points(item)])
        case "attempt_started":
            _started(place, event)
        case "checkpoint":
            _checkpoint(place, event)
        case "restored":
            _log(place, place.child, tags={"restored.step": event["step"], "restored.uri": event["uri"]})
        case "interrupted":
            _log(place, place.child, tags={"interrupted": event["signal"]})
        case "notice":
            _log(place, place.child, tags={"notice": event["reason"]})
        case "output":
            _output(place, event)
        case "attempt_ended":
            _ended(place, event)
        case unknown:
            raise UserError(f"event {event['seq']} of the journal has the unknown type {unknown!r}")
    _log(place, place.run, tags={f"{CURSOR}.{place.attempt}": group[-1]["seq"]})


def _open(client: Any, tracking: str, run_id: str, started: Event, look_up: LookUp) -> _Run:
    """Find or make the run and the attempt's run."""
    about = started["run"]
    home = experiment(client, tracking, str(about.get("experiment") or about.get("family") or "nemo-sky"))
    attempt = int(started["attempt"])
    begun = _milliseconds(started["ts"])
    own = {"mlflow.user": str(about["user"])} if about.get("user") else {}
    run = find_run(client, run_id)
    if run is None:
        name = about.get("sweep")
        of = {"mlflow.parentRunId": mlflow_sweeps.parent(client, home, str(name), begun, own)} if name else {}
        run = _make(client, home, begun, run_id, {RUN_TAG: run_id, **of, **own})
    child = _child(client, home, run_id, attempt) or _make(
        client,
        home,
        begun,
        f"{run_id} attempt {attempt}",
        {"mlflow.parentRunId": run, ATTEMPT_OF: run_id, ATTEMPT: str(attempt), **own},
    )
    return _Run(client, tracking, home, run, child, attempt, look_up)


def _make(client: Any, home: str, begun: int, name: str, tags: dict[str, str]) -> str:
    return str(client.create_run(home, start_time=begun, tags=tags, run_name=name).info.run_id)


def _children(client: Any, home: str, run_id: str) -> dict[int, Any]:
    """The attempts' runs by number."""
    found = client.search_runs([home], f"tags.`{ATTEMPT_OF}` = '{run_id}'")
    return {int(child.data.tags[ATTEMPT]): child for child in found}


def _child(client: Any, home: str, run_id: str, attempt: int) -> str | None:
    child = _children(client, home, run_id).get(attempt)
    return str(child.info.run_id) if child else None


def _started(place: _Run, event: Event) -> None:
    about = {**event["run"], **(event["run"].get("provenance") or {})}
    tags: dict[str, Any] = {"mlflow.source.type": "JOB"}
    for key, value in about.items():
        if key in _OWN_TAGS and value is not None:
            tags[_OWN_TAGS[key]] = value
        elif key == "versions" and isinstance(value, Mapping):
            tags |= {f"version.{name}": number for name, number in value.items()}
        elif key not in ("run_id", "provenance") and value is not None:
            tags[f"nemo_sky.{key}"] = value
    _log(place, place.run, tags=tags)
    where = {f"place.{key}": value for key, value in (event.get("place") or {}).items() if value is not None}
    price = event.get("price_per_hour")
    _log(place, place.child, tags={**where, "price_per_hour": "unknown" if price is None else price})
    _params(place, event.get("params") or {})
    _inputs(place, event.get("inputs") or [])
    others = _children(place.client, place.experiment_id, _run_id(place))
    for number, child in others.items():
        if number < place.attempt and child.info.status == "RUNNING":
            # Its agent was killed: nothing more will come from it.
            place.client.set_terminated(child.info.run_id, "KILLED", _milliseconds(event["ts"]))
    if place.attempt == max(others):
        place.client.update_run(place.run, status="RUNNING")


def _params(place: _Run, params: Mapping[str, Any]) -> None:
    """MLflow's parameters never change, so what a later attempt has otherwise stands on the attempt."""
    wanted = {_key(key): _cut(_text(value), _PARAM_LENGTH) for key, value in params.items()}
    known = place.client.get_run(place.run).data.params
    _log(place, place.run, params={key: value for key, value in wanted.items() if key not in known})
    changed = {key: value for key, value in wanted.items() if key in known and known[key] != value}
    _log(place, place.child, params=changed)


def _inputs(place: _Run, inputs: Sequence[Mapping[str, Any]]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

    models, datasets, tags = [], [], {}
    for item in inputs:
        uri = str(item["uri"])
        kind, digest = str(item.get("type") or ""), str(item.get("digest") or "")
        source = str(item.get("base_uri") or uri)
        if uri.startswith(SCHEME):
            ref = parse_ref(uri)
            if ref.version is None:
                raise UserError(f"input {item['name']}: {uri} is not pinned to a version")
            known = place.look_up(ref.name, ref.version) or Known(ref.name, ref.version, kind, digest, source)
            model = ensure(place.client, place.tracking, known, place.experiment_id, place.look_up)
            models.append(LoggedModelInput(model_id=model))
            tags[f"art.in.{ref.name}"] = f"v{ref.version}"
        if kind != "model":
            dataset = Dataset(
                name=_cut(uri.removeprefix(SCHEME), 500),
                digest=(digest or "unknown")[:_DIGEST_LENGTH],
                source_type="s3" if source.startswith("s3://") else "local",
                source=json.dumps({"uri": source}),
                profile=json.dumps({"type": kind, "digest": digest}),
            )
            datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", str(item["name"]))]))
    if models or datasets:
        place.client.log_inputs(place.run, datasets=datasets, models=models)
    _log(place, place.run, tags=tags)


def _checkpoint(place: _Run, event: Event) -> None:
    step, when = int(event["step"]), _milliseconds(event["ts"])
    sizes = [("checkpoint/bytes", event.get("bytes")), ("checkpoint/seconds", event.get("seconds"))]
    points = [(key, float(value), when, step) for key, value in sizes if value is not None]
    newest = int(place.client.get_run(place.run).data.tags.get("checkpoint.step", -1))
    tags = {"checkpoint.step": step, "checkpoint.uri": event["uri"]} if step >= newest else {}
    _log(place, place.run, metrics=points, tags=tags)


def _output(place: _Run, event: Event) -> None:
    from mlflow.entities import LoggedModelOutput

    manifest = Manifest.from_json(json.dumps(event["manifest"]), "the output in the journal")
    known = place.look_up(manifest.name, manifest.version) or of_manifest(manifest, None)
    model = ensure(place.client, place.tracking, known, place.experiment_id, place.look_up)
    outputs = place.client.get_run(place.run).outputs
    if model not in [item.model_id for item in (outputs.model_outputs if outputs else [])]:
        step = manifest.metadata.get("step")
        place.client.log_outputs(place.run, [LoggedModelOutput(model, step if isinstance(step, int) else 0)])
    _log(place, place.run, tags={f"art.out.{manifest.name}": f"v{manifest.version}"})


def _ended(place: _Run, event: Event) -> None:
    when, status = _milliseconds(event["ts"]), _STATUS.get(str(event["status"]), "FAILED")
    cost, hours = event.get("cost_usd"), event.get("hours")
    facts = {key: event.get(key) for key in ("status", "exit_code", "reason")}
    tags = {key: value for key, value in facts.items() if value is not None}
    tags["cost_usd"] = "unknown" if cost is None else cost
    numbers = [("hours", hours), ("cost_usd", cost)]
    points = [(key, float(value), when, place.attempt) for key, value in numbers if value is not None]
    _log(place, place.child, metrics=points, tags=tags)
    place.client.set_terminated(place.child, status, when)
    attempts = _children(place.client, place.experiment_id, _run_id(place))
    costs = [child.data.metrics.get("cost_usd") for child in attempts.values()]
    known = [value for value in costs if value is not None]
    if known:
        total = round(sum(known), 6)
        points = [("cost_usd", total, when, place.attempt)]
        _log(place, place.run, metrics=points, tags={"nemo_sky.cost_usd": total})
    if place.attempt == max(attempts):
        _log(place, place.run, tags={"nemo_sky.status": event["status"]})
        place.client.set_terminated(place.run, status, when)


def _run_id(place: _Run) -> str:
    return str(place.client.get_run(place.child).data.tags[ATTEMPT_OF])


def _points(event: Event) -> Iterator[tuple[str, float, int, int]]:
    """(key, value, milliseconds, step) of each point; system metrics are named as MLflow's UI expects."""
    prefix = "system/" if event["type"] == "system" else ""
    for point in event["points"]:
        key = str(point["key"])
        named = key if key.startswith(prefix) else prefix + key
        when = _milliseconds(point.get("ts") or event["ts"])
        yield _key(named), float(point["value"]), when, int(point.get("step") or 0)


def _log(
    place: _Run,
    run: str,
    *,
    metrics: Sequence[tuple[str, float, int, int]] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, Any] | None = None,
) -> None:
    """Write in as many calls as MLflow's limits ask for."""
    from mlflow.entities import Metric, Param, RunTag

    for rows in _chunks(metrics, _METRICS_AT_ONCE):
        points = [Metric(key, value, when, step) for key, value, when, step in rows]
        place.client.log_batch(run, metrics=points)
    for pairs in _chunks(list((params or {}).items()), _PARAMS_AT_ONCE):
        place.client.log_batch(run, params=[Param(key, value) for key, value in pairs])
    for marks in _chunks(list((tags or {}).items()), _TAGS_AT_ONCE):
        texts = [RunTag(_key(key), _cut(_text(value), _TAG_LENGTH)) for key, value in marks]
        place.client.log_batch(run, tags=texts)


def _chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _key(name: str) -> str:
    """The name with what MLflow refuses in one replaced; its parts between slashes form a clean path."""
    plain = posixpath.normpath(re.sub(r"[^\w./ :-]", "_", name)).strip("/")
    return "_" if plain in ("", ".") or plain.startswith("..") else plain[:_KEY_LENGTH]


def _text(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else json.dumps(value)
        if isinstance(value, (dict, list))
        else str(value)
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - len(_CUT)] + _CUT


def _milliseconds(when: float) -> int:
    """Since the epoch. Journals have seconds; what a script wrote as milliseconds is taken as such."""
    return int(when if when > 1e11 else when * 1000)
