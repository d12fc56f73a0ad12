"""SkyPilot's Python SDK, 0.14, as far as we use it: names in, plain values out.

Every call may start SkyPilot's local API server (10 s); a remote one is used when SkyPilot's own
configuration names it. ``import sky`` costs 1.5 s, so nothing here is imported before it is needed.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from launcher.errors import Refused, UserError

REQUESTS = 1000
"""How many of the server's newest requests are looked through for one of ours."""
CLOCKS_S = 60.0
"""By how much the clocks of this machine and of the server may differ."""
# SkyPilot's words for the state of a job, as ours. Setting up is the node's part of preparing.
_JOB = {
    "INIT": "SETUP",
    "PENDING": "SETUP",
    "SETTING_UP": "SETUP",
    "RUNNING": "RUNNING",
    "SUCCEEDED": "SUCCEEDED",
    "FAILED": "FAILED",
    "FAILED_SETUP": "FAILED",
    "FAILED_DRIVER": "FAILED",
    "CANCELLED": "CANCELLED",
}
_MANAGED = {
    "PENDING": "PENDING",
    "SUBMITTED": "PENDING",
    "STARTING": "SETUP",
    "RUNNING": "RUNNING",
    "WINDING_DOWN": "RUNNING",
    "RECOVERING": "RECOVERING",
    "CANCELLING": "RUNNING",
    "SUCCEEDED": "SUCCEEDED",
    "CANCELLED": "CANCELLED",
    # The controller died and nobody watches the job: launching the run again takes it up.
    "FAILED_CONTROLLER": "LOST",
}
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Job:
    """A run as SkyPilot sees it. ``status`` None: there is a cluster, but no job on it.

    ``price_per_hour`` is dollars for all nodes by SkyPilot's catalog, None when it knows none.
    """

    status: str | None
    reason: str | None = None
    recoveries: int = 0
    job_id: int | None = None
    cluster: str | None = None
    place: Mapping[str, Any] = field(default_factory=dict)
    price_per_hour: float | None = None


@dataclass(frozen=True)
class RequestState:
    """SkyPilot's own status of one request, and its error."""

    status: str
    error: str | None


class Unanswered(Refused):
    """SkyPilot's answer did not come: it may have done what it was asked, or not."""


_printing = threading.Lock()
_printers: list[Any] = []
"""One entry per call that is on: the real stdout, which the last one to end restores."""


@contextmanager
def _to_stderr() -> Iterator[None]:
    """What is printed goes to stderr; ``contextlib.redirect_stdout`` in two threads could leave it there."""
    with _printing:
        _printers.append(_printers[0] if _printers else sys.stdout)
        sys.stdout = sys.stderr
    try:
        yield
    finally:
        with _printing:
            kept = _printers.pop()
            if not _printers:
                sys.stdout = kept


@contextmanager
def calls() -> Iterator[Any]:
    """Give the SDK; what it prints goes to stderr, and what it raises becomes Refused. Threads may call."""
    # Its loggers keep the stream that they find when they are imported.
    with _to_stderr():
        try:
            import sky
        except ImportError as error:
            raise Refused(
                "SkyPilot is not installed", hint="pip install 'nemo-sky[sky]', or launch with --cloud local"
            ) from error
        try:
            yield sky
        except UserError:
            raise
        except Exception as error:  # whatever a server somewhere raised arrives here as itself
            kind = Unanswered if _is_unanswered(error) else Refused
            raise kind(f"SkyPilot: {said(error)}", hint=_advice(error)) from error


def _is_unanswered(error: Exception) -> bool:
    """SkyPilot posts a launch once and waits five seconds for its answer (client/sdk.py of 0.14)."""
    import requests

    if isinstance(error, requests.HTTPError):  # a proxy gave up on the server
        return error.response is not None and error.response.status_code in (502, 504)
    lost = isinstance(error, (requests.ConnectionError, requests.Timeout))
    return lost and not isinstance(error, requests.ConnectTimeout)


def enabled_clouds(cloud: str | None) -> list[str]:
    """The clouds that SkyPilot has working credentials for, as profiles write them.

    It remembers what it last found; ``cloud``, or all when it knows of none, is checked anew (seconds).
    """
    with calls() as sky:
        from sky.client import sdk

        found = _plain_names(sky.get(sdk.enabled_clouds()))
        if (cloud and cloud not in found) or not found:
            by_workspace = sky.get(sdk.check((cloud,) if cloud else None, verbose=False))
            found |= _plain_names(name for clouds in by_workspace.values() for name in clouds)
    return sorted(found)


def plugins() -> dict[str, str]:
    """The plugins that the API server has loaded, their versions by name. Starts no server."""
    with calls():
        from sky.server import common

        reply = common.make_authenticated_request("GET", "/api/plugins", retry=False, timeout=10)
        reply.raise_for_status()
        found = reply.json()["plugins"]
    return {str(item["name"]): str(item.get("version") or "") for item in found if item.get("name")}


def is_local() -> bool:
    """Whether the API server is one of this machine."""
    with calls():
        from sky.server import common

        return bool(common.is_api_server_local())


def is_consolidated() -> bool:
    """Whether this machine's configuration runs managed jobs inside the API server."""
    with calls():
        from sky import skypilot_config

        return bool(skypilot_config.get_nested(("jobs", "controller", "consolidation_mode"), False))


def active_managed_jobs() -> list[str]:
    """The names of the managed jobs that have not ended."""
    with calls() as sky:
        try:
            fields = ["job_id", "job_name", "status"]
            records, *_ = sky.get(sky.jobs.queue_v2(refresh=False, skip_finished=True, fields=fields))
        except sky.exceptions.ClusterNotUpError:
            return []
    return sorted({str(record["job_name"]) for record in records})


def _plain_names(clouds: Iterable[object]) -> set[str]:
    return {str(cloud).split("/")[0].lower() for cloud in clouds}


def launch(name: str, tasks: Sequence[tuple[Mapping[str, Any], Mapping[str, str]]], managed: bool) -> str:
    """Ask for a launch under ``name``; the request's id. Several tasks are a pipeline, which must be
    managed. Each comes with its secrets, whose values go nowhere else than to SkyPilot.

    Raises Unanswered when SkyPilot may have taken it all the same; see ``request_for``.
    """
    with calls() as sky:
        built = [
            sky.Task.from_yaml_config({**task, "secrets": dict(secrets)} if secrets else dict(task))
            for task, secrets in tasks
        ]
        if not managed:
            return str(sky.launch(built[0], cluster_name=name))
        with sky.Dag() as chain:
            for before, task in zip([None, *built], built, strict=False):
                chain.add(task)
                if before:
                    chain.add_edge(before, task)
        return str(sky.jobs.launch(chain, name=name))


def request_state(request: str) -> RequestState | None:
    """The state of a request, None when the server has forgotten it."""
    with calls() as sky:
        found = sky.api_status(request_ids=[request])
        if not found:
            return None
        status = str(found[0].status)
        return RequestState(status, _why_it_failed(sky, request) if status == "FAILED" else None)


def request_for(name: str, managed: bool, since: float) -> str | None:
    """The id of the newest request to launch ``name``, not older than ``since`` (epoch seconds), for whoever
    did not get it. None when the server knows of none."""
    with calls() as sky:
        found = sky.api_status(all_status=True, limit=REQUESTS)
    wanted = "jobs.launch" if managed else "launch"
    mine = [
        item
        for item in found
        if item.name.removeprefix("sky.") == wanted
        and item.created_at >= since - CLOCKS_S
        and name == (_name_in(item.request_body) if managed else item.cluster_name)
    ]
    return str(max(mine, key=lambda item: item.created_at).request_id) if mine else None


def _name_in(body: str | None) -> str | None:
    """The managed job's name in the body of its launch request."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        found = json.loads(body or "").get("name")
        return None if found is None else str(found)
    return None


def cluster_job(name: str) -> Job | None:
    """The newest job of the cluster ``name``; None when there is no such cluster.

    One that is up in SkyPilot's books is asked for its jobs at once: that looks whether it is still there
    (``check_cluster_available`` in ``core.queue`` of 0.14.1), and a look takes seconds on a node.
    """
    with calls() as sky:
        record = _cluster(sky, name, "NONE")
        if record and record["status"].value != "UP":
            record = _cluster(sky, name, "AUTO")
        if record is None:
            return None
        here = Job(
            None,
            reason=record.get("init_status_reason"),
            cluster=name,
            place=_place(record["cloud"], record["region"], _zone(record), record["nodes"]),
            price_per_hour=_price(record["handle"]),
        )
        if record["status"].value != "UP":
            return here
        try:
            jobs = sky.get(sky.queue(name, all_users=True))
        except _absent(sky):
            return here if _cluster(sky, name, "NONE") else None
        except sky.exceptions.CommandError:
            # So it is seen when the node goes while it answers: the cloud itself knows.
            now = _cluster(sky, name, "FORCE")
            if now and now["status"].value == "UP":
                raise
            return here if now else None
    if not jobs:
        return here
    newest = max(jobs, key=lambda job: job["job_id"])
    status = newest["status"].value
    reason = None if status in ("SUCCEEDED", "RUNNING") else f"its job is {status} on {name}"
    return replace(here, status=_JOB[status], reason=reason, job_id=newest["job_id"])


def _cluster(sky: Any, name: str, refresh: str) -> Any:
    """SkyPilot's record of a cluster, refreshed by this ``StatusRefreshMode``; None without one."""
    found = sky.get(sky.status(cluster_names=[name], refresh=sky.StatusRefreshMode[refresh]))
    return found[0] if found else None


def managed_job(name: str, task: int = 0) -> Job | None:
    """The newest managed job called ``name``, of a pipeline its stage ``task``; None when there is none."""
    fields = ["job_id", "task_id", "job_name", "status", "recovery_count", "failure_reason"]
    fields += ["cloud", "region", "zone", "infra", "current_cluster_name", "user_hash", "schedule_state"]
    with calls() as sky:
        try:
            records, *_ = sky.get(sky.jobs.queue_v2(refresh=False, name_match=name, fields=fields))
        except sky.exceptions.ClusterNotUpError:
            return None  # there was never a jobs controller
    mine = [record for record in records if record["job_name"] == name and record["task_id"] == task]
    if not mine:
        return None
    record = max(mine, key=lambda item: item["job_id"])
    status = record["status"].value
    return Job(
        _MANAGED.get(status, "FAILED"),
        reason=record.get("failure_reason") or (None if status in _MANAGED else status),
        recoveries=record.get("recovery_count") or 0,
        job_id=record["job_id"],
        cluster=record.get("current_cluster_name"),
        place=_place(record.get("cloud"), record.get("region"), record.get("zone"), None),
    )


def withdraw(request: str) -> None:
    """Cancel a request that is not carried out yet. One that is finished stays so."""
    with calls() as sky, contextlib.suppress(sky.exceptions.RequestCancelled):
        sky.get(sky.api_cancel([request], silent=True))


def cancel_cluster_job(name: str) -> None:
    """Stop what runs on the cluster; it may be gone already."""
    with calls() as sky, contextlib.suppress(*_absent(sky)):
        sky.get(sky.cancel(name, all=True))


def cancel_managed(name: str) -> None:
    """Ask for the end of every managed job called ``name``."""
    job = managed_job(name)
    if job and job.job_id is not None:
        with calls() as sky:
            sky.get(sky.jobs.cancel(job_ids=[job.job_id]))


def down(name: str) -> None:
    """Take the cluster ``name`` down and return when it is; it may be gone already."""
    with calls() as sky, contextlib.suppress(*_absent(sky)):
        sky.get(sky.down(name))


def server() -> str:
    """The address of the API server that SkyPilot uses now, without a user and a password."""
    with calls():
        from sky.server import common

        parts = urlsplit(str(common.get_server_url()).rstrip("/"))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def links(name: str, job: Job | None) -> dict[str, str]:
    """Where to look at the run in SkyPilot's dashboard."""
    url = server()
    if job and job.job_id is not None and job.cluster != name:
        return {"skypilot": f"{url}/dashboard/jobs/{job.job_id}"}
    return {"skypilot": f"{url}/dashboard/clusters/{name}"}


def _absent(sky: Any) -> tuple[type[Exception], ...]:
    return (sky.exceptions.ClusterDoesNotExist, sky.exceptions.ClusterNotUpError)


def _place(cloud: Any, region: Any, zone: Any, nodes: Any) -> dict[str, Any]:
    found = {"cloud": str(cloud).lower() if cloud else None, "region": region, "zone": zone, "nodes": nodes}
    return {key: value for key, value in found.items() if value and value != "-"}


def _zone(record: Any) -> str | None:
    resources = getattr(record["handle"], "launched_resources", None)
    return getattr(resources, "zone", None)


def _price(handle: Any) -> float | None:
    """By SkyPilot's own catalog, which answers 0 for a place that it knows no price of."""
    try:
        price = handle.launched_resources.get_cost(3600) * handle.launched_nodes
    except Exception:  # a place without a catalog raises whatever it likes
        return None
    return round(float(price), 4) or None


def _why_it_failed(sky: Any, request: str) -> str | None:
    """What a failed request raised; the list of requests leaves it out (``readable_encode`` of 0.14.1)."""
    try:
        sky.get(request)
    except Exception as error:  # whatever a server somewhere raised arrives here as itself
        return said(error)
    return None


def said(error: Exception) -> str:
    """An error in SkyPilot's own words, without their colours."""
    text = ANSI.sub("", str(error)).strip()
    return text or type(error).__name__


def _advice(error: Exception) -> str:
    text, kind = str(error), type(error).__name__
    if kind in ("ApiServerConnectionError", "ConnectionError"):
        return "`sky api info` shows which API server is used; `sky api start` starts one here"
    if kind == "NoCloudAccessError" or "not enabled" in text:
        return "`sky check` says which clouds have credentials, `nemo-sky doctor` how to mend it"
    if kind == "ResourcesUnavailableError":
        return "another --region, --gpus or --cloud may have room; a managed job (--managed) waits for it"
    return "`nemo-sky doctor` checks the set-up"
