"""The rig's AWS: moto's EC2, IAM, STS and S3 in one process with the machines behind its instances.

    python -m tests.rigs.aws.cloud FOLDER

The process reads FOLDER/cloud.json, serves the AWS API on the bridge's gateway address, and boots or kills a
machine whenever an instance's state says so. It writes FOLDER/ready once it serves. The machines die with it.
Under ``/_rig/`` it takes the test's orders, which no AWS has: preempt, capacity, hold, silence.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.e2e.s3 import step_committed_by
from tests.rigs.aws import catalogs, image, seed
from tests.rigs.aws.machine import Machine
from tests.rigs.aws.metadata import Facts
from tests.rigs.aws.network import Network, make_bridge, remove_bridge

ORDERS = "/_rig/"  # no bucket can have this name
POLL_S = 0.1
_ACCOUNT = "123456789012"  # moto's default
_NO_CAPACITY = """<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code><Message>We currently do not have \
sufficient capacity in the Availability Zone you requested ({zone}).</Message></Error></Errors>\
<RequestID>rig</RequestID></Response>"""

Start = Callable[[str, list[tuple[str, str]]], Any]


@dataclass(frozen=True)
class Settings:
    """FOLDER/cloud.json. ``grace_s``: seconds from a spot notice to the end, 120 on AWS itself."""

    bridge: str
    block: str
    port: int
    bucket: str
    grace_s: float

    @property
    def network(self) -> Network:
        return Network(self.bridge, self.block)

    @property
    def endpoint(self) -> str:
        return f"http://{self.network.gateway}:{self.port}"


class Cloud:
    """What the orders change and the loop acts on. Machines are touched by the loop alone."""

    def __init__(self, folder: Path, settings: Settings, disk: image.Image) -> None:
        self._folder = folder
        self._settings = settings
        self._image = disk
        self._machines: dict[str, Machine] = {}
        self._ends: dict[str, float] = {}  # instance id -> when it is preempted, epoch seconds
        self._full: set[str] = set()  # zones without capacity; "ZONE spot": without spot instances
        self._failed: dict[str, str] = {}
        self._held: int | None = None  # from this step on, no checkpoint is committed to S3
        self._reached: str | None = None  # the first of them that was held
        self._silent = False  # S3 answers nobody

    def lets_pass(self, method: str, path: str) -> bool:
        """Whether S3 is to see a request. One that is held back waits here until the order is withdrawn."""
        least, step = self._held, step_committed_by(path)
        if method == "PUT" and least is not None and step is not None and step >= least:
            self._reached = self._reached or path
            while self._held == least:
                time.sleep(POLL_S)
            return False
        return not self._silent

    def no_capacity(self, zone: str, spot: bool) -> bool:
        return zone in self._full or (spot and f"{zone} spot" in self._full)

    def order(self, name: str, wanted: dict[str, Any]) -> object:
        """Carry out one order of the test; what it answers."""
        if name == "alive":
            return True
        if name == "preempt":
            grace_s = (wanted["grace_s"] or self._settings.grace_s) if wanted["notice"] else 0.0
            if machine := self._machines.get(wanted["instance"]):
                if wanted["notice"]:
                    machine.notice = datetime.now(UTC) + timedelta(seconds=grace_s)
                self._ends[wanted["instance"]] = time.time() + grace_s
            return machine is not None
        if name == "capacity":
            (self._full.discard if wanted["ok"] else self._full.add)(wanted["zone"])
            return True
        if name == "hold":
            self._held, self._reached = wanted["step"], None
            return True
        if name == "reached":
            return self._reached
        if name == "silence":
            self._silent = bool(wanted["silent"])
            return True
        if name == "instances":
            return [self._describe(instance) for instance in _instances()]
        raise KeyError(name)

    def step(self) -> None:
        """Make the machines what the instances say. Ends come first: moto gives an address again at once."""
        for instance_id, end in list(self._ends.items()):
            if time.time() >= end:
                del self._ends[instance_id]
                if machine := self._machines.get(instance_id):  # else it was terminated meanwhile
                    machine.kill()
                    _backend(machine.facts.region).terminate_instances([instance_id])
        states = {instance.id: instance for instance in _instances()}
        for instance_id, machine in list(self._machines.items()):
            state = states[instance_id]._state.name if instance_id in states else "terminated"
            if state in ("stopping", "stopped"):
                machine.kill()
            elif state in ("shutting-down", "terminated"):
                machine.delete()
                del self._machines[instance_id]
        for instance_id, instance in states.items():
            if instance._state.name == "running" and instance_id not in self._failed:
                self._boot(instance)

    def close(self) -> None:
        for machine in self._machines.values():
            machine.delete()

    def _boot(self, instance: Any) -> None:
        machine = self._machines.get(instance.id)
        if machine is None:
            facts = Facts(
                instance.id,
                instance.instance_type,
                instance._placement.zone,
                instance.private_ip,
                instance.lifecycle == "spot",
            )
            folder = self._folder / "machines" / instance.id
            machine = Machine(folder, self._settings.network, self._image, facts)
            self._machines[instance.id] = machine
        if not machine.running:
            try:
                machine.start(_user_data(instance), self._settings.endpoint)
                print(f"{time.time():.1f} booted {instance.id} {instance.private_ip}", flush=True)
            except Exception as error:
                self._failed[instance.id] = str(error)  # SkyPilot waits in vain and says so; the log says why
                print(f"{time.time():.1f} {instance.id} did not boot: {error!r}", flush=True)
                machine.kill()

    def _describe(self, instance: Any) -> dict[str, Any]:
        machine = self._machines.get(instance.id)
        return {
            "id": instance.id,
            "state": instance._state.name,
            "kind": instance.instance_type,
            "zone": instance._placement.zone,
            "spot": instance.lifecycle == "spot",
            "address": instance.private_ip,
            "cluster": next((tag["value"] for tag in instance.get_tags() if tag["key"] == _CLUSTER), ""),
            "booted": machine is not None and machine.running,
            "failed": self._failed.get(instance.id),
        }


_CLUSTER = "skypilot-cluster-name"


class Door:
    """A WSGI application before moto's: orders, capacity, requests to S3 held back."""

    def __init__(self, moto: Callable[[dict[str, Any], Start], Iterable[bytes]], cloud: Cloud) -> None:
        self._moto = moto
        self._cloud = cloud

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith(ORDERS):
            body = self._body(environ)
            answer = self._cloud.order(path.removeprefix(ORDERS), json.loads(body or b"{}"))
            reply = _reply(start, "200 OK", "application/json", json.dumps(answer))
            # A body after HEAD is an error to aiohttp, and the network "down" to SkyPilot's controller.
            return [] if environ["REQUEST_METHOD"] == "HEAD" else reply
        if environ["REQUEST_METHOD"] == "POST" and "urlencoded" in environ.get("CONTENT_TYPE", ""):
            body = self._body(environ)
            zone = run_instances_zone(body)
            if zone and self._cloud.no_capacity(zone, b"MarketType=spot" in body):
                return _reply(start, "500 Internal Server Error", "text/xml", _NO_CAPACITY.format(zone=zone))
            environ["wsgi.input"] = BytesIO(body)
        elif not self._cloud.lets_pass(environ["REQUEST_METHOD"], path):
            return _reply(start, "503 Slow Down", "text/xml", "")
        return self._moto(environ, start)

    def _body(self, environ: dict[str, Any]) -> bytes:
        body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        return body


def run_instances_zone(body: bytes) -> str | None:
    """The zone that a RunInstances request asks for, None for any other request or none named."""
    values = {key: found[0] for key, found in parse_qs(body.decode()).items()}
    if values.get("Action") != "RunInstances":
        return None
    subnet = values.get("SubnetId") or values.get("NetworkInterface.1.SubnetId")
    for region in catalogs.REGIONS:
        for zones in _backend(region).subnets.values():
            for found in zones.values():
                if found.id == subnet:
                    return str(found.availability_zone)
    return values.get("Placement.AvailabilityZone")


def main(folder: Path) -> None:
    """Serve until SIGTERM."""
    settings = Settings(**json.loads((folder / "cloud.json").read_text()))
    catalogs.write_images(folder / "images.json")
    # moto reads both when it is imported.
    os.environ["MOTO_AMIS_PATH"] = str(folder / "images.json")
    os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Say nothing: SkyPilot asks several times a second."""

    _one_put_at_a_time()
    disk = image.ensure()
    make_bridge(settings.network)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    cloud = Cloud(folder, settings, disk)
    try:
        door = Door(DomainDispatcherApplication(create_backend_app), cloud)
        server = make_server(
            settings.network.gateway, settings.port, door, threaded=True, request_handler=Quiet
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seed.seed(settings.endpoint, settings.network, settings.bucket)
        (folder / "ready").touch()
        while not stop.wait(POLL_S):
            cloud.step()
    finally:
        cloud.close()
        remove_bridge(settings.bridge)


def _one_put_at_a_time() -> None:
    """S3 decides conditional writes one after the other; moto looks first and writes later."""
    from moto.s3.responses import S3Response

    lock, put_object = threading.Lock(), S3Response.put_object

    def atomic(response: S3Response) -> object:
        with lock:
            return put_object(response)

    S3Response.put_object = atomic


def _backend(region: str) -> Any:
    from moto.ec2.models import ec2_backends

    return ec2_backends[_ACCOUNT][region]


def _instances() -> list[Any]:
    return [instance for region in catalogs.REGIONS for instance in _backend(region).all_instances()]


def _user_data(instance: Any) -> str:
    return instance.user_data.decode() if instance.user_data else ""


def _reply(start: Start, status: str, kind: str, text: str) -> Iterable[bytes]:
    body = text.encode()
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
