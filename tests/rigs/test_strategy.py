"""Our recovery strategy in SkyPilot's own controller, on the emulated AWS: zones and markets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.aws.catalogs import REGIONS
from tests.rigs.aws.rig import AwsRig, Instance, aws_rig
from tests.rigs.conftest import require_aws
from tests.rigs.launching import PACED, REACHED_S, Launches, aws_project, eventually

WORDS = (*PACED, "steps=1000", "sleep=0.03", "save=100")
# A zone that refused is left alone for a set-up's time: on a busy machine both of a region refuse within it.
MONEY = "money: {check_every: 5s, setup: 120s, teardown: 5s}\n"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsRig]:
    """A rig of this module's own, whose API server is to have the plugin."""
    require_aws()
    with aws_rig(tmp_path_factory.mktemp("strategy") / "rig") as rig:
        yield rig


@pytest.fixture(scope="module")
def on(aws: AwsRig, tmp_path_factory: pytest.TempPathFactory) -> Launches:
    project = aws_project(aws, tmp_path_factory.mktemp("on-aws") / "project")
    with (project.root / "nemo-sky.yaml").open("a") as file:
        file.write(MONEY)
    assert "added to" in project.run("plugin", "install").stdout
    assert "already in" in project.run("plugin", "install").stdout
    return Launches(project, aws.profile)


@pytest.fixture(autouse=True)
def nothing_stays(aws: AwsRig) -> Iterator[None]:
    yield
    aws.hold(None)
    assert eventually(lambda: not aws.instances(), 120), "an instance was left running"


def attempts(on: Launches, run_id: str) -> list[dict[str, Any]]:
    """The run's launches in the ledger that came to an agent, in order. Those that were refused have cost
    nothing; the first of all is the launcher's own, until the strategy chose."""
    rows: list[dict[str, Any]] = json.loads(on.project.run("cost", run_id, "--json").stdout)["rows"]
    _, *rows = sorted(rows, key=lambda row: str(row["launched_at"]))
    assert not [row for row in rows if row["attempt"] is None and row["cost_usd"]]
    return [row for row in rows if row["attempt"] is not None]


def last_word(aws: AwsRig) -> str:
    """What our strategy has said last, of the newest job."""
    logs = (Path(aws.env["HOME"]) / "sky_logs" / "jobs_controller").glob("[0-9]*.log")
    newest = max(logs, key=lambda log: int(log.stem))
    return [line for line in newest.read_text(errors="replace").splitlines() if "[nemo-sky]" in line][-1]


def the_only(aws: AwsRig) -> Instance:
    (found,) = aws.instances()
    return found


def test_a_preempted_job_goes_on_in_another_zone(on: Launches, aws: AwsRig) -> None:
    aws.hold(300)
    run_id = on.detach(*WORDS, "--spot", "--force")
    assert eventually(aws.reached, REACHED_S)
    first = the_only(aws)
    assert first.spot
    shown = on.project.run("plugin", "status").stdout
    assert shown.startswith("the API server has the plugin nemo-sky")
    assert run_id in on.project.run("plugin", "uninstall", code=3).stderr
    aws.preempt(first.id, notice=False)
    assert eventually(lambda: any(item.id != first.id for item in aws.instances()), 300)
    second = the_only(aws)
    assert second.zone != first.zone
    aws.hold(None)
    ended = on.finish(run_id, 600)
    assert (ended["status"], ended["preemptions"]) == ("SUCCEEDED", 1)
    assert ended["attempt_list"][1]["restored_from"] == 200
    launches = attempts(on, run_id)
    assert [row["place"].split("/")[-1] for row in launches] == [first.zone, second.zone]
    assert {row["market"] for row in launches} == {"spot"}


def test_from_on_demand_back_to_spot_at_a_checkpoint(on: Launches, aws: AwsRig) -> None:
    region, zones = "us-west-2", REGIONS["us-west-2"]
    for zone in zones:
        aws.capacity(zone, False, spot=True)
    aws.hold(300)
    run_id = on.detach(*WORDS, "--spot-first", "--region", region, "--force")
    assert eventually(aws.reached, 2 * REACHED_S)
    assert not the_only(aws).spot
    for zone in zones:
        aws.capacity(zone, True, spot=True)
    # It may have looked for spot before, and have come back to on-demand.
    assert eventually(lambda: last_word(aws).endswith("at the next checkpoint"), 300)
    aws.hold(600)  # until then it goes on; the last checkpoint before a move is one of these
    assert eventually(lambda: any(item.spot for item in aws.instances()), 300), "it stayed on-demand"
    aws.hold(None)
    ended = on.finish(run_id, 600)
    assert ended["status"] == "SUCCEEDED"
    assert [market for market, _ in groupby(row["market"] for row in attempts(on, run_id))] == [
        "on-demand",
        "spot",
    ]
    assert 300 <= ended["attempt_list"][-1]["restored_from"] < 600
