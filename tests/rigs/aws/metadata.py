"""The instance metadata service, version 2, at 169.254.169.254 inside one instance's network namespace.

SkyPilot's skylet needs it to terminate its own cluster: it drops every other source of credentials
(``sky/skylet/events.py``). A spot instance is told there of its end.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ADDRESS = ("169.254.169.254", 80)
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_ROLE = "skypilot-v1"


@dataclass(frozen=True)
class Facts:
    """What an instance can learn of itself."""

    instance_id: str
    kind: str
    zone: str
    address: str
    spot: bool

    @property
    def region(self) -> str:
        return self.zone[:-1]


class Service:
    """The service of one instance; ``notice`` returns the time of its interruption once it is known."""

    def __init__(self, pid: int, facts: Facts, notice: Callable[[], datetime | None]) -> None:
        self._server = _server(_listen_in(pid), facts, notice)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Let go of the socket, which would keep the namespace alive."""
        self._server.shutdown()
        self._server.server_close()


def answers(facts: Facts, notice: datetime | None, now: datetime) -> dict[str, str]:
    """Path -> body of all that is there now; what is missing is answered with 404."""
    stamp = "%Y-%m-%dT%H:%M:%SZ"
    credentials = {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIARIG",
        "SecretAccessKey": "rig",
        "Token": "rig",
        "LastUpdated": now.strftime(stamp),
        "Expiration": (now + timedelta(hours=6)).strftime(stamp),
    }
    document = {
        "instanceId": facts.instance_id,
        "instanceType": facts.kind,
        "availabilityZone": facts.zone,
        "region": facts.region,
        "privateIp": facts.address,
    }
    found = {
        "/latest/meta-data/instance-id": facts.instance_id,
        "/latest/meta-data/instance-type": facts.kind,
        "/latest/meta-data/instance-life-cycle": "spot" if facts.spot else "on-demand",
        "/latest/meta-data/local-ipv4": facts.address,
        "/latest/meta-data/placement/availability-zone": facts.zone,
        "/latest/meta-data/placement/region": facts.region,
        "/latest/meta-data/iam/security-credentials": _ROLE,
        f"/latest/meta-data/iam/security-credentials/{_ROLE}": json.dumps(credentials),
        "/latest/dynamic/instance-identity/document": json.dumps(document),
    }
    if notice:
        action = {"action": "terminate", "time": notice.strftime(stamp)}
        found["/latest/meta-data/spot/instance-action"] = json.dumps(action)
        found["/latest/meta-data/spot/termination-time"] = notice.strftime(stamp)
    return found


def _listen_in(pid: int) -> socket.socket:
    """A listening socket in the network namespace of ``pid``.

    A socket stays in the namespace that it was made in, and each thread has its own: one that enters the
    instance's and ends there leaves everything else where it is. (``os.setns`` is Python 3.12's.)
    """
    made: list[socket.socket] = []

    def make() -> None:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(namespace)
        made.append(socket.create_server(ADDRESS))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise RuntimeError(f"no metadata service in the namespace of process {pid}")
    return made[0]


def _server(
    listening: socket.socket, facts: Facts, notice: Callable[[], datetime | None]
) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._reply(200 if self.path == "/latest/api/token" else 404, "rig-token")

        def do_GET(self) -> None:
            if "X-aws-ec2-metadata-token" not in self.headers:
                return self._reply(401, "a session token is required")
            path = urlsplit(self.path).path.rstrip("/")
            body = answers(facts, notice(), datetime.now(UTC)).get(path)
            return self._reply(404 if body is None else 200, body or "")

        def _reply(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-aws-ec2-metadata-token-ttl-seconds", "21600")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: an agent asks every few seconds."""

    server = ThreadingHTTPServer(ADDRESS, Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    return server
