"""The prices that a plan shows beside those that SkyPilot itself reads from the same catalogs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher.money import offers
from launcher.money.want import Want

CATALOGS = Path(__file__).parents[1] / "fixtures" / "catalogs" / "v8"
ASK_SKYPILOT = """
import json, math, sys
import sky.catalog
known = []
for cloud, gpu, count in json.load(sys.stdin):
    found = sky.catalog.list_accelerators(
        gpus_only=True, name_filter=f"^{gpu}$", quantity_filter=count, clouds=cloud, all_regions=True)
    for one in found.get(gpu, []):
        prices = [None if math.isnan(paid) else round(paid, 6) for paid in (one.price, one.spot_price)]
        known.append([cloud, gpu, count, one.region, *prices])
print(json.dumps(known))
"""


Prices = dict[tuple[Any, ...], tuple[float | None, float | None]]


def lower(known: Prices, key: tuple[Any, ...], *seen: float | None) -> None:
    """Keep the lowest on-demand and the lowest spot price of a region."""
    before = known.get(key, (None, None))
    on_demand, spot = (
        min((paid for paid in pair if paid is not None), default=None)
        for pair in zip(before, seen, strict=True)
    )
    known[key] = (on_demand, spot)


def priced(known: Prices) -> Prices:
    return {key: prices for key, prices in known.items() if prices != (None, None)}


def test_prices_are_those_that_skypilot_itself_reads(tmp_path: Path) -> None:
    shutil.copytree(CATALOGS, tmp_path / ".sky" / "catalogs" / "v8")
    asked = [
        (cloud, gpu, count)
        for cloud in ("aws", "azure", "gcp", "lambda", "nebius", "fluidstack", "oci", "paperspace")
        for gpu, count in (("H100", 8), ("H100", 1), ("A100-80GB", 8), ("B200", 8), ("H200", 8))
    ]
    done = subprocess.run(
        [sys.executable, "-c", ASK_SKYPILOT],
        input=json.dumps(asked),
        env={**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    theirs: Prices = {}
    for *key, paid, spot in json.loads(done.stdout.splitlines()[-1]):
        lower(theirs, tuple(key), paid, spot)
    ours: Prices = {}
    for cloud, gpu, count in asked:
        for offer in offers.find(Want((gpu,), count, infra=cloud), CATALOGS).offers:
            if offer.ask is None:
                lower(ours, (cloud, gpu, count, offer.region), offer.on_demand, offer.spot)
    assert len(ours) > 25
    assert priced(ours) == priced(theirs)
