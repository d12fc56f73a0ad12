"""Plans know what runs saw of spot zones: of those regions and kinds of nodes, and less of all others."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import clusters
from launcher.artifacts.store import FileStore
from launcher.cli.main import main
from launcher.money import catalogs, expect, forecast, sightings, spots
from launcher.money.estimate import Work
from launcher.money.offers import Offer
from launcher.money.sightings import Report, Seen
from tests.unit.test_quote import CATALOGS, ROOT
from tests.unit.test_sightings import HOUR, NOW

KIND = "h100_8x2"
HERE = Offer("aws", "us-east-1", "use1-az2", "p5.48xlarge", "H100", 8, 2, spot=20.0, on_demand=50.0)
DAYS = 5


def lost(region: str, kind: str = KIND, days: float = DAYS, run: str = "r", now: float = NOW) -> Report:
    """A run got nodes each hour and lost them after ten minutes, then was refused until the next."""
    seen = []
    for n in range(round(24 * days)):
        at, zone = now - days * 24 * HOUR + n * HOUR, f"{region}a_{kind}"
        seen += [Seen(at, zone, "launched", 40.0), Seen(at + 600, zone, "lost", 40.0)]
        seen += [Seen(at + 600 + wait * 600, zone, "refused", 40.0) for wait in range(1, 5)]
    return Report(run, tuple(seen))


def kept(root: Path, reports: Sequence[Report]) -> FileStore:
    store = FileStore(root)
    for n, report in enumerate(reports):
        sightings.keep(store, report.run, NOW - n, f"runs/{report.run}", report.seen)
    return store


def made_of(*reports: Report) -> spots.Spots:
    found = spots.made_of(reports)
    assert found
    return found


def test_a_region_that_took_its_nodes_away_looks_worse_and_others_little() -> None:
    shipped, found = forecast.shipped(), made_of(lost("us-east-1"))
    assert found.of(HERE).share < 0.8 * shipped.share
    others = [
        replace(HERE, region="us-west-2"),
        replace(HERE, nodes=1),
        replace(HERE, gpu="A100"),
        replace(HERE, gpu=None, gpus=0),
    ]
    for other in others:
        assert found.of(other) is found.other
    assert found.of(HERE).share < found.other.share < shipped.share
    assert found.other.share > 0.9 * shipped.share
    assert found.of(replace(HERE, region="US-East-1", gpu="h100")) is found.of(HERE)

    def cost(at: forecast.Spot) -> float:
        seen = forecast.outlook(20.0, 0.1, spot=40.0, on_demand=100.0, deadline=36.0, at=at)
        return seen.cost

    assert cost(found.of(HERE)) > cost(found.other) >= cost(shipped)


def test_a_region_that_kept_its_nodes_looks_better() -> None:
    began = NOW - DAYS * 24 * HOUR
    stayed = Report("r", (Seen(began, f"us-east-1a_{KIND}", "launched", 40.0),), until=NOW)
    assert made_of(stayed).of(HERE).share > 1.1 * forecast.shipped().share


def test_zones_of_a_region_are_taken_together_and_launches_are_counted() -> None:
    two = [replace(lost("us-east-1", days=1), run="a"), lost("us-west-2", days=1, run="b")]
    said = made_of(*two, Report("c", ())).of(HERE).known
    assert said == " in us-east-1, by what 1 launch saw there"
    assert made_of(*two).other.known == ", as in recorded V100 zones and as 2 launches saw it"
    again = replace(lost("us-east-1", days=1), run="d")
    assert made_of(*two, again).of(HERE).known == " in us-east-1, by what 2 launches saw there"


def test_so_many_regions_of_a_kind_get_a_model_of_their_own() -> None:
    regions = [f"eu-west-{n}" for n in range(1, spots.REGIONS + 3)]
    reports = [lost(region, days=1 + n / 24) for n, region in enumerate(regions)]
    found = made_of(*reports, lost("us-east-1", kind="a100_8", days=0.1))
    assert sorted(region for region, kind in found.near if kind == KIND) == regions[2:]
    assert ("us-east-1", "a100_8") in found.near


def test_without_reports_the_shipped_history_stands(tmp_path: Path) -> None:
    assert spots.learn(FileStore(tmp_path), NOW) == (None, [])
    assert spots.made_of([Report("r", ())]) is None
    (tmp_path / "spot").symlink_to(tmp_path / "spot")
    none, [said] = spots.learn(FileStore(tmp_path), NOW)
    assert none is None
    assert said.startswith("what other runs saw is not known: cannot list")


def test_the_newest_launches_are_read_and_nothing_of_later(tmp_path: Path) -> None:
    many = [lost("us-east-1", days=0.2, run=f"r{n}") for n in range(spots.NEWEST + 5)]
    found, trouble = spots.learn(kept(tmp_path, many), NOW)
    assert found
    assert trouble == []
    assert found.of(HERE).known == f" in us-east-1, by what {spots.NEWEST} launches saw there"
    before, _ = spots.learn(FileStore(tmp_path), NOW - 2 * DAYS * 24 * HOUR)
    assert before is None


# The gate, and the command.


@pytest.fixture(autouse=True)
def prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogs.FOLDER_ENV, str(CATALOGS))


def test_the_gate_expects_more_where_spot_was_short() -> None:
    task = {
        "num_nodes": 2,
        "resources": {"accelerators": "H100:8", "infra": "aws/us-east-1", "use_spot": True},
    }
    profile = clusters.Profile("aws", (), infra="aws/us-east-1")
    limits = expect.Limits(deadline=30.0)
    bare, told = (
        expect.expected(profile, task, Work(hours=20.0), limits, known).best
        for known in (None, made_of(lost("us-east-1", days=14)))
    )
    assert bare
    assert told
    assert told.hours > bare.hours
    assert (told.chance or 0) < (bare.chance or 0)


def test_a_plan_says_what_runs_saw(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMO_SKY_ARTIFACTS", str(tmp_path))
    command = ["plan", "nano3", "pretrain", "--work", "20h", "--spot", "--project", str(ROOT)]

    def rows() -> dict[str, Any]:
        with pytest.raises(SystemExit):
            main([*command, "--json"])
        facts = json.loads(capsys.readouterr().out)
        assert facts["notes"] == []
        return {row["place"]: row for row in facts["rows"] if row["cost_usd"] is not None}

    before = rows()
    kept(tmp_path, [lost("us-east-1", now=time.time())])
    after = rows()
    assert rows() == after, "the same store, the same plan"
    near = "aws/us-east-1/use1-az2"
    assert after[near]["cost_usd"] > before[near]["cost_usd"]
    assert after[near]["spot_share"] < 0.8 * before[near]["spot_share"]
    far = "nebius/eu-north1"
    assert after[near]["spot_share"] < after[far]["spot_share"] < before[far]["spot_share"]
    with pytest.raises(SystemExit):
        main(command)
    assert " in us-east-1, by what 1 launch saw there" in capsys.readouterr().err
