"""What a project of Google Cloud may run, asked of a ``gcloud`` that prints what a test says."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import preflight
from launcher.cli.main import main
from launcher.money.want import want_of
from launcher.quotas import ask, gcp
from tests import fake_tools

ROOT = Path(__file__).parents[2]
HEADER = (
    "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,"
    "Price,SpotPrice\n"
)
HOSTS = {"A100-80GB": "a2-ultragpu-8g", "H100": "a3-highgpu-8g"}


def metric(name: str, limit: float, used: float = 0) -> dict[str, Any]:
    return {"limit": limit, "metric": name, "usage": used}


def regions(central: Sequence[Any] = (), east: Sequence[Any] = ()) -> str:
    """As ``gcloud compute regions list --format=json(name,quotas)`` prints them."""
    both = (("us-central1", central), ("us-east4", east))
    return fake_tools.says(
        [{"name": name, "quotas": [metric("CPUS", 24.0, 2.0), *quotas]} for name, quotas in both]
    )


def family(rows: Sequence[tuple[Mapping[str, str], int | None, Sequence[str]]]) -> str:
    """A QuotaInfo of dimensions, value and locations; a value of 0 is left out of it."""
    infos = [
        {
            "dimensions": dimensions,
            "details": {} if value is None else {"value": str(value)},
            "applicableLocations": list(places),
        }
        for dimensions, value, places in rows
    ]
    return fake_tools.says({"quotaId": gcp.FAMILIES, "dimensionsInfos": infos})


BOTH = ("us-central1", "us-east4")
H100S = family(
    [
        ({"gpu_family": "NVIDIA_H100", "region": "us-east4"}, 16, ["us-east4"]),
        ({"gpu_family": "NVIDIA_H100"}, None, ["us-central1"]),
        ({"gpu_family": "NVIDIA_H200"}, 99, BOTH),
        ({}, None, BOTH),
    ]
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog of two GPUs in two regions; the folder of the tools, which alone is on the PATH."""
    catalog = tmp_path / "gcp" / "vms.csv"
    catalog.parent.mkdir()
    lines = []
    for name, price in (("us-central1", 1), ("us-east4", 2)):
        for gpu, host in HOSTS.items():
            lines.append(f",,,{gpu},8,{gpu},{name},{name}-a,{price * 10},{price * 4}\n")
            lines.append(f"{host},208,1872,,,,{name},{name}-a,{price},{price}\n")
    lines.append("n2-standard-8,8,32,,,,us-east4,us-east4-a,0.4,0.1\n")
    catalog.write_text(HEADER + "".join(lines))
    monkeypatch.setenv("NEMO_SKY_CATALOGS", str(tmp_path))
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    return tools


def gcloud(tools: Path, listed: str, families: str = H100S, *, total: float = 64, used: float = 0) -> Path:
    project = {"name": "my-project", "quotas": [metric("GPUS_ALL_REGIONS", total, used)]}
    return fake_tools.install(
        tools,
        "gcloud",
        {
            "'compute regions list --format=json(name,quotas)'": listed,
            "'compute project-info describe --format=json(name,quotas)'": fake_tools.says(project),
            f"'beta quotas info describe {gcp.FAMILIES} --service=compute.googleapis.com "
            "--project=my-project --format=json'": families,
        },
    )


def task(nodes: int = 1, gpu: str = "H100", infra: str = "gcp", *, spot: bool = False) -> dict[str, Any]:
    return {
        "num_nodes": nodes,
        "resources": {"infra": infra, "accelerators": f"{gpu}:8", "use_spot": spot},
    }


A100, SPOT_A100 = "NVIDIA_A100_80GB_GPUS", "PREEMPTIBLE_NVIDIA_A100_80GB_GPUS"


@pytest.mark.parametrize(
    ("wanted", "ok", "says"),
    [
        (task(1, "A100-80GB"), True, "16 GPUs of 8 for 1 x a2-ultragpu-8g, on-demand, in us-central1, us-e"),
        (task(2, "A100-80GB"), True, "16 GPUs of 16 for 2 x a2-ultragpu-8g, on-demand, in us-east4; 8 of 24"),
        (task(3, "A100-80GB"), False, "16 GPUs of 24 for 3 x a2-ultragpu-8g, on-demand, in us-east4, the"),
        (task(1, "A100-80GB", "gcp/us-central1"), True, "8 GPUs of 8 for 1 x a2-ultragpu-8g"),
        (task(4, "A100-80GB", spot=True), True, "32 GPUs of 32 for 4 x a2-ultragpu-8g, spot, in us-central1"),
        (task(5, "A100-80GB", spot=True), False, "32 GPUs of 40 for 5 x a2-ultragpu-8g, spot, in us-centr"),
        (task(2), True, "16 GPUs of 16 for 2 x a3-highgpu-8g, on-demand, in us-east4"),
        (task(3), False, "16 GPUs of 24 for 3 x a3-highgpu-8g, on-demand, in us-east4, the most of any"),
        (task(1, infra="gcp/us-central1"), False, "0 GPUs of 8 for 1 x a3-highgpu-8g, on-demand"),
    ],
)  # fmt: skip
def test_a_region_with_room_is_enough(place: Path, wanted: dict[str, Any], ok: bool, says: str) -> None:
    central = [metric(A100, 8.0), metric(SPOT_A100, 32.0)]
    gcloud(place, regions(central, [metric(A100, 24.0, 8.0), metric(SPOT_A100, 8.0)]))
    (found,) = preflight.quotas([wanted])
    assert (found.ok, found.says[: len(says)]) == (ok, says)
    assert found.forceable


def test_the_gpus_of_all_regions_are_a_quota_too(place: Path) -> None:
    gcloud(place, regions([metric(A100, 64.0)]), total=16, used=8)
    (found,) = preflight.quotas([task(2, "A100-80GB", "gcp/us-central1")])
    assert (found.ok, found.says[:14]) == (False, "8 GPUs of 16 f")
    assert "'GPUS_ALL_REGIONS' for the project my-project" in str(found.hint)


@pytest.mark.parametrize(
    ("quotas", "ok"),
    [
        ([metric(A100, 8.0)], True),  # none granted for spot: the standard one counts
        ([metric(A100, 8.0), metric(SPOT_A100, 0.0)], True),
        ([metric(A100, 8.0), metric(SPOT_A100, 4.0)], False),  # granted, and too small
        ([metric(A100, 0.0), metric(SPOT_A100, 0.0)], False),
        ([metric(A100, 0.0)], None),  # what is granted for spot may not be shown
        ([], None),
    ],
)
def test_spot_counts_against_its_own_quota_where_that_was_granted(
    place: Path, quotas: Sequence[Any], ok: bool | None
) -> None:
    gcloud(place, regions(quotas))
    (found,) = preflight.quotas([task(1, "A100-80GB", "gcp/us-central1", spot=True)])
    assert found.ok is ok


def test_the_families_are_asked_only_for_what_the_regions_do_not_name(place: Path) -> None:
    log = gcloud(place, regions([metric(A100, 8.0)], [metric(A100, 8.0)]))
    list(preflight.quotas([task(1, "A100-80GB")]))
    assert len(log.read_text().splitlines()) == 2
    list(preflight.quotas([task(1)]))
    assert sum("beta quotas" in line for line in log.read_text().splitlines()) == 1
    log.unlink()
    assert list(preflight.quotas([{"resources": {"infra": "gcp", "cpus": "8"}}])) == []
    assert not log.exists(), "of nodes without GPUs nothing is asked"


def test_the_stages_of_a_launch_are_asked_about_together(place: Path) -> None:
    log = gcloud(place, regions())
    found = list(preflight.quotas([task(2), task(3), task(2)]))
    assert [item.ok for item in found] == [True, False]
    assert len(log.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("listed", "families", "why"),
    [
        (None, "", "gcloud is not installed here"),
        (fake_tools.fails("ERROR: (gcloud.compute.regions.list) You do not have"), H100S, "You do not have"),
        ("echo garbage", H100S, "gcloud answered no JSON"),
        (fake_tools.says([1]), H100S, "none that is known"),
        (regions(), fake_tools.fails("ERROR: Cloud Quotas API has not been used"), "API has not been used"),
        (regions(), fake_tools.says([]), "does not name it"),
        (regions(), family([({}, 8, BOTH)]), "does not name it"),
        (regions(), family([({"gpu_family": "NVIDIA_H100"}, -1, BOTH)]), "does not name it"),
    ],
)
def test_what_is_not_told_is_unknown(place: Path, listed: str | None, families: str, why: str) -> None:
    if listed is not None:
        gcloud(place, listed, families)
    (found,) = preflight.quotas([task(1)])
    assert found.ok is None
    assert found.says.startswith("Google does not tell the quota")
    assert why in found.says
    assert "gcloud" in str(found.hint)
    preflight.require([found], goes_on=False)


def test_a_slow_answer_is_not_waited_for(place: Path) -> None:
    gcloud(place, regions(), "/bin/sleep 60\n")
    begun = time.monotonic()
    told = gcp.told(ask.needs(want_of(task(1))), seconds=0.4)
    assert time.monotonic() - begun < 5
    assert told.rooms == ()
    assert {item.why.split(": ")[1] for item in told.untold} == {"gcloud did not answer in time"}


def test_a_row_that_names_the_region_goes_before_one_that_names_the_family() -> None:
    """The rows of Google's own example, "Get quota info for a service-specific dimension"."""
    rows = [
        {
            "dimensions": {"region": "us-central1", "gpu_family": "NVIDIA_H200"},
            "details": {"value": 30},
            "applicableLocations": ["us-central1"],
        },
        {
            "dimensions": {"region": "us-central1"},
            "details": {"value": 100},
            "applicableLocations": ["us-central1"],
        },
        {
            "dimensions": {"gpu_family": "NVIDIA_H100"},
            "details": {"value": 10},
            "applicableLocations": ["us-central1", "us-central2", "us-west1", "us-east1"],
        },
    ]
    assert gcp.family_limit(rows, "NVIDIA_H200", "us-central1") == 30
    assert gcp.family_limit(rows, "NVIDIA_H100", "us-central1") == 100
    assert gcp.family_limit(rows, "NVIDIA_H100", "us-west1") == 10
    assert gcp.family_limit(rows, "NVIDIA_H200", "us-west1") is None
    assert gcp.family_limit(rows, "NVIDIA_H100_MEGA", "us-central1") is None, "no row knows this name"


def test_the_doctor_shows_it_and_a_dry_run_asks_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = gcloud(place, regions())
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("NEMO_SKY_ARTIFACTS", str(tmp_path / "store"))
    monkeypatch.setenv("NEMO_SKY_TRACKING", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "gcp.yaml").write_text("backend: fake\ninfra: gcp\n")  # asks no SkyPilot for credentials
    where = ("--cluster", str(tmp_path / "gcp.yaml"), "--project", str(ROOT))
    with pytest.raises(SystemExit):
        main(["launch", "nano3", "pretrain", *where, "--dry-run"])
    assert not log.exists()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["doctor", "nano3", "pretrain", *where, "--json"])
    (found,) = [item for item in json.loads(capsys.readouterr().out) if item["check"] == "quota"]
    assert (found["ok"], found["says"][:36]) == (True, "16 GPUs of 16 for 2 x a3-highgpu-8g,")


WORDS = ["name", "quotas", "metric", "limit", "usage", "dimensions", "dimensionsInfos", "details", "value"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "8", "x", "us-east4"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*WORDS, "applicableLocations", "gpu_family", "region"]), inner)
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_answer_breaks_it(answer: Any) -> None:
    answer = json.loads(json.dumps(answer))
    gcp.by_region([answer])
    assert isinstance(gcp.by_region(answer), dict)
    gcp.of_project(answer)
    assert gcp.family_limit([answer], "NVIDIA_H100", "us-east4") is None or isinstance(answer, dict)
