"""The project file: found upwards, checked, overridden by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import clusters, project
from launcher.artifacts.store import open_store
from launcher.errors import UserError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEMO_SKY_ARTIFACTS", "NEMO_SKY_TRACKING", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


def make(root: Path, text: str = "") -> Path:
    (root / "nemo-sky.yaml").write_text(text)
    return root


def test_found_from_any_folder_inside(tmp_path: Path) -> None:
    make(tmp_path)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    found = project.find(inner)
    assert found.root == tmp_path
    assert found.artifacts == str(tmp_path / ".nemo-sky/artifacts")
    assert found.tracking == f"sqlite:///{tmp_path}/.nemo-sky/mlflow.db"


def test_outside_any_project_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--project DIR"):
        project.find(tmp_path)


def test_settings_and_their_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "artifacts: s3://bucket/team/\ntracking: http://mlflow:5000\n")
    found = project.read(tmp_path)
    assert (found.artifacts, found.tracking) == ("s3://bucket/team", "http://mlflow:5000")
    monkeypatch.setenv("NEMO_SKY_ARTIFACTS", "elsewhere")
    assert project.read(tmp_path).artifacts == str(tmp_path / "elsewhere")


def test_links_in_a_circle_are_no_traceback(tmp_path: Path) -> None:
    make(tmp_path, "artifacts: circle\n")
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    assert project.read(tmp_path).artifacts == str(circle)
    with pytest.raises(UserError, match="no such directory"):
        project.find(circle)
    with pytest.raises(UserError, match="no such folder"):
        project.find(tmp_path, recipes=circle)
    with pytest.raises(UserError, match="no cluster profile"):
        clusters.load(f"{circle}.yaml", tmp_path)
    with pytest.raises(UserError, match="cannot"):
        open_store(str(circle)).check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("artefacts: x\n", "did you mean 'artifacts'"),
        ("artifacts: 3\n", "must be text"),
        ("artifacts: gs://bucket\n", "neither a folder nor s3://"),
        ("tracking: mlruns\n", "not an MLflow tracking URI"),
        ("tracking: http://me:secret@host\n", "MLFLOW_TRACKING_PASSWORD"),
        ("recipes: recipes\n", "list of folders"),
    ],
)
def test_wrong_settings(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, text)
    with pytest.raises(UserError) as caught:
        project.read(tmp_path)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
