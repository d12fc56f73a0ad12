"""A real HTTP S3 on loopback, and a proxy before it that can hold a request back."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from tests.served import served

FAKE_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "fake",
    "AWS_SECRET_ACCESS_KEY": "fake",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def step_committed_by(path: str) -> int | None:
    """The step of the checkpoint that a PUT of this key commits; None when it commits none."""
    found = re.search(r"/iter_(\d+)/\.nemo-sky/manifest\.json$", path)
    return int(found[1]) if found else None


class Gate:
    """Holds back the PUTs that it is told to, and says when the first has come."""

    def __init__(self) -> None:
        self.down = False
        self.requests = 0
        self._outage: tuple[int, str, float] | None = None
        self._away_until = 0.0
        self._counting = threading.Lock()
        self.reached = threading.Event()
        self._opened = threading.Event()
        self._word: str | None = None
        self._step: int | None = None

    def hold(self, word: str | None = None, *, step: int | None = None) -> None:
        """Hold back every PUT of a key that contains ``word``, or that commits a checkpoint of ``step`` or a
        later one. What an earlier call held fails now; with neither, nothing is held any more."""
        before, self._opened, self.reached = self._opened, threading.Event(), threading.Event()
        self._word, self._step = word, step
        before.set()

    def lose(self, seconds: float, *, after: int = 0, word: str = "") -> None:
        """The service goes away for so many seconds, at the first request after so many whose key contains
        ``word``."""
        self._outage = (self.requests + after, word, seconds)

    @property
    def lost(self) -> bool:
        """Whether the outage has come."""
        return self._outage is None

    def _is_away(self, path: str) -> bool:
        with self._counting:
            self.requests += 1
            if self._outage and self.requests > self._outage[0] and self._outage[1] in path:
                self._away_until = time.monotonic() + self._outage[2]
                self._outage = None
        return self.down or time.monotonic() < self._away_until

    def pass_through(self, method: str, path: str) -> bool:
        """False when the request is to be dropped: it was held back, or the service is ``down`` or away."""
        if self._is_away(path):
            return False
        opened, committed = self._opened, step_committed_by(path)
        late = self._step is not None and committed is not None and committed >= self._step
        if method != "PUT" or not (late or (self._word is not None and self._word in path)):
            return True
        self.reached.set()
        opened.wait()
        return False


@contextmanager
def serve(bucket: str) -> Iterator[tuple[str, Gate]]:
    """Moto's server with one bucket, behind a proxy: the proxy's address and its gate."""
    import boto3
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", 0)
    moto.start()
    host, port = moto.get_host_and_port()
    gate = Gate()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self._body()
            if not gate.pass_through(self.command, self.path):
                self.close_connection = True
                return
            upstream = http.client.HTTPConnection(host, port, timeout=60)
            kept = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
            upstream.request(self.command, self.path, body, kept)
            answer = upstream.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                    self.send_header(key, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data)
            upstream.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward  # noqa: N815 - http.server's own names

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the requests are not what the test is about."""

    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="fake",
        aws_secret_access_key="fake",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=bucket)
    try:
        with served(Proxy) as address:
            try:
                yield f"http://{address}", gate
            finally:
                gate.hold()
    finally:
        moto.stop()
