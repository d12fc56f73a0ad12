"""A stage of a pipeline that is launched a second time: not twice at once, and not out of its budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher import launch, pipeline, plan, project, runs
from launcher.artifacts.store import open_store
from launcher.backends import local
from launcher.errors import Refused
from launcher.money import account
from launcher.money.ledger import open_ledger
from tests.rig import until
from tests.unit.test_ledger import ABOUT, ONE
from tests.unit.test_plan import add_stage

ASKED = plan.Request("f", "x")


@pytest.fixture
def begun(place: project.Project) -> tuple[plan.Plan, runs.Run]:
    """A stage, and its run as a pipeline recorded it: its fingerprint was not known then."""
    add_stage(place.root, "f/x")
    (draft,) = plan.plans(ASKED, place, plan.select(ASKED, place))
    run = replace(launch.new_run(draft, ASKED, place), fingerprint="")
    runs.save(place.runs, run)
    return draft, run


def test_a_stage_that_has_not_begun_is_not_launched_beside_itself(
    place: project.Project,
    begun: tuple[plan.Plan, runs.Run],
) -> None:
    draft, run = begun
    folder = runs.directory(place.runs, run.run_id)
    local.submit(folder, {"name": "t", "run": "sleep 60"})
    try:
        with pytest.raises(Refused, match=f"{run.run_id} is this very run and is"):
            launch.begin_or_resume(draft, ASKED, place, print)
    finally:
        local.cancel(folder, grace_s=0)
        until(lambda: not local.status(folder).active)
    assert launch.begin_or_resume(draft, ASKED, place, print).run_id == run.run_id, "it is taken up"


def with_budget(held: account.Account, run_id: str, owner: str | None) -> account.Account:
    held = account.reserve(held, replace(ONE, key=run_id, run=run_id), ABOUT)
    return account.set_budget(held, owner, 5_000_000, "ann", 1)


@pytest.mark.parametrize("experiment", [None, "e"])
def test_a_run_under_a_cap_is_no_stage_of_a_pipeline(
    place: project.Project,
    begun: tuple[plan.Plan, runs.Run],
    experiment: str | None,
) -> None:
    run = replace(begun[1], experiment=experiment)
    store = open_store(place.artifacts)
    pipeline.uncapped(run, store)
    name = f"experiments/{experiment}" if experiment else f"runs/{run.run_id}"
    owner = None if experiment else run.run_id
    open_ledger(store).change(name, lambda held: with_budget(held, run.run_id, owner))
    with pytest.raises(Refused, match=f"{run.run_id} is unfinished and .*(experiment e|with a budget)"):
        pipeline.uncapped(run, store)
