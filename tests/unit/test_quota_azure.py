"""What an Azure subscription may run, asked of an ``az`` that prints what a test says."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import preflight
from launcher.money.want import want_of
from launcher.quotas import ask, azure
from tests import fake_tools

HEADER = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Region,Generation,Price,SpotPrice\n"
NC24, ND96 = "Standard_NC24ads_A100_v4", "Standard_ND96amsr_A100_v4"
FAMILIES = {NC24: "StandardNCADSA100v4Family", ND96: "Standard NDAMSv4_A100Family"}
SKUS = fake_tools.says([{"name": name, "family": family} for name, family in FAMILIES.items()])


def usage(name: str, localized: str, used: int, limit: int) -> dict[str, Any]:
    """One item as ``az vm list-usage`` prints it: numbers as texts, as its documentation shows them."""
    return {
        "currentValue": str(used),
        "limit": str(limit),
        "localName": localized,
        "name": {"localizedValue": localized, "value": name},
    }


def region(nc: int, *, total: int = 500, spot: int = 0, used: int = 0) -> str:
    return fake_tools.says(
        [
            usage("availabilitySets", "Availability Sets", 0, 2500),
            usage("cores", "Total Regional vCPUs", used, total),
            usage("lowPriorityCores", "Total Regional Spot vCPUs", 0, spot),
            usage("standardNCADSA100v4Family", "Standard NCADS_A100_v4 Family vCPUs", used, nc),
            usage("standardNDAMSv4_A100Family", "Standard NDAMSv4_A100Family vCPUs", 0, 96),
        ]
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog of two sizes in two regions; the folder of the tools, which alone is on the PATH."""
    catalog = tmp_path / "azure" / "vms.csv"
    catalog.parent.mkdir()
    lines = [
        f"{name},A100-80GB,{count},{cpus},220,{where},V2,{price * count},{count}\n"
        for where, price in (("eastus", 3), ("westus3", 4))
        for name, count, cpus in ((NC24, 1, 24), (ND96, 8, 96))
    ]
    catalog.write_text(HEADER + "".join(lines))
    monkeypatch.setenv("NEMO_SKY_CATALOGS", str(tmp_path))
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    return tools


def az(tools: Path, **answers: str) -> Path:
    """``az`` with the usage of each region, and ``skus``."""
    skus = answers.pop("skus", SKUS)
    usages = {f"'vm list-usage --location {name} --output json'": shell for name, shell in answers.items()}
    return fake_tools.install(tools, "az", {**usages, "'vm list-skus'*": skus})


def task(nodes: int = 1, infra: str = "azure", *, gpus: int = 1, spot: bool = False) -> dict[str, Any]:
    resources = {"infra": infra, "accelerators": f"A100-80GB:{gpus}", "use_spot": spot}
    return {"num_nodes": nodes, "resources": resources}


@pytest.mark.parametrize(
    ("wanted", "ok", "says"),
    [
        (task(1), True, f"72 vCPUs of 24 for 1 x {NC24}, on-demand, in eastus, westus3"),
        (task(3), True, f"72 vCPUs of 72 for 3 x {NC24}, on-demand, in westus3; 24 of 96 are in use"),
        (task(4), False, f"72 vCPUs of 96 for 4 x {NC24}, on-demand, in westus3, the most of any region; 24"),
        (task(2, "azure/eastus"), True, f"48 vCPUs of 48 for 2 x {NC24}, on-demand, in eastus"),
        (task(3, "azure/eastus"), False, f"48 vCPUs of 72 for 3 x {NC24}, on-demand, in eastus, the most"),
        (task(1, spot=True), True, f"30 vCPUs of 24 for 1 x {NC24}, spot, in westus3"),
        (task(2, spot=True), False, f"30 vCPUs of 48 for 2 x {NC24}, spot, in westus3, the most of any"),
        (task(1, gpus=8), True, f"96 vCPUs of 96 for 1 x {ND96}, on-demand, in eastus"),
    ],
)
def test_a_region_with_room_is_enough(place: Path, wanted: dict[str, Any], ok: bool, says: str) -> None:
    az(place, eastus=region(48, total=200), westus3=region(96, spot=30, used=24))
    (found,) = preflight.quotas([wanted])
    assert (found.ok, found.says[: len(says)]) == (ok, says)
    assert found.forceable


def test_the_vcpus_of_all_families_are_a_quota_too(place: Path) -> None:
    az(place, eastus=region(480, total=30))
    (found,) = preflight.quotas([task(2, "azure/eastus")])
    assert (found.ok, found.says[:21]) == (False, "30 vCPUs of 48 for 2 ")
    assert "'Total Regional vCPUs' in eastus" in str(found.hint)


def test_it_is_asked_of_what_it_may_run_in_and_for_one_family_once(place: Path) -> None:
    log = az(place, eastus=region(48), westus3=region(48))
    list(preflight.quotas([task(1)]))
    usages: list[str] = []
    skus: list[str] = []
    for line in log.read_text().splitlines():
        (usages if "list-usage" in line else skus).append(line)
    assert sorted(usages) == [f"vm list-usage --location {x} --output json" for x in ("eastus", "westus3")]
    words = "vm list-skus --location eastus --resource-type virtualMachines --all --query"
    query = f"[?name=='{NC24}'].{{name: name, family: family}}"
    assert skus == [f"{words} {query} --output json"]
    log.unlink()
    list(preflight.quotas([task(1, "azure/westus3", spot=True)]))
    assert log.read_text() == "vm list-usage --location westus3 --output json\n", "spot is of all families"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (None, "az is not installed here"),
        (
            {"eastus": fake_tools.fails("WARNING: old\nERROR: Please run 'az login' to setup account.")},
            "Please",
        ),
        ({"eastus": "exit 3\n"}, "az: exit code 3"),
        ({"eastus": "echo not json"}, "az answered no JSON"),
        ({"eastus": fake_tools.says({"value": [{}]})}, "does not name it"),
        ({"eastus": fake_tools.says([])}, "does not name it"),
        (
            {"eastus": region(4), "skus": fake_tools.fails("ERROR: (AuthorizationFailed) no")},
            "(Authorization",
        ),
        ({"eastus": region(4), "skus": fake_tools.says([])}, "does not name it"),
        ({"eastus": region(4), "skus": fake_tools.says([{"name": NC24, "family": "other"}])}, "not name it"),
    ],
)
def test_what_is_not_told_is_unknown(place: Path, answers: dict[str, str] | None, why: str) -> None:
    if answers is not None:
        az(place, **answers)
    (found,) = preflight.quotas([task(2, "azure/eastus")])
    assert found.ok is None
    assert found.says.startswith("Azure does not tell the quota")
    assert why in found.says
    assert "az login" in str(found.hint)
    preflight.require([found], goes_on=False)


def test_a_region_that_does_not_tell_may_have_room(place: Path) -> None:
    az(place, eastus=region(24), westus3=fake_tools.fails("ERROR: no such location"))
    assert [found.ok for found in preflight.quotas([task(1)])] == [True]
    (found,) = preflight.quotas([task(2)])
    assert found.ok is None
    assert "24 vCPUs of 48" in found.says
    assert "quotas in westus3: az: no such location" in found.says


def test_a_slow_answer_is_not_waited_for(place: Path) -> None:
    pid = place / "pid"
    az(place, eastus=region(24), westus3=f"/bin/sleep 60 & echo $! >'{pid}'; wait\n")
    begun = time.monotonic()
    told = azure.told(ask.needs(want_of(task(2))), seconds=0.4)
    assert time.monotonic() - begun < 5
    assert [room.region for room in told.rooms] == ["eastus"]
    assert [item.why for item in told.untold] == [
        "Azure does not tell the quotas in westus3: az did not answer in time"
    ]
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] in "ZX", "the child of the tool is gone too"


def test_only_so_many_regions_are_asked(place: Path) -> None:
    catalog = Path(os.environ["NEMO_SKY_CATALOGS"]) / "azure" / "vms.csv"
    names = [f"r{price}" for price in range(1, azure.REGIONS_ASKED + 3)]
    rows = [f"{NC24},A100-80GB,1,24,220,{name},V2,{name[1:]},1\n" for name in reversed(names)]
    catalog.write_text(HEADER + "".join(rows))
    log = az(place, **dict.fromkeys(names, region(24)))
    (found,) = preflight.quotas([task(2)])
    assert found.ok is None, "another may have room"
    assert "2 dearer regions were not asked" in found.says
    asked = [line.split()[3] for line in log.read_text().splitlines() if "list-usage" in line]
    assert sorted(asked) == sorted(names[:-2])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "8", "x", "us-east4"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "value", "localizedValue", "limit", "currentValue", "family"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_answer_breaks_it(answer: Any) -> None:
    answer = json.loads(json.dumps(answer))
    for usage in (azure.usage_of(answer), azure.usage_of([answer])):
        assert usage is None or all(isinstance(limit, int) for _, limit, _ in usage.values())
    azure.families_of(answer)
    azure.families_of([answer])
