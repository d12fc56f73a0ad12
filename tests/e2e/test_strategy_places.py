"""Where our strategy launches at all: never without a price, as SkyPilot itself reads the catalogs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CATALOGS = Path(__file__).parents[1] / "fixtures" / "catalogs" / "v8"
# There is no account here: these clouds are taken to be enabled.
ASK_STRATEGY = """
import json, sys
import sky
from sky import optimizer
from sky.catalog import aws_catalog
from sky.utils import registry
from launcher.skyplugin import strategy
enabled, market, priced = json.load(sys.stdin)
optimizer.sky_check.get_cached_enabled_clouds_or_refresh = (
    lambda *_, **__: [registry.CLOUD_REGISTRY.from_str(name) for name in enabled])
aws_catalog._fetch_and_apply_az_mapping = lambda frame: frame._load_df()
asked = {"accelerators": "H100:8", **market}
task = sky.Task.from_yaml_config({"run": "true", "resources": asked})
spot, on_demand = strategy._places(task, priced)
print(json.dumps([strategy._facts(one, 1) for one in [*spot.values(), *on_demand]]))
"""
SPOT = {"use_spot": True}


def places(home: Path, enabled: list[str], market: dict[str, Any], priced: bool = False) -> dict[str, float]:
    """The lowest price of each cloud that may be launched in, in dollars per hour of a node."""
    folder = home / ".sky" / "catalogs" / "v8"
    shutil.copytree(CATALOGS, folder)
    (folder / "common").mkdir()
    (folder / "common" / "accelerators.csv").write_text("AcceleratorName,Clouds\nH100,['AWS']\n")
    for file in [*folder.glob("*/*.csv")]:  # SkyPilot downloads none whose sum it finds beside it changed
        stamp = folder / ".meta" / f"{file.relative_to(folder)}.md5"
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(hashlib.md5(b"").hexdigest())
    done = subprocess.run(
        [sys.executable, "-c", ASK_STRATEGY],
        input=json.dumps([enabled, market, priced]),
        env={**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {cloud: min(one["price"] for one in found if one["cloud"] == cloud)
            for cloud in sorted({one["cloud"] for one in found})}  # fmt: skip


@pytest.mark.parametrize("market", [SPOT, {"ordered": [SPOT, {"use_spot": False}]}])
def test_what_has_no_price_is_no_bargain(tmp_path: Path, market: dict[str, Any]) -> None:
    """Vast's spot prices are all 0 in the catalog, and Mithril's are the lowest bids of an auction."""
    found = places(tmp_path, ["aws", "vast", "mithril"], market)
    assert "aws" in found
    assert "mithril" not in found
    assert min(found.values()) > 0
    assert ("vast" in found) == (market != SPOT), "on-demand it has a price"


def test_where_nothing_else_is_an_unknown_price_is_said_as_such(tmp_path: Path) -> None:
    assert places(tmp_path, ["mithril"], SPOT) == {"mithril": 0.0}


def test_a_price_of_the_profile_is_one_for_every_place(tmp_path: Path) -> None:
    assert set(places(tmp_path, ["aws", "vast", "mithril"], SPOT, priced=True)) == {"aws", "mithril", "vast"}
