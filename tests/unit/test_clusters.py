"""Cluster profiles: extends, the schema, and errors by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import clusters
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
    assert profile.backend == ("local" if name == "local" else "sky")


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
        ("backend: skypilot\n", 1, "one of local, sky, not 'skypilot'; did you mean 'sky'"),
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
