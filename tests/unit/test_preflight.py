"""What a launch checks before it spends anything."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path

import pytest

from launcher import clusters, image, plan, preflight, project, secrets
from launcher.artifacts.s3_store import S3Store
from launcher.artifacts.store import open_store
from launcher.errors import Refused
from tests.e2e.s3 import FAKE_CREDENTIALS, serve
from tests.served import served

ROOT = Path(__file__).parents[2]


class Registry(BaseHTTPRequestHandler):
    """One image that anybody may have after asking for a token, as NGC's and Docker Hub's do it, and one for
    who logs in."""

    def do_HEAD(self) -> None:
        member = self.headers.get("Authorization") == "Bearer members-token"
        if not member and self.headers.get("Authorization") != "Bearer fake-token":
            realm = f"http://{self.headers['Host']}/token"
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="fake",scope="pull"')
        else:
            known = ["/v2/nvidia/nemo/manifests/26.04", *(["/v2/ours/nemo/manifests/1"] if member else [])]
            self.send_response(200 if self.path in known else 404)
        self.end_headers()

    def do_GET(self) -> None:
        member = self.headers.get("Authorization") == f"Basic {b64encode(b'$oauthtoken:fake-key').decode()}"
        body = json.dumps({"token": "members-token" if member else "fake-token"}).encode()
        wrong = "Authorization" in self.headers and not member
        self.send_response(401 if wrong else 200 if self.path == "/token?service=fake&scope=pull" else 400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    with served(Registry) as address:
        yield address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("docker:nvcr.io/nvidia/nemo:26.04", image.Name("nvcr.io", "nvidia/nemo", "26.04")),
        ("ubuntu", image.Name(image.DOCKER_HUB, "library/ubuntu", "latest")),
        ("team/thing:v1", image.Name(image.DOCKER_HUB, "team/thing", "v1")),
        ("localhost:5000/x", image.Name("localhost:5000", "x", "latest")),
        ("ghcr.io/a/b@sha256:00", image.Name("ghcr.io", "a/b", "sha256:00")),
    ],
)
def test_names_of_images(text: str, expected: image.Name) -> None:
    assert image.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "clouds"),
    [
        ("ami-0abc123", ("aws",)),
        ("projects/deeplearning-platform-release/global/images/common-cu128", ("gcp",)),
        ("projects/mine/global/machineImages/ours", ("gcp",)),
        ("microsoft-dsvm:ubuntu-hpc:2204:latest", ("azure",)),
        ("/CommunityGalleries/a/Images/b", ("azure",)),
        ("computeimage-u00abc", ("nebius",)),
        ("skypilot:custom-gpu-ubuntu", ("aws", "gcp", "azure")),
        ("docker:localhost:5000/x:tag", ()),
        ("nvcr.io/nvidia/nemo:26.04", ()),
        ("ghcr.io/a/ami-0abc123@sha256:00", ()),
        ("ubuntu", ()),
        ("./image.sqsh", ()),
    ],
)
def test_machines_are_told_from_containers(text: str, clouds: tuple[str, ...]) -> None:
    assert image.machines_of(text) == clouds


def test_an_image_is_asked_of_its_registry(registry: str) -> None:
    assert preflight.image_of(f"docker:{registry}/nvidia/nemo:26.04", {}).ok is True
    absent = preflight.image_of(f"docker:{registry}/nvidia/nemo:99", {})
    assert (absent.ok, absent.forceable) == (False, True)


def test_a_private_image_is_asked_for_with_the_jobs_key(
    registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "NGC_REGISTRY", registry)
    private = f"docker:{registry}/ours/nemo:1"
    answers = {}
    for key in ("fake-key", "wrong", None):
        hidden = secrets.registry_login(private, {"NGC_API_KEY": key} if key else {})
        answers[key] = preflight.image_of(private, hidden)
    assert {key: found.ok for key, found in answers.items()} == {
        "fake-key": True,
        "wrong": False,
        None: False,
    }
    assert "not for this key" in answers["wrong"].says


def test_a_silent_registry_proves_nothing() -> None:
    assert preflight.image_of("docker:127.0.0.1:1/nemo:1", {}).ok is None


def test_the_clock_is_compared_with_the_stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert preflight.clock(open_store(str(tmp_path))).ok is True
    for key, value in FAKE_CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    with serve("clock-bucket") as (endpoint, _):
        store = open_store("s3://clock-bucket/x", endpoint)
        assert isinstance(store, S3Store)
        assert preflight.clock(store).ok is True
        late = preflight.clock(store, now=4e9)
        assert late.ok is False
        assert "ahead of s3://clock-bucket/x" in late.says
        assert late.hint


def planned(
    *overrides: str,
    config: str = "default",
    nodes: int | None = None,
    gpus: str | None = None,
    cluster: str = "aws",
) -> plan.Plan:
    here = project.read(ROOT)
    there = clusters.Placement(gpus=gpus)
    request = plan.Request("nano3", "pretrain", cluster, config, overrides, nodes=nodes, placement=there)
    (found,) = plan.plans(request, here, plan.select(request, here))
    return found


def test_a_model_that_does_not_fit_is_refused_unless_forced() -> None:
    assert [item.ok for item in preflight.memory(planned())] == [True]
    (found,) = preflight.memory(planned("train.micro_batch_size=64", "train.global_batch_size=6144"))
    assert found.ok is False
    with pytest.raises(Refused, match=r"GPU memory: about \d+ GB on each H100 of 80 GB") as caught:
        preflight.require([found], goes_on=False)
    assert "--ignore-estimates" in str(caught.value)
    preflight.require([found], goes_on=True)


def test_force_does_not_help_against_what_is_known() -> None:
    found = preflight.shared_store(planned(), project.read(ROOT))
    assert found.ok is False
    with pytest.raises(Refused, match="cannot reach"):
        preflight.require([found], goes_on=True)


def test_a_folder_is_an_input_where_the_nodes_see_it(tmp_path: Path) -> None:
    (found,) = preflight.folders(planned(f"run.data={tmp_path}"))
    assert (found.ok, found.forceable) == (False, False)
    draft = planned(f"run.data={tmp_path}")
    shared = replace(draft, profile=replace(draft.profile, shared_filesystem=True))
    assert list(preflight.folders(shared)) == list(preflight.folders(planned())) == []


def test_secrets_are_not_copied_with_a_folder(tmp_path: Path) -> None:
    """Neither with the project's nor with another cookbook's; the hint is what mends it."""
    home, book = tmp_path / "home", tmp_path / "book"
    for root in (home, book):
        (root / "deep").mkdir(parents=True)
        (root / ".skyignore").write_text("*.env")
        (root / "deep" / "tokens").write_text("A=1\n")
        found = preflight.stays(root / "deep" / "tokens", [home, book])
        assert (found.ok, found.forceable) == (False, False)
        assert f"would be copied to every node, with {root}" in found.says
        line = "put the line /deep/tokens into "
        assert found.hint
        assert f"{line}{root}/.skyignore" in found.hint
        with (root / ".skyignore").open("a") as file:
            file.write("\n/deep/tokens\n")
        assert preflight.stays(root / "deep" / "tokens", [home, book]).ok is True
    (tmp_path / "tokens").write_text("A=1\n")
    assert preflight.stays(tmp_path / "tokens", [home, book]).ok is True
    (home / ".skyignore").unlink()
    found = preflight.stays(home / "deep" / "tokens", [home])
    assert found.hint
    assert "keep it outside" in found.hint
    assert "what .gitignore names" in found.hint


def test_what_skypilot_cannot_say_of_secrets_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".skyignore").write_text("tokens\n")
    (tmp_path / "tokens").write_text("A=1\n")
    monkeypatch.setenv("PATH", "")  # no rsync
    assert preflight.stays(tmp_path / "tokens", [tmp_path]).ok is None


def test_checkpoints_need_their_room() -> None:
    """14 bytes for each of 31.6e9 parameters, half of them on each of two disks of 2000 GB: nine fit."""
    (found,) = preflight.disk(planned("checkpoint.most_recent_k=8"))
    assert (found.ok, found.says) == (True, "9 checkpoints of 442 GB on 2 nodes beside 2000 GB on each")
    preflight.require([found], False)
    (found,) = preflight.disk(planned("checkpoint.most_recent_k=9"))
    assert found.says == "10 checkpoints of 442 GB on 2 nodes beside 2000 GB on each"
    with pytest.raises(Refused, match="disk: 10 checkpoints") as caught:
        preflight.require([found], False)
    assert "raise disk_size in the profile" in str(caught.value)
    preflight.require([found], True)
    (found,) = preflight.disk(planned("checkpoint.most_recent_k=9", nodes=4))
    assert found.ok is True


@pytest.mark.parametrize("cluster", ["slurm", "lambda"])
def test_a_disk_that_nobody_asks_for_is_unknown(cluster: str) -> None:
    """However large the recipe and the profile say it is."""
    (found,) = preflight.disk(planned("checkpoint.most_recent_k=99", cluster=cluster))
    assert (found.ok, found.says) == (
        None,
        f"100 checkpoints of 442 GB on 2 nodes; SkyPilot asks for no disk on {cluster}",
    )
    preflight.require([found], False)


def test_a_pod_asks_for_disk_but_not_for_skypilots_default() -> None:
    draft = planned("checkpoint.most_recent_k=99", cluster="kubernetes")
    (found,) = preflight.disk(draft)
    assert (found.ok, found.says[-22:]) == (False, "beside 2000 GB on each")
    spec = replace(draft.spec, sky=replace(draft.spec.sky, disk_gb=None))
    assert draft.profile.disk_size == preflight.UNSAID_DISK_GB
    (found,) = preflight.disk(replace(draft, spec=spec))
    assert found.ok is None
    assert found.hint
    assert "not SkyPilot's default of 256" in found.hint


def test_where_skypilot_asks_for_no_disk() -> None:
    """As its own files have it."""
    found = find_spec("sky")
    assert found
    assert found.origin
    sky = Path(found.origin).parent
    templates = {path.name.removesuffix("-ray.yml.j2"): path for path in sky.glob("templates/*-ray.yml.j2")}
    without = {name for name, path in templates.items() if "disk_size" not in path.read_text()}
    slurm = [path.name for path in sky.glob("provision/slurm/*.py") if "disk_size" in path.read_text()]
    assert slurm == []
    assert without - {"local"} | {"slurm"} == preflight.NO_DISK_SIZE
    assert f"DEFAULT_DISK_SIZE_GB = {preflight.UNSAID_DISK_GB}\n" in (sky / "resources.py").read_text()
    assert "if resources.disk_size_specified:" in (sky / "clouds" / "kubernetes.py").read_text()


def test_what_nobody_knows_is_said_and_refuses_nothing() -> None:
    (found,) = preflight.memory(planned("recipe._target_=mine.a_model_of_my_own"))
    assert (found.ok, found.says) == (None, "unknown: how much the model needs")
    (found,) = preflight.memory(planned(gpus="MI300X:8"))
    assert (found.ok, found.says) == (None, "unknown: how much MI300X has")
    preflight.require([found], False)
