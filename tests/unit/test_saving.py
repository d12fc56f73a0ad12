"""How often a run on spot saves: Daly's interval, what of it is measured, and that the trainer gets it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launcher import clusters, job, project
from launcher.agent import saving
from launcher.agent.job import Job
from launcher.artifacts.store import FileStore
from launcher.money import availability
from launcher.money.interval import interval
from launcher.plan import Request, plans, select
from tests.rig import Rig

ROOT = Path(__file__).parents[2]
SECONDS = st.floats(1e-3, 1e4)
LASTING = st.floats(60.0, 1e6)


def overhead(every: float, checkpoint: float, between: float) -> float:
    """Seconds that a second of work takes with a checkpoint after ``every`` seconds of it, where failures are
    exponential: Daly's equation 20 without the restarts, which no interval changes."""
    return between / every * math.expm1((every + checkpoint) / between)


@given(SECONDS, LASTING)
def test_no_other_interval_costs_much_less(checkpoint: float, between: float) -> None:
    """Against a scan of Daly's own expression of the time that a job takes."""
    chosen = interval(checkpoint, between)
    assert 0 < chosen <= between
    scan = np.geomspace(between * 1e-5, between * 10, 4000)
    with np.errstate(over="ignore"):
        best = float((between / scan * np.expm1((scan + checkpoint) / between)).min())
    limit = 1.001 if checkpoint < between / 2 else 1.07  # the series was cut, and Daly's own bound is M
    assert overhead(chosen, checkpoint, between) <= best * limit


@given(SECONDS, LASTING, st.floats(1.01, 10.0))
def test_dear_checkpoints_and_lasting_nodes_are_saved_less_often(
    checkpoint: float, between: float, more: float
) -> None:
    """On either side of a checkpoint of twice ``between``: there Daly's own falls from M to 8/9 M."""
    if checkpoint < between * 2 or checkpoint >= between * more * 2:
        assert interval(checkpoint, between * more) > interval(checkpoint, between)
    if checkpoint * more < between / 2:
        assert interval(checkpoint * more, between) > interval(checkpoint, between)


@given(st.floats(60.0, 1e6))
def test_it_is_youngs_where_checkpoints_are_short(between: float) -> None:
    assert interval(between * 1e-6, between) == pytest.approx(math.sqrt(2e-6) * between, rel=0.01)


def job_of(**changed: Any) -> Job:
    facts: dict[str, Any] = dict.fromkeys(("s3_endpoint", "tracking", "output", "keep", "price_per_hour"))
    given: dict[str, Any] = {"config": {"train": {"save_interval": 50}}, "checkpoint_every": "auto"}
    given |= {"between_preemptions": 10_000.0, **changed}
    return Job("r", "tiny", "pretrain", "tiny", "/a", inputs={}, provenance={}, **facts, **given)


def journal(end: str | None = None, zone: str | None = None, save: float = 8.0) -> list[dict[str, Any]]:
    """An attempt of 1000 s with steps of 2 s, every fifth reported, and a checkpoint that took ``save``."""
    points = [{"key": "loss", "value": 1.0, "step": n, "ts": 100.0 + 2 * n} for n in range(5, 100, 5)]
    events: list[dict[str, Any]] = [
        {"type": "attempt_started", "ts": 0.0, "place": {"zone": zone}},
        {"type": "metrics", "ts": 200.0, "points": points[:6]},
        {"type": "metrics", "ts": 300.0, "points": points[6:]},
        {"type": "checkpoint", "ts": 301.0, "step": 50, "seconds": save},
        {"type": "system", "ts": 1000.0, "points": []},
    ]
    return [*events, {"type": "attempt_ended", "ts": 1000.0, "status": end}] if end else events


def test_the_interval_is_of_what_earlier_attempts_measured() -> None:
    chosen = saving.choose(job_of(), None, [journal()])
    assert chosen
    assert (chosen.step, chosen.checkpoint) == (2.0, 8.0)
    assert chosen.between == (10_000 + 1000) / 2
    assert chosen.seconds == interval(8.0, 5500.0)
    assert chosen.steps == round(chosen.seconds / 2)
    assert saving.applied(job_of().config, chosen.steps) == {"train": {"save_interval": chosen.steps}}
    twice = saving.choose(job_of(), "a", [journal(zone="a", save=4.0), journal("interrupted", "b", save=8.0)])
    assert twice
    assert (twice.checkpoint, twice.between) == (6.0, 5500.0), "b's preemptions say nothing of a"
    known = saving.choose(job_of(between_by_zone={"a": 3000.0, "b": 9.0}), "a", [journal(zone="a")])
    assert known
    assert known.between == (3000 + 1000) / 2, "that zone's own history"
    ended = saving.choose(job_of(), None, [journal("failed")])
    assert ended
    assert ended.between == 11_000.0, "that was no preemption"


def test_what_is_fixed_or_not_measured_stays() -> None:
    assert saving.choose(job_of(), None, []) is None
    assert saving.choose(job_of(checkpoint_every=600.0), None, [journal()[:2]]) is None, "no speed is known"
    assert saving.choose(job_of(checkpoint_every=None), None, [journal()]) is None
    assert saving.choose(job_of(config={"train": {}}), None, [journal()]) is None
    assert saving.choose(job_of(), None, [journal()[:3]]) is None, "no checkpoint was committed"
    fixed = saving.choose(job_of(checkpoint_every=600.0), None, [journal()[:3]])
    assert fixed
    assert (fixed.steps, fixed.seconds, fixed.between) == (300, 600.0, None)


def test_the_second_attempt_saves_as_the_first_one_measured(rig: Rig) -> None:
    rig.config = {"train": {"save_interval": 7}}
    rig.job["checkpoints"] = {"keep": 2, "every": "auto", "between_preemptions": 36_000.0}
    rig.run("20", "save=5", "sleep=0.15", "at=15", "exit=3", code=3)
    assert yaml.safe_load((rig.work / "config.yaml").read_text())["train"]["save_interval"] == 7
    assert "saving" not in rig.journal(1)[0]
    rig.job["output"] = None
    words = ("bash", "-c", "cat $NEMO_SKY_CONFIG")
    lead = rig.start(*words, SKYPILOT_NUM_NODES="2")
    other = {"SKYPILOT_NODE_RANK": "1", "NEMO_SKY_WORK": str(rig.folder / "other")}
    member = rig.start(*words, SKYPILOT_NUM_NODES="2", **other)
    printed = [rig.finish(process, 0) for process in (lead, member)]
    found = rig.journal(2)[0]["saving"]
    assert 0.01 < found["step"] < 5
    assert found["between"] > 36_000
    assert f"saves every {found['steps']} steps" in printed[0]
    assert all(f"save_interval: {found['steps']}\n" in text for text in printed), (
        "every node at the same steps"
    )


@pytest.mark.parametrize(
    ("market", "override", "setting", "every"),
    [
        ("spot", "train.steps=9", "", "auto"),
        ("spot-first", "train.steps=9", "", "auto"),
        ("on-demand", "train.steps=9", "", None),
        ("spot", "train.save_interval=9", "", None),
        ("spot", "train.steps=9", "recipe", None),
        ("spot", "train.steps=9", "30m", 1800.0),
    ],
)
def test_a_launch_on_spot_leaves_it_to_the_agent_unless_it_is_fixed(
    tmp_path: Path, market: str, override: str, setting: str, every: object
) -> None:
    money = f"money: {{checkpoint_every: {setting}}}\n" if setting else ""
    (tmp_path / "nemo-sky.yaml").write_text(f"clusters: {ROOT}/clusters\n{money}")
    found = project.find(tmp_path, recipes=ROOT / "recipes")
    placement = clusters.Placement(None, None, None, market)
    request = Request("tiny", "pretrain", "aws", overrides=(override, "data=null"), placement=placement)
    [plan] = plans(request, found, select(request, found))
    store = FileStore(tmp_path / "store")
    told = job.checkpoints_of(plan, found, request, job.task_of(plan, found, "r"), store)
    assert told
    assert told.get("every") == every
    assert ("between_preemptions" in told) == ("between_by_zone" in told) == (every is not None)


def test_the_shipped_history_says_how_long_a_stay_lasts() -> None:
    prior = availability.load_prior()
    short, long = (availability.mean_stay(prior, [f"us-{zone}_v100_1"]) for zone in ("east-1a", "west-2b"))
    assert 3600 < short < availability.mean_stay(prior) < long < 6 * 3600


def test_the_trainers_of_the_recipes_have_the_key(tmp_path: Path) -> None:
    recipes = ROOT / "recipes"
    for stage in ("tiny/pretrain", "nano3/pretrain", "dense/sft"):
        config = yaml.safe_load((recipes / stage / "config" / "default.yaml").read_text())
        assert saving.applied(config, 9)[saving._section(config) or ""][saving.KEY] == 9
