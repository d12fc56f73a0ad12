"""What SkyPilot cannot do somewhere: refused by a launch before anything is spent, said by a dry run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import dry, launch, plan, project
from launcher.clusters import Placement
from launcher.errors import Refused
from launcher.money import catalogs
from tests.unit.test_plan import add_stage

CATALOGS = Path(__file__).parents[1] / "fixtures" / "catalogs" / "v8"
Ask = Callable[..., plan.Request]


@pytest.fixture
def ask(place: project.Project) -> Ask:
    """Asks for the one stage there is: on ``infra`` with ``market`` and what else a request says."""
    add_stage(place.root, "f/x")

    def request(infra: str, market: str | None = None, more: str = "", **words: Any) -> plan.Request:
        profile = place.root / "there.yaml"
        profile.write_text(f"extends: cloud\ninfra: {infra}\n{more}")
        asked: dict[str, Any] = {"cluster": str(profile), "placement": Placement(market=market), **words}
        return plan.Request("f", "x", **asked)

    return request


@pytest.fixture(autouse=True)
def prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogs.FOLDER_ENV, str(CATALOGS))


def refusals(said: list[str]) -> list[str]:
    return [line for line in said if "refused" in line]


IMAGE = "image: nvcr.io/nvidia/nemo:26.04\n"


@pytest.mark.parametrize(
    ("infra", "market", "more", "nodes", "message", "hint"),
    [
        ("runpod", None, "", 2, "f/x asks for 2 nodes on runpod: one node only", "--nodes 1"),
        ("vast/us", None, "nodes: 3\n", None, "f/x asks for 3 nodes on vast: one node only", "--nodes 1"),
        ("lambda", "spot", "", 1, "f/x is to run on spot on lambda: no spot market", "--on-demand"),
        ("lambda", None, "spot: true\n", 1, "f/x is to run on spot on lambda: no spot", "--on-demand"),
        ("lambda", "spot-first", "", 1, "f/x is to run on spot on lambda: no spot market", "--on-demand"),
        ("slurm/ours", None, "spot: true\n", 1, "f/x is to run on spot on slurm: no spot", "--on-demand"),
        ("kubernetes", "spot", "", 1, "there on GKE and with Karpenter only", "--ignore"),
        ("oci", None, IMAGE, 1, "f/x runs in the image nvcr.io.* on oci: no container", "containers: false"),
        ("verda", None, "", 1, "f/x cannot run on verda: nodes that idle are not", "another place"),
        (
            "aws/us-eats-1",
            None,
            "",
            1,
            "cannot run there: there is no region 'us-eats-1' .*mean 'us-east-1'",
            "plan",
        ),
        ("runpot", None, "", 1, "cannot run on runpot: SkyPilot .*; did you mean 'runpod'", "infra"),
    ],
)
def test_a_launch_is_refused_and_a_dry_run_says_so_beside_its_task(
    place: project.Project,
    ask: Ask,
    infra: str,
    market: str | None,
    more: str,
    nodes: int | None,
    message: str,
    hint: str,
) -> None:
    request = ask(infra, market, more, nodes=nodes)
    with pytest.raises(Refused, match=message) as refused:
        launch.launch(request, place, print, print)
    assert refused.value.hint
    assert hint in refused.value.hint
    assert not place.runs.exists()
    said: list[str] = []
    [(_, shown)] = dry.dry_run(request, place, said.append)
    assert shown["resources"]["infra"] == infra
    [line] = refusals(said)
    assert line.startswith("f/x: a launch would be refused: f/x ")
    assert hint in line


@pytest.mark.parametrize(
    ("infra", "market", "words"),
    [
        ("aws", "spot", {"nodes": 2}),
        ("runpod", "spot", {}),
        ("lambda", "on-demand", {"nodes": 2}),
        ("kubernetes", None, {"nodes": 2}),
        ("kubernetes", "spot", {"ignore_estimates": True}),
        ("slurm/ours/gpu", None, {"nodes": 2}),
        ('"*"', "spot-first", {"nodes": 2}),
    ],
)
def test_what_skypilot_can_do_is_not_refused(
    place: project.Project, ask: Ask, infra: str, market: str | None, words: dict[str, object]
) -> None:
    said: list[str] = []
    dry.dry_run(ask(infra, market, **words), place, said.append)
    assert refusals(said) == []


def test_a_recipe_that_must_not_run_on_spot_may_run_where_there_is_none(
    place: project.Project, ask: Ask
) -> None:
    request = replace(ask("lambda", more="spot: true\n"), stage="y")
    add_stage(place.root, "f/y", more="# [tool.nemo_sky]\n# spot = false\n")
    said: list[str] = []
    [(_, shown)] = dry.dry_run(request, place, said.append)
    assert refusals(said) == []
    assert "use_spot" not in shown["resources"]
