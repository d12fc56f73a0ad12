"""What an AWS account may run, asked of a server that speaks the protocol of Service Quotas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from launcher import preflight
from launcher.cli.main import main
from launcher.errors import Refused
from launcher.quotas import aws
from tests.e2e.s3 import FAKE_CREDENTIALS
from tests.served import served

ROOT = Path(__file__).parents[2]
HEADER = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,"
    "AvailabilityZone,Arch\n"
)
LIMITS = {
    "us-east-1": {"Running On-Demand P instances": 192, "All P5 Spot Instance Requests": 0},
    "us-west-2": {"Running On-Demand P instances": 384, "All P5 Spot Instance Requests": 96},
}


class Quotas(BaseHTTPRequestHandler):
    """Two regions, told apart by the signature's scope; the answer comes in pages of one quota."""

    def do_POST(self) -> None:
        region = self.headers["Authorization"].split("Credential=")[1].split("/")[2]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["X-Amz-Target"] == "ServiceQuotasV20190624.ListServiceQuotas"
        assert asked["ServiceCode"] == "ec2"
        page = int(asked.get("NextToken", "0"))
        limits = list(LIMITS.get(region, {}).items())
        answer: dict[str, object] = {"message": "not authorized", "__type": "AccessDeniedException"}
        if limits:
            name, value = limits[page]
            answer = {"Quotas": [{"QuotaName": name, "Value": float(value)}]}
            if page + 1 < len(limits):
                answer["NextToken"] = str(page + 1)
        body = json.dumps(answer).encode()
        self.send_response(200 if limits else 400)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A catalog whose p5.48xlarge is in the two regions, and the server that knows their quotas."""
    catalog = tmp_path / "aws" / "vms.csv"
    catalog.parent.mkdir()
    lines = [f"p5.48xlarge,H100,8,192,2048,,98.32,30.5,{region},{region}a,x86_64\n" for region in LIMITS]
    catalog.write_text(HEADER + "".join(lines))
    monkeypatch.setenv("NEMO_SKY_CATALOGS", str(tmp_path))
    for name, value in FAKE_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with served(Quotas) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", f"http://{address}")
        yield catalog


def task(nodes: int, infra: str = "aws", *, spot: bool = False) -> dict[str, object]:
    return {
        "num_nodes": nodes,
        "resources": {"infra": infra, "accelerators": "H100:8", "use_spot": spot},
    }


@pytest.mark.parametrize(
    ("wanted", "ok", "says"),
    [
        (task(1), True, "384 vCPUs of 192 for 1 x p5.48xlarge, on-demand, in us-east-1, us-west-2"),
        (task(2), True, "384 vCPUs of 384 for 2 x p5.48xlarge, on-demand, in us-west-2"),
        (task(3), False, "384 vCPUs of 576 for 3 x p5.48xlarge, on-demand, in us-west-2, the most of any"),
        (task(2, "aws/us-east-1"), False, "192 vCPUs of 384"),
        (task(1, spot=True), False, "96 vCPUs of 192 for 1 x p5.48xlarge, spot, in us-west-2"),
    ],
)
def test_a_region_with_room_is_enough(account: Path, wanted: dict[str, object], ok: bool, says: str) -> None:
    (found,) = preflight.quotas([wanted])
    assert found.ok is ok
    assert found.says.startswith(says)
    if not ok:
        with pytest.raises(Refused, match="quota") as refused:
            preflight.require([found], goes_on=False)
        assert "Service Quotas" in str(refused.value.hint)
        preflight.require([found], goes_on=True)


def test_of_several_regions_of_one_task_one_with_room_is_enough(account: Path) -> None:
    """As ``--max-hourly`` leaves them."""
    both = [{"infra": "aws/us-east-1"}, {"infra": "aws/us-west-2"}]
    asked = {"num_nodes": 2, "resources": {"accelerators": "H100:8", "any_of": both}}
    (found,) = preflight.quotas([asked])
    assert (found.ok, found.says.endswith("in us-west-2")) == (True, True)
    elsewhere = {"accelerators": "H100:8", "any_of": [*both, {"infra": "gcp/us-east4"}]}
    assert list(preflight.quotas([{"num_nodes": 3, "resources": elsewhere}])) == [], "another cloud has room"


def test_what_aws_does_not_tell_is_unknown(account: Path) -> None:
    account.write_text(account.read_text() + "p5.48xlarge,H100,8,192,2048,,98.32,30.5,eu-west-1,x,x86_64\n")
    (found,) = preflight.quotas([task(1, "aws/eu-west-1")])
    assert found.ok is None
    assert "eu-west-1" in found.says
    assert "servicequotas:ListServiceQuotas" in str(found.hint)


def test_other_places_are_not_asked(account: Path) -> None:
    assert list(preflight.quotas([task(1, "lambda")])) == []
    assert list(preflight.quotas([{"resources": {"accelerators": "H100:8"}}])) == [], "any cloud"
    assert list(preflight.quotas([{"resources": {"infra": "slurm/rig"}}])) == []


def test_the_doctor_asks_about_the_market_and_size_that_it_is_told(
    account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEMO_SKY_ARTIFACTS", str(tmp_path / "store"))
    monkeypatch.setenv("NEMO_SKY_TRACKING", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "aws.yaml").write_text("backend: fake\ninfra: aws\n")  # asks no SkyPilot for credentials

    def says(*words: str) -> tuple[bool, str]:
        where = ("--cluster", str(tmp_path / "aws.yaml"), "--project", str(ROOT), "--json")
        with pytest.raises(SystemExit):
            main(["doctor", "nano3", "pretrain", *words, *where])
        (found,) = [item for item in json.loads(capsys.readouterr().out) if item["check"] == "quota"]
        return found["ok"], found["says"]

    assert says() == (True, "384 vCPUs of 384 for 2 x p5.48xlarge, on-demand, in us-west-2")
    ok, spot = says("--spot", "--nodes", "1")
    assert (ok, spot[:55]) == (False, "96 vCPUs of 192 for 1 x p5.48xlarge, spot, in us-west-2")
    ok, east = says("--region", "us-east-1")
    assert (ok, east[:60]) == (False, "192 vCPUs of 384 for 2 x p5.48xlarge, on-demand, in us-east-1"[:60])


STANDARD = "Standard (A, C, D, H, I, M, R, T, Z)"
SPOT = tuple(
    f"All {family} Spot Instance Requests" for family in ("P4, P3 and P2", "P5", "G and VT", STANDARD, "DL")
)
ON_DEMAND = tuple(f"Running On-Demand {family} instances" for family in ("P", "Trn", STANDARD, "DL"))


@pytest.mark.parametrize(
    ("instance", "spot", "on_demand"),
    [
        ("p4d.24xlarge", SPOT[0], ON_DEMAND[0]),
        ("p5en.48xlarge", SPOT[1], ON_DEMAND[0]),
        ("g6.xlarge", SPOT[2], None),
        ("m7i.large", SPOT[3], ON_DEMAND[2]),
        ("dl1.24xlarge", SPOT[4], ON_DEMAND[3]),
        ("trn1.32xlarge", SPOT[3], ON_DEMAND[1]),
        ("u7i-12tb.224xlarge", None, None),
    ],
)
def test_the_quota_of_an_instance_by_its_family(
    instance: str, spot: str | None, on_demand: str | None
) -> None:
    assert aws.quota_of(instance, "spot", [*ON_DEMAND, *SPOT]) == spot
    assert aws.quota_of(instance, "on-demand", [*ON_DEMAND, *SPOT]) == on_demand
