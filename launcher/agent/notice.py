"""The cloud's notice that it takes this instance away soon, as the instance's own metadata service gives it.

    AWS     two minutes before, with the time            spot/instance-action, by IMDSv2
    GCP     half a minute before, without the time       instance/preempted
    Azure   half a minute before or more, with the time  scheduledevents, EventType Preempt

The service knows, too, whether its instance is on spot: only there it is asked again, as often as its cloud
advises (AWS every 5 s, Azure every second). On other clouds, on Slurm and on this machine nothing is asked.
From: EC2 User Guide, "Spot Instance interruption notices"; Compute Engine, "Create and use preemptible VMs";
Azure Virtual Machines, "Scheduled Events for Linux VMs".
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from launcher.agent.ends import INTERRUPTED, Once, Outcome
from launcher.agent.job import Node
from launcher.agent.rendezvous import Attempt
from launcher.agent.stop import Stop
from launcher.artifacts.deadline import within
from launcher.artifacts.store import StoreError

_LINK_LOCAL = "http://169.254.169.254"
_TIMEOUT_S = 2.0
_STORE_S, _AGAIN_S = 5.0, 1.0  # for one try to tell the other nodes, and until the next
_GCP_S = 30.0
_MOST = 1 << 20  # bytes of an answer
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would answer for itself


class Unanswered(Exception):
    """The service cannot be reached, or what it says is not what its cloud documents."""


@dataclass(frozen=True)
class Service:
    """A cloud's metadata service at the address ``base``, asked every so many seconds. ``spot`` says whether
    the instance is on spot; ``leaves_at`` gets the time, and gives that of the instance's end, None before a
    notice; both in seconds since the epoch. Both raise Unanswered."""

    base: str
    every: float
    spot: Callable[[str], bool]
    leaves_at: Callable[[str, float], float | None]


def service(cloud: str | None) -> Service | None:
    """The service of SkyPilot's ``cloud``, None where there is none that gives notice. Its address is also
    read from where the clouds' own libraries read it."""
    match (cloud or "").lower():
        case "aws":
            base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _LINK_LOCAL
            return Service(base.rstrip("/"), 5.0, aws_spot, aws_leaves_at)
        case "gcp":
            host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
            return Service(f"http://{host}", 1.0, gcp_spot, gcp_leaves_at)
        case "azure":
            return Service(_LINK_LOCAL, 1.0, azure_spot, azure_leaves_at)
    return None


def heed(node: Node, attempt: Attempt, stop: Stop) -> None:
    """When this node's instance is to go, every node of the attempt saves, ends its command and waits."""
    if asked := service(node.place.get("cloud")):
        watch(asked, lambda leaves_at: tell(node.rank, attempt, stop, leaves_at))


def tell(rank: int, attempt: Attempt, stop: Stop, leaves_at: float) -> None:
    """Node ``rank`` goes at ``leaves_at``: say so to all nodes, and only then stop here. A command elsewhere
    that ends with this one's must find why; and without the store nothing could be committed."""
    clock = datetime.fromtimestamp(leaves_at, UTC).strftime("%H:%M:%S")
    why = Outcome("interrupted", INTERRUPTED, f"the cloud takes node {rank} away at {clock} UTC")
    while True:
        try:
            within(_STORE_S, lambda: attempt.stop(why.status, why.code, why.reason, leaves_at))
            break
        except (StoreError, TimeoutError):
            time.sleep(_AGAIN_S)
    stop.ask(why, leaves_at)


def watch(asked: Service, told: Callable[[float], None]) -> threading.Thread:
    """Ask in a thread until there is a notice, and tell when the instance goes. On-demand it ends at once."""

    def ask() -> None:
        spot, trouble = False, Once()
        while True:
            try:
                if not spot and not asked.spot(asked.base):
                    return
                spot = True
                if (leaves_at := asked.leaves_at(asked.base, time.time())) is not None:
                    told(leaves_at)
                    return
                trouble.over()
            except Unanswered as error:
                trouble.trouble(f"a notice of preemption would not be seen now: {error}")
            time.sleep(asked.every)

    thread = threading.Thread(target=ask, name="notice", daemon=True)
    thread.start()
    return thread


def aws_spot(base: str) -> bool:
    return _aws(base, "instance-life-cycle") == "spot"


def aws_leaves_at(base: str, now: float) -> float | None:
    text = _aws(base, "spot/instance-action")
    if text is None:
        return None
    try:
        return (
            datetime.strptime(json.loads(text)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
        )
    except (ValueError, TypeError, KeyError) as error:
        raise _unclear("spot/instance-action", text) from error


def _aws(base: str, item: str) -> str | None:
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(f"{base}/latest/api/token", ttl, "PUT")
    return _ask(f"{base}/latest/meta-data/{item}", {"X-aws-ec2-metadata-token": token or ""})


def gcp_spot(base: str) -> bool:
    return _gcp(base, "scheduling/preemptible")


def gcp_leaves_at(base: str, now: float) -> float | None:
    return now + _GCP_S if _gcp(base, "preempted") else None


def _gcp(base: str, item: str) -> bool:
    text = _ask(f"{base}/computeMetadata/v1/instance/{item}", {"Metadata-Flavor": "Google"})
    if text not in ("TRUE", "FALSE"):
        raise _unclear(item, text)
    return text == "TRUE"


def azure_spot(base: str) -> bool:
    # What SkyPilot launches on-demand has no priority at all.
    return _azure(base, "instance/compute/priority?api-version=2021-02-01&format=text") == "Spot"


def azure_leaves_at(base: str, now: float) -> float | None:
    """The first that is preempted of the events, which name every instance of a set: each of them is a node
    of this run. One without a time has begun."""
    text = _azure(base, "scheduledevents?api-version=2020-07-01")
    try:
        events = [event for event in json.loads(text or "")["Events"] if event["EventType"] == "Preempt"]
        times = [str(event["NotBefore"] or "") for event in events]
        return min((parsedate_to_datetime(one).timestamp() if one else now for one in times), default=None)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise _unclear("scheduledevents", text) from error


def _azure(base: str, item: str) -> str | None:
    return _ask(f"{base}/metadata/{item}", {"Metadata": "true"})


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """What the service answers, None when it has no such item."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with _DIRECT.open(request, timeout=_TIMEOUT_S) as reply:
            return str(reply.read(_MOST).decode(errors="replace")).strip()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        raise Unanswered(f"{url} answers {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unanswered(f"{url}: {getattr(error, 'reason', error)}") from error


def _unclear(item: str, text: str | None) -> Unanswered:
    return Unanswered(f"{item} is {text[:80] if text else 'not there'!r}")
