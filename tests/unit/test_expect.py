"""What a launch is expected to take and cost: from its config and the catalogs, less what is done already."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import clusters, dry, job, plan, project
from launcher import launch as flow
from launcher.artifacts.store import FileStore
from launcher.cli.main import main
from launcher.errors import Refused
from launcher.money import booking, estimate, expect
from launcher.money.amounts import parse_duration
from launcher.money.caps import from_flags
from launcher.money.estimate import Past, Work
from launcher.money.expect import Limits
from launcher.money.gate import Expected
from launcher.money.ledger import open_ledger
from launcher.money.want import alternatives
from tests.unit.earlier_runs import ended
from tests.unit.test_quote import CATALOGS, NANO3, ROOT

TASK: dict[str, Any] = {"num_nodes": 2, "resources": {"accelerators": "H100:8", "infra": "aws"}}
AWS = clusters.Profile("aws", (), infra="aws")
OWN = clusters.Profile("desk", (), backend="local", price_per_hour=10.0)


NO_LIMITS = Limits()


def seen(work: Work, limits: Limits = NO_LIMITS, **resources: Any) -> Expected:
    task = {**TASK, "resources": {**TASK["resources"], **resources}}
    return expect.expected(AWS, task, work, limits)


@pytest.fixture(autouse=True)
def catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_SKY_CATALOGS", str(CATALOGS))


def test_the_market_that_is_not_asked_for_is_only_named() -> None:
    found = seen(Work(hours=10.0))
    assert found.best
    assert found.best.where.endswith(" on on-demand")
    assert {way.where.rpartition(" on ")[2] for way in found.ways if not way.asked} == {"spot"}
    spot = seen(Work(hours=10.0), use_spot=True)
    assert spot.best
    assert spot.best.where.endswith(" on spot")
    assert spot.best.cost < found.best.cost


def test_a_checkpoint_leaves_only_the_rest() -> None:
    whole = estimate.work_of(NANO3)
    rest = estimate.from_step(whole, 1500)
    assert rest.left == 0.25
    hours = {n: seen(work).best for n, work in (("all", whole), ("rest", rest))}
    assert hours["all"]
    assert hours["rest"]
    setup = 0.2
    assert hours["rest"].hours - setup == pytest.approx((hours["all"].hours - setup) / 4)
    assert "25% of it is left" in hours["rest"].source
    assert estimate.from_step(whole, 5000).left == 0, "a shorter config than the checkpoint's"


def test_what_is_not_known_is_not_invented() -> None:
    unknown = seen(Work())
    assert (unknown.best, unknown.ways) == (None, ())
    assert "number of tokens is not known" in unknown.unknown
    lost = seen(estimate.from_step(Work(hours=3.0), 10))
    assert lost.best is None
    assert "does not say of how many steps" in lost.unknown
    free = clusters.Profile("local", (), backend="local")
    nowhere = expect.expected(free, {"num_nodes": 1}, Work(hours=1.0), NO_LIMITS)
    assert nowhere.unknown == "no place has a price"


def test_one_s_own_machine_needs_no_set_up() -> None:
    found = expect.expected(OWN, {"num_nodes": 2}, Work(hours=1.0), NO_LIMITS)
    assert found.best
    assert found.best.hours == pytest.approx(1.0, rel=0.01)
    assert found.best.cost == pytest.approx(20_000_000, rel=0.01)
    assert (found.best.where, found.best.chance) == ("desk", None)


def test_spot_alone_may_be_too_late_and_spot_first_is_not() -> None:
    limits = Limits(deadline=12.0)
    alone = seen(Work(hours=10.0), limits, use_spot=True).best
    both = seen(Work(hours=10.0), limits, any_of=[{"use_spot": True}, {"use_spot": False}]).best
    assert alone
    assert not alone.in_time
    assert both
    assert both.in_time
    assert both.hours <= 12


def test_each_of_several_types_of_gpu_may_do_it_however_the_task_lists_them() -> None:
    kinds = ["A100-80GB:8", "H100:8"]
    markets = [{"use_spot": True}, {"use_spot": False}]
    base, ways = alternatives({"accelerators": kinds, "infra": "aws", "ordered": markets})
    work = estimate.work_of(NANO3)
    expanded = expect.expected(AWS, {"num_nodes": 2, "resources": {**base, "ordered": ways}}, work, NO_LIMITS)
    alone = [seen(work, accelerators=kind, any_of=markets).ways for kind in kinds]
    assert all(alone)
    assert sorted(map(repr, expanded.ways)) == sorted(repr(way) for of_one in alone for way in of_one)


@pytest.mark.parametrize("market", ["spot", "spot-first"])
def test_a_plan_promises_no_more_than_the_launch_of_its_name(
    market: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch with --spot never goes on-demand, so that a plan of it may come too late, too."""
    monkeypatch.setenv("NEMO_SKY_ARTIFACTS", str(tmp_path / "store"))
    words = ["plan", "nano3", "pretrain", "--cloud", "aws", *(["--spot"] if market == "spot" else [])]
    words += ["--deadline", "14h", "--work", "10h", "--budget", "4k", "--json", "--project", str(ROOT)]
    with pytest.raises(SystemExit):
        main(words)
    rows = json.loads(capsys.readouterr().out)["rows"]
    shown = {row["place"]: row for row in rows if row["market"] == "spot"}
    assert {row["launch"] for row in shown.values()} == {market}
    asks: dict[str, dict[str, Any]] = {
        "spot": {"use_spot": True},
        "spot-first": {"any_of": [{"use_spot": True}, {"use_spot": False}]},
    }
    ways = seen(Work(hours=10.0), Limits(14.0, 4000.0), **asks[market]).ways
    found = {way.where.removesuffix(" on spot"): way.chance for way in ways if way.where.endswith(" on spot")}
    assert found
    assert {place: shown[place]["chance"] for place in found} == found
    assert (max(row["chance"] for row in shown.values()) > 0.8) == (market == "spot-first")


@settings(max_examples=12)
@given(
    hours=st.floats(0.5, 60), deadline=st.floats(1, 200), budget=st.floats(1, 1e5), spot=st.booleans()
)  # fmt: skip
def test_the_chance_agrees_with_what_is_said(
    hours: float, deadline: float, budget: float, spot: bool
) -> None:
    for way in seen(Work(hours=hours), Limits(deadline, budget), use_spot=spot).ways:
        assert way.cost > 0
        assert way.chance is not None
        assert 0 <= way.chance <= 1
        if not way.in_time:
            assert way.hours > deadline
            assert way.chance < expect.EVEN


def test_an_earlier_run_of_another_length_is_scaled() -> None:
    past = (Past("r", None, 0, 1, None, 2.0, steps=100),)
    longer = estimate.estimate(Work(steps=300, past=past), None, 0, 1)
    assert longer.hours == 6.0
    assert "2 h for 100 of 300 steps" in longer.source
    assert estimate.estimate(Work(past=past), None, 0, 1).hours == 2.0


# Several stages.

SCRIPT = """# /// script
# [tool.runspec]
# name = "demo/{name}"
# [tool.runspec.run]
# launch = "direct"
# [tool.runspec.resources]
# gpus_per_node = 0
# [tool.nemo_sky.output]
# name = "demo-{name}"
# type = "model"
# ///
"""


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> project.Project:
    """Two stages at $360 an hour, each of which took six minutes once."""
    for name in ("NEMO_SKY_ARTIFACTS", "NEMO_SKY_TRACKING", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nemo-sky.yaml").write_text("artifacts: store\nmoney: {setup: 1s, check_every: 1s}\n")
    (tmp_path / "clusters").mkdir()
    profile = "backend: local\npython: current\ncontainers: false\nprice_per_hour: 360\n"
    (tmp_path / "clusters" / "local.yaml").write_text(profile + 'env: {NEMO_SKY_GRACE_S: "1"}\n')
    found = project.read(tmp_path)
    for name in ("one", "two"):
        folder = tmp_path / "recipes" / "demo" / name
        (folder / "config").mkdir(parents=True)
        (folder / "train.py").write_text(SCRIPT.format(name=name))
        (folder / "config" / "default.yaml").write_text("lr: 0.5\n")
        ended(FileStore(Path(found.artifacts)), f"demo/{name}", "20261121-100000", hours=0.1)
    return found


def foresee(
    two: project.Project, *, cluster: str = "local", force: bool = False, managed: bool = False, **given: str
) -> dict[str, float]:
    request = plan.Request(
        "demo", "all", cluster=cluster, caps=from_flags(**given), force=force, managed=managed
    )
    drafts = plan.plans(request, two, plan.select(request, two))
    store = flow.open_store(two)
    beginning = flow.begin_anew(drafts, request, two, store)
    tasks = [job.task_of(draft, two, draft.name) for draft in beginning]
    assert len(beginning) == 2
    return booking.foresee(list(zip(beginning, tasks, strict=True)), request, two, store)


def test_all_stages_must_fit_before_the_first_begins(two: project.Project) -> None:
    foresee(two, budget="40")
    foresee(two, budget="40", experiment="e", experiment_budget="80")
    with pytest.raises(Refused, match=r"budget of run demo/one is \$30.00") as each:
        foresee(two, budget="30")
    assert "run demo-one-20261121-100000-0123abcd took as long" in str(each.value)
    with pytest.raises(Refused, match=r"budget of experiment e is \$50.00, of which \$36.* is spent or res"):
        foresee(two, experiment="e", experiment_budget="50")
    foresee(two, experiment="e", experiment_budget="50", force=True)
    assert open_ledger(flow.open_store(two)).accounts() == {}, "nothing was reserved"


def test_the_deadline_is_one_of_all_stages(two: project.Project) -> None:
    """Six minutes each: ten are enough for either and not for both, and what is said would do does."""
    needs = foresee(two, deadline="13m")
    assert needs == {name: pytest.approx(360, rel=0.02) for name in ("demo/one", "demo/two")}
    with pytest.raises(
        Refused, match=r"what the stages before it are expected to leave of the deadline of 10m"
    ) as late:
        foresee(two, deadline="10m")
    found = re.search(r"--deadline (\S+) would do", str(late.value))
    assert found
    assert 700 < parse_duration(found[1]) < 740
    foresee(two, deadline=found[1])


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"experiment": "e", "experiment_budget": "50"}, "budget of experiment e is $50.00, of which $36"),
        ({"experiment": "e", "experiment_budget": "80"}, None),
        ({"deadline": "10m"}, "what the stages before it are expected to leave of the deadline of 10m"),
        ({"budget": "30"}, "budget of run demo/one is $30.00"),
    ],
)
def test_a_dry_run_says_what_all_stages_together_would_be_told(
    two: project.Project, given: dict[str, str], refused: str | None
) -> None:
    said: list[str] = []
    dry.dry_run(plan.Request("demo", "all", caps=from_flags(**given)), two, said.append)
    told = [line for line in said if "a launch would be refused" in line]
    if refused is None:
        assert not told
    elif "budget" in given:
        assert [line.partition(":")[0] for line in told] == ["demo/one", "demo/two"], (
            "of each, and not of all again"
        )
    else:
        [one] = told
        assert one.startswith("demo/all: a launch would be refused: ")
        assert refused in one
    assert open_ledger(flow.open_store(two)).accounts() == {}, "nothing is reserved"


def test_what_is_left_of_the_deadline_is_all_that_a_later_stage_gets(two: project.Project) -> None:
    request = plan.Request("demo", "two", caps=from_flags(deadline="8m"))
    [draft] = plan.plans(request, two, plan.select(request, two))
    store, task = flow.open_store(two), job.task_of(draft, two, "r")
    end = booking.deadline_at(request, two)
    assert end

    def booked(passed: float) -> booking.Booking:
        """A stage that begins when ``passed`` minutes of the eight are over."""
        later = replace(request, deadline_at=end - round(passed * 60_000))
        return booking.book(draft, flow.new_run(draft, later, two), later, two, store, task, print)

    assert booked(0).deadline == end
    assert booked(1).deadline == end - 60_000
    with pytest.raises(Refused, match=r"than what is left of the deadline of 8m \(5m\): run demo-two"):
        booked(3)
    with pytest.raises(
        Refused, match=r"what is left of the deadline of 8m \(0s\) is \S+ shorter than set-up"
    ):
        booked(9)
    assert booking.book(draft, flow.new_run(draft, request, two), request, two, store, task, print).deadline


def test_the_set_up_that_failover_may_need_is_foreseen(two: project.Project) -> None:
    """Two stages at $360 an hour, $108 each, set-up included: on nodes whose save and end take 23 minutes a
    booking asks for $138.20, and where FAILOVER recovers for $120.10 more."""
    (two.clusters / "cloud.yaml").write_text("infra: aws/us-east-1\nprice_per_hour: 360\n")
    slow = replace(two, money=replace(two.money, teardown=1200.0))
    foresee(slow, cluster="cloud", experiment="e", experiment_budget="360")
    with pytest.raises(Refused, match=r"and \$258.10 that it must have left to save and go") as short:
        foresee(slow, cluster="cloud", managed=True, experiment="e", experiment_budget="370")
    assert re.search(r"of which \$10\d.* is spent or reserved", str(short.value))
    enough = re.search(r"--experiment-budget (\S+) would do", str(short.value))
    assert enough
    foresee(slow, cluster="cloud", managed=True, experiment="e", experiment_budget=enough[1])


def test_what_the_store_cannot_say_is_said_and_the_rest_is_expected(two: project.Project) -> None:
    (two.clusters / "cloud.yaml").write_text("infra: aws/us-east-1\nprice_per_hour: 360\n")
    request = plan.Request("demo", "one", cluster="cloud", caps=from_flags(budget="500"))
    [draft] = plan.plans(request, two, plan.select(request, two))

    def said() -> list[str]:
        store = flow.open_store(two)
        task = job.task_of(draft, two, "r")
        return list(booking.foretell(draft, "r", request, two, store, task, ours=False).lines[2:])

    [expected] = said()
    assert expected.startswith("expected: $10")
    root = Path(two.artifacts)
    (root / "spot").symlink_to(root / "spot")
    spot, as_before = said()
    assert spot.startswith("what other runs saw is not known: cannot list")
    assert as_before == expected
    (root / "runs").rename(root / "gone")
    (root / "runs").symlink_to(root / "runs")
    runs, unknown = said()
    assert runs.startswith("no earlier run was looked at: cannot list")
    assert unknown.startswith("expected: unknown (no earlier run of this config")
