"""``--dry-run`` shows the very task.yaml that the launch then writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import dry, job, launch, pipeline, plan, project, runs, task
from launcher.clusters import Placement
from launcher.money.caps import from_flags
from launcher.skyplugin.names import NAME
from tests.unit.test_plan import add_stage
from tests.unit.test_quote import CATALOGS

RAY = '# [tool.runspec.run]\n# launch = "ray"\n'
H100 = '# [tool.nemo_sky]\n# accelerator = ["H200", "H100"]\n'
BUDGET = from_flags("9k")
ALL = from_flags(budget="9k", max_hourly="170", deadline="90h")


@pytest.fixture
def here(place: project.Project, monkeypatch: pytest.MonkeyPatch) -> project.Project:
    """Stages on the nodes of a cloud that sees this machine's folders; SkyPilot takes every launch."""
    import sky
    import sky.jobs

    monkeypatch.setenv("NEMO_SKY_CATALOGS", str(CATALOGS))
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    add_stage(place.root, "f/plain")
    add_stage(place.root, "f/ray", more=RAY)
    add_stage(place.root, "f/gpus", more=H100)
    script = place.root / "recipes" / "f" / "gpus" / "script.py"
    script.write_text(script.read_text().replace("gpus_per_node = 0", "gpus_per_node = 8"))
    profile = "extends: aws\nshared_filesystem: true\nsecrets: [HF_TOKEN]\n"
    (place.root / "there.yaml").write_text(profile)
    monkeypatch.setattr(sky, "launch", lambda *_, **__: "request")
    monkeypatch.setattr(sky.jobs, "launch", lambda *_, **__: "request")
    return place


def served(monkeypatch: pytest.MonkeyPatch, plugins: list[str] | None) -> None:
    """SkyPilot's API server has ``plugins``; None: there is no server."""
    import requests
    from sky.server import common

    def answer(*_: Any, **__: Any) -> requests.Response:
        if plugins is None:
            raise requests.ConnectionError("nobody listens")
        reply = requests.Response()
        reply.status_code = 200
        reply._content = json.dumps({"plugins": [{"name": name} for name in plugins]}).encode()
        return reply

    monkeypatch.setattr(common, "make_authenticated_request", answer)


def of_run(shown: task.Task) -> task.Task:
    """The task without its run's id and what follows from it, and without the launch's time."""
    run_id = shown["envs"]["NEMO_SKY_RUN_ID"]
    ports = job.ports_of(run_id)
    assert {key: shown["envs"].get(key) for key in ports} in (ports, dict.fromkeys(ports))
    envs = {key: value for key, value in shown["envs"].items() if key not in ports}
    for moment in ("NEMO_SKY_FUSE_AT", "NEMO_SKY_FUSE_DEADLINE"):
        if float(envs.get(moment, 0)) > 1e9 and envs[moment] != "inf":
            envs[moment] = "then"
    same: task.Task = yaml.safe_load(task.dump({**shown, "envs": envs}).replace(run_id, "RUN"))
    terms = same.get("resources", {}).get("job_recovery", {}).get("nemo_sky", {})
    for time in ("began", "deadline"):
        terms[time] = terms.get(time) and "then"
    if own := terms.get("reservation"):
        assert own.startswith("RUN/")
        terms["reservation"] = "RUN/its own"
    return same


@pytest.mark.parametrize("plugins", [None, [], [NAME]])
@pytest.mark.parametrize(
    ("stage", "words", "parts"),
    [
        ("plain", {}, []),
        ("plain", {"caps": BUDGET}, ["NEMO_SKY_FUSE_LONGEST_S"]),
        ("plain", {"managed": True, "retries": 2}, ["FAILOVER", "max_restarts_on_errors"]),
        ("plain", {"placement": Placement(market="spot")}, ["strategy"]),
        ("ray", {"nodes": 2}, ["RAY_AUTH_TOKEN"]),
        (
            "gpus",
            {"nodes": 2, "placement": Placement(market="spot-first"), "caps": ALL},
            ["strategy", "infra"],
        ),
    ],
)
def test_a_dry_run_shows_the_task_of_the_launch(
    here: project.Project,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    words: dict[str, Any],
    parts: list[str],
    plugins: list[str] | None,
) -> None:
    served(monkeypatch, plugins)
    asked: dict[str, Any] = {"cluster": str(here.root / "there.yaml"), "ignore_estimates": True, **words}
    request = plan.Request("f", stage, **asked)
    [(drafted, shown)] = dry.dry_run(request, here, print)
    assert not here.runs.exists()
    run = launch.begin(drafted, request, here, launch.open_store(here), print)
    written = yaml.safe_load((runs.directory(here.runs, run.run_id) / "task.yaml").read_text())
    assert of_run(written) == of_run(shown)
    text = task.dump(shown)
    assert all(part in text for part in [*parts, "HF_TOKEN: null"])
    assert "hf_fake" not in text
    on_spot = "placement" in words
    assert ("strategy: NEMO_SKY" in text) == (on_spot and plugins == [NAME])
    assert ("NEMO_SKY_FUSE_S" in text) == ("caps" in words)


def test_a_dry_run_says_where_nobody_knows_who_recovers_it(
    here: project.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(monkeypatch, None)
    said: list[str] = []
    spot = plan.Request("f", "plain", cluster="aws", placement=Placement(market="spot"))
    dry.dry_run(spot, here, said.append)
    assert said == [
        "f/plain: recovered by SkyPilot's FAILOVER, as shown, or by our strategy: its API server is not up"
    ]


def test_the_stages_of_a_pipeline_are_shown_as_they_are_written(
    here: project.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One managed job of several tasks has no booking, and so neither our strategy nor a fuse."""
    served(monkeypatch, [NAME])
    spot = Placement(market="spot", gpus="H100:8")
    request = plan.Request("f", "all", cluster=str(here.root / "there.yaml"), placement=spot, detach=True)
    shown = dry.dry_run(request, here, print)
    assert len(shown) == 3
    outcomes = pipeline.launch(
        [drafted for drafted, _ in shown], request, here, launch.open_store(here), print, print
    )
    for (_, of_dry), outcome in zip(shown, outcomes, strict=True):
        written = (runs.directory(here.runs, outcome.run_id) / "task.yaml").read_text()
        assert of_run(yaml.safe_load(written)) == of_run(of_dry)
        assert "strategy: FAILOVER" in written


@pytest.mark.parametrize("cluster", ["local", "fake"])
def test_a_dry_run_on_this_machine_shows_the_task_that_runs(here: project.Project, cluster: str) -> None:
    request = plan.Request("f", "plain", cluster=cluster, caps=BUDGET, ignore_estimates=True)
    [(_, shown)] = dry.dry_run(request, here, print)
    [outcome] = launch.launch(request, here, print, print)
    written = (runs.directory(here.runs, outcome.run_id) / "task.yaml").read_text()
    assert of_run(yaml.safe_load(written)) == of_run(shown)


def test_a_task_that_would_be_refused_is_shown_whole(
    here: project.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    profile = (here.root / "there.yaml").read_text()
    Path(here.root / "there.yaml").write_text(profile.replace("extends: aws", "extends: runpod"))
    said: list[str] = []
    asked: dict[str, Any] = {"cluster": str(here.root / "there.yaml"), "nodes": 2, "caps": from_flags("1")}
    [(_, shown)] = dry.dry_run(plan.Request("f", "plain", **asked), here, said.append)
    refusals = [line for line in said if "a launch would be refused" in line]
    assert [("HF_TOKEN" in line, "runpod" in line) for line in refusals] == [(True, False), (False, True)]
    assert shown["secrets"] == {"HF_TOKEN": None}
    assert "NEMO_SKY_FUSE_S" in shown["envs"]
