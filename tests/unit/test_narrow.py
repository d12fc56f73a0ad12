"""`--max-hourly`: a task keeps the regions that it allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher import clusters
from launcher.money import narrow, offers
from launcher.money.account import MICROS
from launcher.money.want import want_of

CATALOGS = Path(__file__).parents[1] / "fixtures" / "catalogs" / "v8"
PROFILES = Path(__file__).parents[2] / "clusters"


def narrowed(profile: str, dollars: float | None, nodes: int = 2, **resources: Any) -> dict[str, Any]:
    place = clusters.load(profile, PROFILES)
    infra = {"infra": place.infra} if place.infra else {}
    wanted = {"accelerators": "H100:8", **resources}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    task = {"num_nodes": nodes, "resources": {**infra, **wanted}}
    return narrow.to_price(place, task, None if dollars is None else round(dollars * MICROS), CATALOGS)


def dearest(task: dict[str, Any]) -> float:
    """Dollars per hour of all nodes in the dearest zone where the task may land."""
    totals = [
        offer.total(want.markets[0])
        for want in want_of(task)
        for offer in offers.find(want, CATALOGS).offers
        if offer.ask is None
    ]
    return max(total for total in totals if total is not None)


@pytest.mark.parametrize("dollars", [20, 40, 60, 100, 150])
@pytest.mark.parametrize("market", [{}, {"use_spot": True}])
def test_no_region_that_is_left_is_dearer(dollars: float, market: dict[str, Any]) -> None:
    task = narrowed("any", dollars, **market)
    if "any_of" not in task["resources"]:
        assert dearest(task) > dollars, "nothing fits: the gate refuses it"
        return
    assert dearest(task) <= dollars
    places = [way["infra"] for way in task["resources"]["any_of"]]
    assert len(set(places)) == len(places)
    assert not any(place.startswith("mithril") for place in places), "an auction has no price"


def test_what_is_left_out_would_be_dearer() -> None:
    kept = {way["infra"] for way in narrowed("aws", 120)["resources"]["any_of"]}
    everywhere = offers.find(want_of(narrowed("aws", None))[0], CATALOGS).offers
    for offer in everywhere:
        if offer.ask is None and (total := offer.total("on-demand")) is not None:
            assert (total <= 120) == (f"aws/{offer.region}" in kept), offer


def test_skypilot_is_told_what_a_node_may_cost() -> None:
    assert narrowed("aws", 120)["resources"]["max_hourly_cost"] == 60
    assert narrowed("aws", 10_000, 3)["resources"]["max_hourly_cost"] == 3333.333334, "never below the limit"
    assert "max_hourly_cost" not in narrowed("aws", None)["resources"]
    assert "max_hourly_cost" not in narrowed("aws", 1)["resources"], "the gate refuses it"
    on_cpus = narrowed("aws", 10, accelerators=None, cpus="8+", use_spot=True)
    assert "max_hourly_cost" not in on_cpus["resources"]


def test_places_stay_as_they_are_where_all_or_nothing_fits_or_the_profile_says_the_price() -> None:
    for profile, dollars in (("aws", None), ("aws", 10_000), ("aws", 1), ("slurm", 1), ("local", 1)):
        assert "any_of" not in narrowed(profile, dollars)["resources"], profile


@pytest.mark.parametrize("market", [{}, {"use_spot": True}])
def test_the_least_limit_keeps_a_region_and_a_cent_less_keeps_none(market: dict[str, Any]) -> None:
    least = narrow.least(clusters.load("aws", PROFILES), narrowed("aws", None, **market), CATALOGS)
    assert least
    assert narrowed("aws", least / MICROS, **market) != narrowed("aws", None, **market)
    assert narrowed("aws", least / MICROS - 0.01, **market) == narrowed("aws", None, **market)


def test_spot_first_keeps_its_order_and_each_market_its_own_regions() -> None:
    ways = [{"use_spot": True}, {"use_spot": False}]
    task = narrowed("aws", 120, ordered=ways)
    found = task["resources"]["ordered"]
    assert "infra" not in task["resources"]
    assert [way["use_spot"] for way in found] == sorted((way["use_spot"] for way in found), reverse=True)
    assert dearest(task) <= 120
    spot = sum(way["use_spot"] for way in found)
    assert narrow.what_is_left(task) == f"{spot} regions on spot and {len(found) - spot} regions on-demand"
    assert narrow.what_is_left(narrowed("aws", None, ordered=ways)) is None


def test_of_several_types_of_gpu_each_keeps_its_regions_and_all_keep_their_order() -> None:
    kinds = ["H100:8", "A100-80GB:8"]
    found = narrowed("any", 60, accelerators=kinds)["resources"]
    assert "accelerators" not in found, "SkyPilot refuses a list beside the regions"
    assert "any_of" not in found, "the first type is tried first"
    for kind in kinds:
        mine = [way["infra"] for way in found["ordered"] if way["accelerators"] == kind]
        alone = narrowed("any", 60, accelerators=kind)["resources"]["any_of"]
        assert mine == [way["infra"] for way in alone]
    listed = [way["accelerators"] for way in found["ordered"]]
    assert listed == sorted(listed, key=kinds.index)
    assert narrowed("lambda", 10_000, accelerators=kinds)["resources"]["accelerators"] == kinds
    assert narrowed("any", 1, accelerators=kinds) == narrowed("any", None, accelerators=kinds)


def test_of_several_types_of_gpu_no_region_that_is_left_is_dearer_on_any_market() -> None:
    ways = [
        {"accelerators": kind, "use_spot": spot} for spot in (True, False) for kind in ("H100:8", "H200:8")
    ]
    task = narrowed("aws", 140, accelerators=None, ordered=ways)
    found = task["resources"]["ordered"]
    assert dearest(task) <= 140
    assert task["resources"]["max_hourly_cost"] == 70
    marks = [(not way["use_spot"], way["accelerators"] != "H100:8") for way in found]
    assert marks == sorted(marks)
    spot = {way["infra"] for way in found if way["use_spot"]}
    others = {way["infra"] for way in found if not way["use_spot"]}
    assert len(found) > len(spot) + len(others), "some have both types"
    assert narrow.what_is_left(task) == f"{len(spot)} regions on spot and {len(others)} regions on-demand"
