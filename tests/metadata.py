"""An instance's metadata service on loopback, as AWS, GCP and Azure have it, for tests of their notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler

from tests.served import served

AWS_SPOT = "/latest/meta-data/instance-life-cycle"
AWS_NOTICE = "/latest/meta-data/spot/instance-action"
GCP_SPOT = "/computeMetadata/v1/instance/scheduling/preemptible"
GCP_NOTICE = "/computeMetadata/v1/instance/preempted"
AZURE_SPOT = "/metadata/instance/compute/priority?api-version=2021-02-01&format=text"
AZURE_NOTICE = "/metadata/scheduledevents?api-version=2020-07-01"


@dataclass
class Metadata:
    """What is there, by path, or the status that it is refused with; the rest is 404. ``asked`` are the paths
    of all requests."""

    address: str = ""
    there: dict[str, str | int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def take_away(self, leaves_at: float) -> None:
        """AWS gives notice."""
        when = datetime.fromtimestamp(leaves_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.there[AWS_NOTICE] = f'{{"action": "terminate", "time": "{when}"}}'


@contextmanager
def metadata() -> Iterator[Metadata]:
    """The service of one instance. A request without the header that its cloud asks for is refused."""
    made = Metadata(there={AWS_SPOT: "spot", GCP_SPOT: "TRUE", GCP_NOTICE: "FALSE", AZURE_SPOT: "Spot"})

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            self._reply(200 if self.path == "/latest/api/token" and ttl else 400, "a-token")

        def do_GET(self) -> None:
            made.asked.append(self.path)
            cloud = {"latest": 0, "computeMetadata": 1, "metadata": 2}[self.path.split("/")[1]]
            name, value, refused = (
                ("X-aws-ec2-metadata-token", "a-token", 401),
                ("Metadata-Flavor", "Google", 403),
                ("Metadata", "true", 400),
            )[cloud]
            if self.headers.get(name) != value:
                return self._reply(refused, "")
            found = made.there.get(self.path, 404)
            if isinstance(found, int):
                return self._reply(found, "")
            return self._reply(200, found)

        def _reply(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """An agent asks every second."""

    with served(Handler) as made.address:
        yield made
