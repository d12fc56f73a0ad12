"""Cluster profiles: extends, the schema, and errors by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import clusters
from launcher.clusters import Placement
from launcher.errors import UserError

SHIPPED = Path(__file__).parents[2] / "clusters"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", clusters.names(SHIPPED))
def test_every_shipped_profile_loads(name: str) -> None:
    profile = clusters.load(name, SHIPPED)
    assert profile.name == name
    assert profile.backend == {"local": "local", "fake": "fake"}.get(name, "sky")


def test_a_place_without_a_price_is_unknown_not_free() -> None:
    assert clusters.load("aws", SHIPPED).price_per_hour is None
    assert clusters.load("slurm", SHIPPED).price_per_hour is None
    assert clusters.load("local", SHIPPED).price_per_hour == 0


def test_the_child_wins_and_tables_merge(tmp_path: Path) -> None:
    write(tmp_path, "base", "infra: aws\nnodes: 2\nenv: {A: 1, B: base}\n")
    write(tmp_path, "mine", "extends: base\nnodes: 4\nenv: {B: mine}\n")
    profile = clusters.load("mine", tmp_path)
    assert (profile.infra, profile.nodes) == ("aws", 4)
    assert profile.env == {"A": "1", "B": "mine"}


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    write(tmp_path / "team", "base", "infra: gcp\n")
    child = write(tmp_path, "mine", "extends: team/base.yaml\n")
    assert clusters.load(str(child), SHIPPED).infra == "gcp"


def test_a_file_elsewhere_extends_a_profile_of_the_project_or_one_beside_it(tmp_path: Path) -> None:
    elsewhere = write(tmp_path, "mine", "extends: aws\nnodes: 4\n")
    assert (clusters.load(str(elsewhere), SHIPPED).infra, clusters.load(str(elsewhere), SHIPPED).nodes) == (
        "aws",
        4,
    )
    write(tmp_path, "aws", "infra: gcp\n")
    assert clusters.load(str(elsewhere), SHIPPED).infra == "gcp"


def test_a_circle_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a", "extends: b\n")
    write(tmp_path, "b", "\nextends: a\n")
    with pytest.raises(UserError, match="a -> b -> a") as caught:
        clusters.load("a", tmp_path)
    assert caught.value.where == f"{tmp_path / 'b.yaml'}:2"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("infra: aws\nacelerator: H100\n", 2, "unknown key 'acelerator'; did you mean 'accelerator'?"),
        ("nodes: two\n", 1, "nodes must be int, not 'two'"),
        ("nodes: true\n", 1, "nodes must be int, not True"),
        ("\n\nnodes: 0\n", 3, "nodes must be at least 1, not 0"),
        ("backend: skypilot\n", 1, "one of local, sky, fake, not 'skypilot'; did you mean 'sky'"),
        ("price_per_hour: -1\n", 1, "must not be negative"),
        ("priority: 2000\n", 1, "from -1000 to 1000"),
        ("env:\n  A: 1\n  B: [1]\n", 3, "env.B must be text or a number"),
        ("infra: aws\ninfra: gcp\n", 2, "stands here and on line 1"),
        ("infra: [aws\n", 2, "not valid YAML"),
        ("- aws\n", 1, "expected a mapping"),
        ("extends: nothing\n", 1, "no cluster profile 'nothing'"),
    ],
)
def test_every_mistake_names_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = write(tmp_path, "bad", text)
    with pytest.raises(UserError) as caught:
        clusters.load(str(path), tmp_path)
    assert message in caught.value.message
    assert caught.value.where == f"{path}:{line}"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'nebius'"):
        clusters.load("nebuis", SHIPPED)


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("aws", Placement(region="us-east-1"), {"infra": "aws/us-east-1"}),
        ("aws", Placement(zone="us-east-1a"), {"infra": "aws/*/us-east-1a"}),
        ("any", Placement(region="us-east1"), {"infra": "*/us-east1"}),
        ("slurm", Placement(region="ours", zone="gpu"), {"infra": "slurm/ours/gpu"}),
        ("aws", Placement(gpus="H200:4"), {"accelerator": ("H200",), "gpus_per_node": 4}),
        ("aws", Placement(gpus="H200"), {"accelerator": ("H200",), "gpus_per_node": None}),
        ("aws", Placement(market="spot"), {"spot": True, "spot_first": False}),
        ("aws", Placement(market="spot-first"), {"spot": False, "spot_first": True}),
        ("local", Placement(), {"infra": None}),
    ],
)
def test_a_launch_may_say_where(name: str, wanted: Placement, expected: dict[str, object]) -> None:
    placed = clusters.place(clusters.load(name, SHIPPED), wanted)
    assert {key: getattr(placed, key) for key in expected} == expected


def test_a_region_replaces_the_profiles_own_and_its_zone(tmp_path: Path) -> None:
    mine = clusters.load(str(write(tmp_path, "mine", "infra: aws/us-east-1/us-east-1a\n")), tmp_path)
    assert clusters.place(mine, Placement(region="us-west-2")).infra == "aws/us-west-2"
    assert clusters.place(mine, Placement(zone="us-east-1b")).infra == "aws/us-east-1/us-east-1b"
    assert clusters.place(mine, Placement(gpus="H100:8")).infra == "aws/us-east-1/us-east-1a"


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("local", Placement(region="x"), "--region means nothing on this machine"),
        ("local", Placement(market="spot"), "--spot means nothing on this machine"),
        ("slurm", Placement(market="spot-first"), "--spot-first: Slurm has no spot market"),
        ("aws", Placement(gpus="H100:many"), "--gpus H100:many: write TYPE:COUNT"),
        ("aws", Placement(gpus="H100:0"), "write TYPE:COUNT"),
        ("aws", Placement(gpus=":8"), "write TYPE:COUNT"),
    ],
)
def test_what_a_place_cannot_have_is_refused(name: str, wanted: Placement, message: str) -> None:
    with pytest.raises(UserError) as caught:
        clusters.place(clusters.load(name, SHIPPED), wanted)
    assert message in caught.value.message
