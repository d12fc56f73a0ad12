"""An attempt's price is that of the place where it really was, once it has ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import clusters, job, plan, project
from launcher.artifacts.store import FileStore
from launcher.backends import State
from launcher.errors import Refused
from launcher.money import account, booking, prices, tariff
from launcher.money.account import HOUR_MS, MICROS, About, Entry
from launcher.money.caps import from_flags
from launcher.money.ledger import open_ledger
from tests.unit.test_booking import LONG_AGO, RUN

CATALOGS = Path(__file__).parents[1] / "fixtures" / "catalogs" / "v8"
PROFILES = Path(__file__).parents[2] / "clusters"
SCRIPT = """# /// script
# [tool.runspec]
# name = "demo/one"
# [tool.runspec.run]
# launch = "direct"
# [tool.runspec.resources]
# nodes = 2
# gpus_per_node = 8
# [tool.nemo_sky]
# accelerator = "H100"
# ///
"""
ABOUT = About("tiny", "pretrain", "ann", "aws")


def cost(
    store: FileStore, infra: str, place: dict[str, str], market: str, highest: bool = True, attempt: int = 1
) -> dict[str, Any]:
    """The run's entry after an hour on two nodes of 8 H100 in ``place``, and its receipt."""
    profile = clusters.load(infra, PROFILES)
    task: dict[str, Any] = {"num_nodes": 2, "resources": {"accelerators": "H100:8", "infra": infra}}
    if market == "spot-first":
        task["resources"]["ordered"] = [{"use_spot": True}, {"use_spot": False}]
    else:
        task["resources"]["use_spot"] = market == "spot"
    price, _ = prices.prices_of(profile, task, CATALOGS, highest=highest)
    assert price is not None
    tariff.keep(store, "r", LONG_AGO, tariff.of(profile, task, CATALOGS))
    entry = Entry("r-1", "r", round(price * MICROS), LONG_AGO, LONG_AGO + HOUR_MS, nodes=2, market=market)
    ledger = open_ledger(store)
    ledger.change("runs/r", lambda held: account.reserve(held, entry, ABOUT))
    if attempt:
        ledger.change("runs/r", lambda held: account.adopt(held, "r-1", attempt, place))
    said = booking.settle(store, RUN, State("SUCCEEDED"))
    once = ledger.read("runs/r")
    assert booking.settle(store, RUN, State("SUCCEEDED")) == said
    assert ledger.read("runs/r") == once
    [found] = once.of("r")
    return {"paid": found.cost / MICROS, "on_demand": found.on_demand, "reserved": price, "said": said}


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def test_what_was_reserved_for_the_dearest_place_is_paid_for_the_real_one(store: FileStore) -> None:
    seen = cost(store, "gcp", {"cloud": "GCP", "region": "us-central1", "zone": "us-central1-a"}, "on-demand")
    assert (seen["reserved"], seen["paid"]) == (223.63438, 86.1323)


def test_a_zone_by_its_letter_may_be_any_of_its_region(store: FileStore) -> None:
    seen = cost(store, "aws", {"cloud": "AWS", "region": "us-east-2", "zone": "us-east-2b"}, "spot")
    assert (seen["reserved"], seen["paid"]) == (110.08, 23.9824), "the dearest of the region"
    assert seen["on_demand"] == 110.08 * MICROS
    assert "saved $86.10" in seen["said"]


def test_without_a_cap_a_dearer_place_than_the_first_is_paid_too(store: FileStore) -> None:
    place = {"cloud": "AWS", "region": "ap-northeast-2", "zone": "ap-northeast-2a"}
    seen = cost(store, "aws", place, "on-demand", highest=False)
    assert (seen["reserved"], seen["paid"]) == (110.08, 151.9104)


@pytest.mark.parametrize(
    ("market", "place", "attempt"),
    [
        ("spot-first", {"cloud": "AWS", "region": "us-east-2"}, 1),
        ("on-demand", {"cloud": "AWS", "region": "mars-1"}, 1),
        ("on-demand", {"cloud": "AWS", "region": "us-east-2"}, 0),
    ],
)
def test_what_is_not_known_stays_as_it_was_reserved(
    store: FileStore, market: str, place: dict[str, str], attempt: int
) -> None:
    seen = cost(store, "aws", place, market, attempt=attempt)
    assert (seen["paid"], seen["on_demand"]) == (seen["reserved"], None)


def test_what_an_earlier_launch_began_stays(store: FileStore) -> None:
    profile = clusters.load("aws", PROFILES)
    task = {"resources": {"accelerators": "H100:8", "infra": "aws"}}
    tariff.keep(store, "r", LONG_AGO, tariff.of(profile, task, CATALOGS))
    old = Entry("r-0", "r", 1, LONG_AGO - 1, LONG_AGO, cloud="aws", region="us-east-1", attempt=1)
    held = account.reserve(account.Account(), old, ABOUT)
    table = tariff.read(store, "r")
    assert table
    assert tariff.apply(table, held, "r") == held
    new = replace(old, key="r-1", launched=LONG_AGO, until=LONG_AGO + HOUR_MS, attempt=2)
    prices_now = [e.price for e in tariff.apply(table, account.reserve(held, new, ABOUT), "r").of("r")]
    assert prices_now == [1, 55.04 * MICROS]


def set_catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_SKY_CATALOGS", str(CATALOGS))
    for name in ("NEMO_SKY_ARTIFACTS", "NEMO_SKY_TRACKING", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


def project_at(root: Path) -> project.Project:
    """A project with one recipe, and a profile of AWS."""
    (root / "nemo-sky.yaml").write_text("artifacts: s3://b/p\n")
    (root / "clusters").mkdir()
    (root / "clusters" / "aws.yaml").write_text("infra: aws\n")
    recipe = root / "recipes" / "demo" / "one"
    (recipe / "config").mkdir(parents=True)
    (recipe / "train.py").write_text(SCRIPT)
    (recipe / "config" / "default.yaml").write_text("lr: 0.5\n")
    return project.read(root)


@pytest.mark.parametrize(
    ("market", "reserved", "paid"),
    [("spot-first", 151.9104, 151.9104), ("spot", 110.08, 23.9824), ("on-demand", 151.9104, 110.08)],
)
def test_a_launch_keeps_its_table_and_says_no_market_that_it_does_not_know(
    market: str, reserved: float, paid: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_catalogs(monkeypatch)
    here = project_at(tmp_path)
    request = plan.Request(
        "demo", "one", cluster="aws", placement=clusters.Placement(market=market), caps=from_flags("9k"),
        ignore_estimates=True,
    )  # fmt: skip
    [draft] = plan.plans(request, here, plan.select(request, here))
    store = FileStore(tmp_path / "store")
    booked = booking.book(draft, RUN, request, here, store, job.task_of(draft, here, "r"), print)
    assert (booked.entry.market, booked.entry.price) == (market, reserved * MICROS)
    assert (booked.entry.on_demand is None) == (market == "spot-first")
    adopted = account.adopt(open_ledger(store).read("runs/r"), booked.entry.key, 1, {"region": "us-east-2"})
    table = tariff.read(store, "r")
    assert table
    [entry] = tariff.apply(table, adopted, "r").of("r")
    assert entry.price == paid * MICROS


def test_a_resumed_run_prices_what_nobody_saw_the_end_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reserved at $151.91 an hour, the dearest place, it was at $110.08: what it has not cost is free again,
    and the second launch's own table says nothing of it."""
    set_catalogs(monkeypatch)
    here = project_at(tmp_path)
    store = FileStore(tmp_path / "store")
    ledger = open_ledger(store)

    def book(budget: str) -> booking.Booking:
        request = plan.Request("demo", "one", cluster="aws", caps=from_flags(budget), ignore_estimates=True)
        [draft] = plan.plans(request, here, plan.select(request, here))
        return booking.book(draft, RUN, request, here, store, job.task_of(draft, here, "r"), lambda _: None)

    first = book("400").entry
    place = {"cloud": "AWS", "region": "us-east-2"}
    hours = first.launched + 2 * HOUR_MS
    ledger.change("runs/r", lambda held: account.adopt(held, first.key, 1, place))
    ledger.change("runs/r", lambda held: account.renew(held, first.key, hours))
    ledger.change("runs/r", lambda held: account.settle(held, first.key, hours))
    with pytest.raises(Refused, match=r"\$220.16 is spent or reserved"):
        book("230")
    second = book("320").entry
    seen = ledger.read("runs/r").entries
    assert (seen[first.key].price, seen[second.key].price) == (110.08 * MICROS, 151.9104 * MICROS)
    table = tariff.read(store, "r")
    assert table
    assert table.launched == second.launched


def test_a_launch_without_a_table_has_none_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_catalogs(monkeypatch)
    here = project_at(tmp_path)
    store = FileStore(tmp_path / "store")
    tariff.keep(store, "r", LONG_AGO, [tariff.Rate("aws", "us-east-2", None, "on-demand", 7, 7)])
    (tmp_path / "clusters" / "aws.yaml").write_text("infra: aws\nprice_per_hour: 2\n")
    request = plan.Request("demo", "one", cluster="aws", caps=from_flags("9k"), ignore_estimates=True)
    [draft] = plan.plans(request, here, plan.select(request, here))
    booked = booking.book(draft, RUN, request, here, store, job.task_of(draft, here, "r"), lambda _: None)
    place = {"cloud": "aws", "region": "us-east-2"}
    open_ledger(store).change("runs/r", lambda held: account.adopt(held, booked.entry.key, 1, place))
    booking.settle(store, RUN, State("SUCCEEDED"))
    [entry] = open_ledger(store).read("runs/r").of("r")
    assert entry.price == 4 * MICROS


def test_who_says_the_price_has_no_table() -> None:
    task = {"resources": {"accelerators": "H100:8"}}
    assert tariff.of(clusters.load("slurm", PROFILES), task, CATALOGS) == []
    assert tariff.of(clusters.load("local", PROFILES), task, CATALOGS) == []
    priced = replace(clusters.load("aws", PROFILES), price_per_hour=1.0)
    assert tariff.of(priced, task, CATALOGS) == []
