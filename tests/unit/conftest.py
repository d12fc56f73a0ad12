"""Real services on loopback that several tests share: an S3 server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.artifacts.store import FileStore, S3Store, Store

BUCKET = "nemo-sky-tests"


@dataclass(frozen=True)
class S3Server:
    """An S3 server of its own process: its address, and a bucket in it."""

    endpoint: str
    bucket: str

    def store(self) -> S3Store:
        """A store under a prefix that nobody else uses."""
        return S3Store(self.bucket, uuid.uuid4().hex, self.endpoint)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """moto's HTTP server with fake credentials in the environment."""
    import boto3
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # S3 decides conditional writes one after the other; moto looks first and writes later.
    one_at_a_time, put_object = threading.Lock(), S3Response.put_object

    def atomic(response: S3Response) -> object:
        with one_at_a_time:
            return put_object(response)

    patch.setattr(S3Response, "put_object", atomic)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=BUCKET)
    yield S3Server(endpoint, BUCKET)
    server.stop()
    patch.undo()


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "file":
        return FileStore(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3_server")
    return server.store()
