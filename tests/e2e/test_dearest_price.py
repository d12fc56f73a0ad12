"""What a launch may come to pay per hour, beside what SkyPilot's own optimizer chooses."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher import clusters
from launcher.money import offers, prices
from launcher.money.want import want_of

PROFILES = Path(__file__).parents[2] / "clusters"
HEADER = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,"
    "AvailabilityZone\n"
)
GPU = "A10G,1.0"
# A small machine that is the cheapest anywhere, in a region where its spot is dearer than the middle one's;
# a large one that is nowhere the cheapest, and alone in a third region.
LINES = f"""small,{GPU},4.0,16.0,,1.0,0.3,r1,r1-az1
middle,{GPU},8.0,32.0,,1.2,0.5,r1,r1-az1
large,{GPU},64.0,256.0,,4.0,1.3,r1,r1-az1
small,{GPU},4.0,16.0,,1.5,0.9,r2,r2-az1
small,{GPU},4.0,16.0,,1.5,0.6,r2,r2-az2
middle,{GPU},8.0,32.0,,1.4,0.7,r2,r2-az1
large,{GPU},64.0,256.0,,4.4,1.4,r3,r3-az1
m6i.2xlarge,,,8.0,32.0,,0.4,0.2,r1,r1-az1
m7i.2xlarge,,,8.0,32.0,,0.5,0.1,r1,r1-az1
m6i.2xlarge,,,8.0,32.0,,0.6,0.45,r2,r2-az1
"""
ASKED: list[dict[str, Any]] = [
    {"accelerators": "A10G:1", "infra": infra, "use_spot": spot}
    for infra in ("aws", "aws/r1", "aws/r2", "aws/r2/r2-az1", "aws/r3")
    for spot in (False, True)
]
ASKED += [{"cpus": "8+", "infra": "aws", "use_spot": spot} for spot in (False, True)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The catalogs of a home. SkyPilot downloads none whose sum it finds beside it changed."""
    folder = tmp_path / ".sky" / "catalogs" / "v8"
    for name, text in (
        ("aws/vms.csv", HEADER + LINES),
        ("common/accelerators.csv", "AcceleratorName,Clouds\nA10G,['AWS']\n"),
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
        stamp = folder / ".meta" / f"{name}.md5"
        stamp.parent.mkdir(parents=True)
        stamp.write_text(hashlib.md5(b"").hexdigest())
    return folder


def test_a_cap_counts_with_the_dearest_place_that_skypilot_may_take(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.prices_of_skypilot"],
        input=json.dumps(ASKED),
        env={**os.environ, "HOME": str(root.parents[2]), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(ASKED)
    aws = clusters.load("aws", PROFILES)
    for asked, places in zip(ASKED, answers, strict=True):
        dearest = max(place[-1] for place in places)
        assert prices.prices_of(aws, {"resources": asked}, root, highest=True)[0] == dearest, asked
        types = {place[3] for place in places}
        assert {offer.instance for offer in prices.taken(want_of({"resources": asked})[0], root)} == types, (
            asked
        )


def test_what_is_cheapest_in_a_place_is_no_bound(root: Path) -> None:
    task = {"resources": {"accelerators": "A10G:1", "infra": "aws", "use_spot": True}}
    per_place = [offer.spot for offer in offers.find(want_of(task)[0], root).offers if offer.region == "r2"]
    assert sorted(price for price in per_place if price) == [0.6, 0.7]
    bound, on_demand = prices.prices_of(clusters.load("aws", PROFILES), task, root, highest=True)
    assert (bound, on_demand) == (0.9, 1.5)
