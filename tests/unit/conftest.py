"""Real services that several tests share: an S3 server on loopback, MLflow's database."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher import project
from launcher.artifacts.store import FileStore, S3Store, Store
from tests.rig import Rig, make_rig
from tests.unit.config_files import Write

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


@dataclass(frozen=True)
class MlflowTemplate:
    """An empty, migrated MLflow database, to be copied, and what was printed while it was made."""

    file: Path
    printed: str


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> MlflowTemplate:
    """Made once for all test processes: it takes MLflow seconds."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    file, printed = shared / "mlflow-template.db", shared / "mlflow-printed.txt"
    program = (
        "import sys; from launcher.lineage.mlflow_client import connected\n"
        "with connected(sys.argv[1]) as client: client.search_experiments()"
    )
    with open(shared / "mlflow-template.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            building = shared / "mlflow-building.db"
            command = [sys.executable, "-c", program, f"sqlite:///{building}"]
            with printed.open("w") as output:
                subprocess.run(command, check=True, stdout=output, stderr=output, cwd=shared)
            building.rename(file)
    return MlflowTemplate(file, printed.read_text())


@pytest.fixture(scope="module")
def tracking(mlflow_template: MlflowTemplate, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of an MLflow database that the tests of a module share."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    shutil.copy(mlflow_template.file, file)
    return f"sqlite:///{file}"


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "file":
        return FileStore(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3_server")
    return server.store()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A node with an agent to run on it."""
    with make_rig(tmp_path) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stage's config folder."""
    (tmp_path / "config").mkdir()
    return tmp_path / "config"


@pytest.fixture
def write(folder: Path) -> Write:
    """Writes a file of that folder: its name, its text."""

    def put(name: str, text: str) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return put


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> project.Project:
    """A project without stages, with the shipped profiles."""
    for name in ("NEMO_SKY_ARTIFACTS", "NEMO_SKY_TRACKING", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nemo-sky.yaml").write_text("")
    (tmp_path / "clusters").symlink_to(Path(__file__).parents[2] / "clusters")
    return project.read(tmp_path)
