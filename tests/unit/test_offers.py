"""Catalogs read as they are, with all that is odd in them, and the offers made of them."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import re
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import clusters
from launcher.errors import Refused, UserError
from launcher.money import catalogs, offers, places, prices, want
from launcher.money.offers import Offer
from launcher.money.want import Want

CATALOGS = Path(__file__).parents[1] / "fixtures" / "catalogs" / "v8"
PROFILES = Path(__file__).parents[2] / "clusters"


def found(gpu: str, count: int = 8, **wanted: Any) -> dict[str, Offer]:
    """Offers by place; of several GPU names in one place, the one that is asked for."""
    every = offers.find(Want((gpu,), count, **wanted), CATALOGS).offers
    return {offer.place: offer for offer in sorted(every, key=lambda o: o.ask is None)}


# What the fixtures' lines hold, added up by hand.


def test_a_gpu_and_its_host_are_one_price() -> None:
    gcp = found("H100", infra="gcp")
    east = gcp["gcp/us-east4/us-east4-a"]
    assert (east.instance, east.on_demand, east.spot) == ("a3-highgpu-8g", 87.83247, 20.04446)
    assert gcp["gcp/us-central1/us-central1-a"].on_demand == 43.06615
    assert "may need a commitment" in gcp["gcp/us-central1/us-central1-a"].note
    assert east.note == ""


def test_a_host_that_costs_nothing_leaves_the_price_of_the_gpu() -> None:
    b200 = found("B200", infra="gcp")["gcp/us-east4/us-east4-b"]
    assert (b200.on_demand, b200.spot) == (64.44, 32.6064)


def test_a_gpu_without_a_host_in_its_zone_is_no_offer() -> None:
    places = found("A100", 16, infra="gcp")
    assert places
    assert all(place.startswith("gcp/us-central1/") for place in places)


def test_other_gpus_of_gcp_hang_on_an_n1_host_with_four_gib_for_each_cpu() -> None:
    t4 = found("T4", 1, infra="gcp")
    assert {offer.instance for offer in t4.values()} <= {"n1-standard-8", "n1-standard-64"}


def test_what_has_no_price_is_unknown_and_not_free() -> None:
    aws = found("H200", infra="aws")
    assert aws["aws/us-west-2/usw2-az3"].on_demand is None
    assert aws["aws/us-west-2/usw2-az3"].spot == 19.5387
    nothing = aws["aws/us-east-2/use2-az2"]
    assert (nothing.spot, nothing.on_demand, nothing.total("spot")) == (None, None, None)
    assert "no price listed" in nothing.note
    assert found("H100", infra="aws")["aws/ap-northeast-2/apne2-az1"].spot is None


def test_spot_that_is_no_bargain_is_said() -> None:
    p4de = found("A100-80GB", infra="aws")
    assert "above on-demand" in p4de["aws/ap-southeast-1/apse1-az3"].note
    assert p4de["aws/ap-southeast-1/apse1-az2"].note == ""
    assert "no cheaper" in found("H100", 1, infra="azure")["azure/eastus"].note


def test_spot_at_zero_is_no_offer() -> None:
    vast = offers.find(Want(("H100",), 2, infra="vast"), CATALOGS).offers
    assert vast
    assert all(offer.spot is None and offer.on_demand is not None for offer in vast)


def test_lowest_bids_never_win() -> None:
    every = offers.find(Want(("H100",), 8), CATALOGS).offers
    bids = [offer for offer in every if offer.cloud == "mithril"]
    assert bids[0].floor
    assert bids[0].on_demand == 8.0
    best = offers.cheapest(every)
    assert best is not None
    assert (best.cloud, best.spot) == ("nebius", 10.0)
    assert offers.cheapest(bids) is None


def test_a_wrong_count_is_set_right_and_cannot_be_asked_for() -> None:
    azure = found("H100", 8, infra="azure")["azure/eastus"]
    assert azure.instance == "Standard_ND96isr_H100_v5"
    assert azure.ask == "instance type Standard_ND96isr_H100_v5"
    assert offers.cheapest([azure]) is None
    assert not found("H100", 12, infra="azure")


def test_another_name_of_the_gpu_is_shown_and_asked_for_by_it() -> None:
    cudo = offers.find(Want(("H100",), 8, infra="cudo"), CATALOGS).offers
    assert {offer.ask for offer in cudo} == {"--gpus H100-SXM:8"}
    assert offers.cheapest(cudo) is None
    named = offers.find(Want(("h100-sxm",), 8, infra="cudo"), CATALOGS).offers
    assert {offer.ask for offer in named} == {None}


def test_memory_tells_two_gpus_of_one_name_apart() -> None:
    seeweb = offers.find(Want(("A100-80GB",), 1, infra="seeweb"), CATALOGS).offers
    assert [offer.gpu for offer in seeweb] == ["A100"]
    small = offers.find(Want(("A100",), 8, gpu_gb=80, infra="aws"), CATALOGS).offers
    assert all(offer.gpu == "A100-80GB" for offer in small)
    shared = catalogs.read(CATALOGS, "primeintellect", ["H100"])
    assert {row.gpu_gib for row in shared if row.gpu == "H100" and row.count == 8} == {80.0}
    assert {round(row.gpu_gib or 0) for row in catalogs.read(CATALOGS, "runpod", ["H100-NVL"])} == {94}


def test_clouds_that_cannot_run_the_task_say_why() -> None:
    two = offers.find(Want(("H100",), 8, nodes=2, container=True, autodown=True), CATALOGS)
    assert two.left_out["runpod"] == "one node only"
    assert two.left_out["cudo"] == "no container images"
    assert two.left_out["hyperstack"] == "SkyPilot 0.14.1 does not launch there"
    assert two.left_out["seeweb"] == "one node only"
    spot = offers.find(Want(("H100",), 8, markets=("spot",)), CATALOGS)
    assert spot.left_out["lambda"] == "no spot market"
    assert all(offer.on_demand is None for offer in spot.offers)
    assert not {offer.cloud for offer in two.offers} & set(two.left_out)


def test_region_and_zone_narrow_and_a_letter_may_be_any_zone() -> None:
    assert set(found("H100", infra="aws/us-east-1/use1-az2")) == {"aws/us-east-1/use1-az2"}
    assert len(found("H100", infra="aws/us-east-1/us-east-1a")) == len(found("H100", infra="aws/us-east-1"))
    nowhere = offers.find(Want(("H100",), 8, infra="aws/eu-west-9"), CATALOGS)
    assert nowhere.offers == ()
    assert nowhere.left_out["aws"] == "no H100:8 in eu-west-9"


@pytest.mark.parametrize(
    ("gpus", "infra", "wrong"),
    [
        (("H100",), "aws/us-eats-1", "no region 'us-eats-1' in SkyPilot's catalog of aws; did you mean"),
        (("H100",), "aws/us-east-1/use1-az99", "no zone 'use1-az99' in SkyPilot's catalog of aws"),
        (("H10",), "aws", "no GPU 'H10' in SkyPilot's catalog of aws; did you mean 'H100'?"),
        (("H10", "h100"), "AWS/US-EAST-1", None),
        (("H100",), "aws/us-east-1/us-east-1f", None),
        (("H100",), None, None),
        (("H100",), "no-such-cloud/there", None),
    ],
)
def test_a_name_that_no_catalog_has_is_said(
    gpus: tuple[str, ...], infra: str | None, wrong: str | None
) -> None:
    said = offers.misnamed(Want(gpus, 8, infra=infra), CATALOGS)
    assert said is None if wrong is None else wrong in (said or "")


def test_places_beyond_a_cloud() -> None:
    assert {place.split("/")[1] for place in found("H100", infra="*/us-east-1")} == {"us-east-1"}


def test_a_node_without_gpus_is_the_cheapest_of_the_families_that_skypilot_takes() -> None:
    aws = offers.find(Want(cpus="4+", memory="16+", infra="aws/us-east-1"), CATALOGS).offers
    assert {offer.instance for offer in aws} == {"m6i.xlarge"}
    azure = offers.find(Want(cpus="4+", memory="16+", infra="azure"), CATALOGS).offers
    assert {offer.instance for offer in azure} == {"Standard_D4s_v5"}
    gcp = offers.find(Want(cpus="4+", memory="16+", infra="gcp"), CATALOGS).offers
    assert {offer.instance for offer in gcp} == {"n2-standard-4"}
    exact = offers.find(Want(cpus="8", infra="aws/us-east-1"), CATALOGS).offers
    assert {offer.instance for offer in exact} == {"m6i.2xlarge"}
    assert not offers.find(Want(cpus="4+", memory="5x", infra="azure"), CATALOGS).offers
    with pytest.raises(UserError, match="'many' is no size"):
        offers.find(Want(cpus="many", infra="aws"), CATALOGS)


# Prices at launch.


def task(**resources: Any) -> dict[str, Any]:
    return {"num_nodes": 2, "resources": {"accelerators": "H100:8", **resources}}


def test_the_price_at_launch_is_for_all_nodes() -> None:
    aws = clusters.load("aws", PROFILES)
    assert prices.prices_of(aws, task(infra="aws/us-east-1/use1-az2"), CATALOGS)[0] == 110.08
    spot = task(infra="aws/us-east-1/use1-az2", use_spot=True)
    assert prices.prices_of(aws, spot, CATALOGS)[0] == 38.5062
    either = task(infra="aws/us-east-1/use1-az2", ordered=[{"use_spot": True}, {"use_spot": False}])
    assert prices.prices_of(aws, either, CATALOGS)[0] == 38.5062
    assert prices.prices_of(aws, either, CATALOGS, highest=True)[0] == 110.08
    assert prices.prices_of(clusters.load("any", PROFILES), task(), CATALOGS)[0] == 47.2


def test_a_price_that_nobody_knows_is_none_and_the_profile_comes_first(tmp_path: Path) -> None:
    for name in ("slurm", "kubernetes"):
        assert prices.prices_of(clusters.load(name, PROFILES), task(infra=name), CATALOGS)[0] is None
    (tmp_path / "own.yaml").write_text("infra: slurm/rig\nprice_per_hour: 12.5\n")
    assert prices.prices_of(clusters.load("own", tmp_path), task(infra="slurm/rig"), CATALOGS)[0] == 25.0
    assert prices.prices_of(clusters.load("local", PROFILES), {"num_nodes": 2}, CATALOGS)[0] == 0
    assert prices.prices_of(clusters.load("aws", PROFILES), task(infra="aws"), tmp_path)[0] is None
    assert prices.prices_of(clusters.load("aws", PROFILES), task(infra="mithril"), CATALOGS)[0] is None


def test_absent_catalogs_are_refused_with_the_way_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no price catalogs in .*\n.*sky check.*NEMO_SKY_CATALOGS"):
        offers.find(Want(("H100",), 8), tmp_path)
    with pytest.raises(Refused, match="no price catalog of shadeform"):
        offers.find(Want(("H100",), 8, infra="shadeform"), CATALOGS)
    (tmp_path / "aws").mkdir()
    (tmp_path / "aws" / "vms.csv").write_text("<html>")
    with pytest.raises(Refused, match=r"vms\.csv:1: not a catalog"):
        offers.find(Want(("H100",), 8), tmp_path)


@pytest.mark.parametrize("written", ["H100:many", ["H100:8", "H200:4"]])
def test_accelerators_that_are_none_are_refused(written: Any) -> None:
    with pytest.raises(UserError, match="accelerators"):
        want.want_of({"resources": {"accelerators": written}})


def test_the_folder_is_skypilots_or_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(catalogs.FOLDER_ENV, raising=False)
    monkeypatch.delenv("SKY_RUNTIME_DIR", raising=False)
    assert catalogs.folder() == Path.home() / ".sky/catalogs/v8"
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path))
    assert catalogs.folder() == tmp_path / ".sky/catalogs/v8"
    monkeypatch.setenv(catalogs.FOLDER_ENV, str(CATALOGS))
    assert catalogs.folder() == CATALOGS


def test_prices_are_read_without_skypilot() -> None:
    code = (
        "import sys; from pathlib import Path; from launcher.money import offers;"
        f"offers.find(offers.Want(('H100',), 8), Path({str(CATALOGS)!r}));"
        "print({'sky', 'numpy', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# What SkyPilot itself answers for a task that asks for nothing in particular.
UNSUPPORTED = """
import json, sky
from sky.clouds import kubernetes, slurm
from sky.utils import registry
kubernetes.kubernetes_utils.get_all_kube_context_names = lambda: []
slurm.Slurm.existing_allowed_clusters = lambda *_, **__: []
found = {
    name: [feature.name for feature in cloud._unsupported_features_for_resources(sky.Resources(), None)]
    for name, cloud in registry.CLOUD_REGISTRY.items()
}
print(json.dumps(found))
"""


def test_what_skypilot_can_do_where_is_what_its_source_says() -> None:
    package = importlib.util.find_spec("sky")
    assert package is not None
    assert package.origin is not None
    sky = Path(package.origin).parent
    sources = {path.stem.removesuffix("_cloud") for path in (sky / "clouds").glob("*.py")}
    assert sources - places.LAUNCHABLE == {"__init__", "cloud", "kubernetes", "slurm", "ssh"}
    done = subprocess.run([sys.executable, "-c", UNSUPPORTED], capture_output=True, text=True, check=True)
    unsupported = json.loads(done.stdout.splitlines()[-1])
    assert set(unsupported) == places.LAUNCHABLE | places.OWN - {"k8s"}

    def without(feature: str) -> set[str]:
        return {name for name, found in unsupported.items() if feature in found} - places.OWN

    assert all("SPOT_INSTANCE" in unsupported[name] for name in ("kubernetes", "slurm", "ssh"))
    assert not any("MULTI_NODE" in unsupported[name] for name in ("kubernetes", "slurm", "ssh"))

    assert without("MULTI_NODE") == places.ONE_NODE
    assert without("SPOT_INSTANCE") == places.NO_SPOT
    assert without("DOCKER_IMAGE") == places.NO_CONTAINERS
    assert without("AUTODOWN") == places.NO_AUTODOWN
    speakers = ("backends/cloud_vm_ray_backend.py", "optimizer.py", "jobs/recovery_strategy.py")
    spoken = "".join((sky / name).read_text() for name in speakers)
    whole = re.sub(r"\s*'\s+f?'", " ", spoken).replace("  ", " ")
    assert [words for words in places.NO_NODES if words not in whole] == []


# Whatever stands in a catalog.

NUMBERS = st.sampled_from(
    ["", "0", "0.0", "-1", "nan", "inf", "-inf", "1e-9", "x", "4.2", "12.5", "1e3", "-0.0"]
)
CELLS = st.one_of(NUMBERS, st.floats(0.000001, 1e5).map(str))
COLUMNS = ["InstanceType", "AcceleratorName", "AcceleratorCount", "GpuInfo", "Price", "SpotPrice", "Region",
           "AvailabilityZone", "vCPUs", "MemoryGiB"]  # fmt: skip
LINES = st.lists(
    st.tuples(
        st.sampled_from(["", "a3-highgpu-8g", "p5.48xlarge", 'a"b', "x,y"]),
        st.sampled_from(["", "H100", "h100", "H100-SXM"]),
        st.sampled_from(["", "8", "8.0", "nan", "-8", "eight"]),
        st.sampled_from(["", "{'Gpus': [{'MemoryInfo': {'SizeInMiB': 81920}}]}", "SizeInMiB: ..", '"']),
        CELLS,
        CELLS,
        st.sampled_from(["", "r1", "r2"]),
        st.sampled_from(["", "z1", "z2"]),
        CELLS,
        CELLS,
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    LINES,
    st.sampled_from(["aws", "gcp", "vast"]),
    st.integers(1, 64),
    st.sampled_from([0, 8]),
    st.binary(max_size=20),
)
def test_no_price_below_or_at_zero_and_totals_are_exact(
    lines: list[tuple[str, ...]], cloud: str, nodes: int, count: int, junk: bytes
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *lines])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / cloud).mkdir()
        (root / cloud / "vms.csv").write_bytes(text.getvalue().encode() + junk)
        nodes = 1 if cloud == "vast" else nodes
        gpus = ("H100",) if count else ()
        result = offers.find(Want(gpus, count, nodes=nodes, cpus="4+", memory="1+"), root)
    for offer in result.offers:
        for market in want.MARKETS:
            paid = offer.price(market)
            if paid is None:
                assert offer.total(market) is None
                continue
            assert math.isfinite(paid)
            assert paid > 0
            assert Decimal(str(offer.total(market))) == Decimal(str(paid)) * nodes


@given(st.text(max_size=12))
def test_a_price_is_a_number_above_zero_or_none(text: str) -> None:
    value = catalogs.price(text)
    assert value is None or (math.isfinite(value) and value > 0)
