"""What SkyPilot copies to the nodes. It alone reads `.skyignore`: the files that we write for it are tried
with both of its own ways, rsync to a node and the archive for an API server elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import luggage, synced

ROOT = Path(__file__).parents[2]


def by_rsync(source: Path, folder: Path) -> set[str]:
    from sky.utils.command_runner import LocalProcessCommandRunner

    target = folder / "node"
    LocalProcessCommandRunner().rsync(str(source), str(target), up=True, stream_logs=False)
    return {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}


def by_archive(source: Path, folder: Path) -> set[str]:
    from sky.data.storage_utils import zip_files_and_folders

    archive = folder / "archive.zip"
    zip_files_and_folders([str(source)], str(archive))
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if not name.endswith("/")]
    return {str(Path("/", name).relative_to(source)) for name in names}


WAYS = pytest.mark.parametrize("way", [by_rsync, by_archive])
Way = Callable[[Path, Path], set[str]]


@WAYS
def test_the_projects_skyignore_keeps_state_and_caches_here(way: Way, tmp_path: Path) -> None:
    project = tmp_path / "project"
    kept = {".skyignore", "nemo-sky.yaml", "recipes/f/train.py", "build/kept-though-git-ignores-it"}
    left = {".nemo-sky/runs/r/run.json", ".venv/bin/python", "recipes/__pycache__/a.pyc", ".git/config"}
    left |= {".env", "secrets.env", "recipes/f/my.env"}
    for name in kept | left:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    (project / ".gitignore").write_text("build\n")
    shutil.copyfile(ROOT / ".skyignore", project / ".skyignore")
    assert way(project, tmp_path) == kept | {".gitignore"}


@pytest.mark.parametrize(
    ("ignoring", "repository"),
    [
        ({}, False),
        ({".skyignore": "*.env\n"}, False),
        ({".skyignore": "/a.env\n/deep/b.env\n", ".gitignore": "deep/.hidden/\n.env\n"}, True),
        ({".skyignore": "deep\n"}, False),
        ({".skyignore": "a.env \n"}, False),  # with a blank, which rsync takes for a part of the name
        ({".skyignore": "# nothing\n", "deep/.skyignore": "*\n"}, False),
        ({".gitignore": "*.env\n"}, False),
        ({".gitignore": "*.env\n"}, True),
        ({".gitignore": "deep/\n!deep/b.env\n"}, True),
        ({"deep/.gitignore": "b.env\n", ".git/info/exclude": "/a.env\n"}, True),
    ],
)
def test_what_would_travel_is_told_before(
    ignoring: dict[str, str], repository: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SkyPilot does it with the whole folder: what one of its ways takes is taken."""
    project = tmp_path / "project"
    secret = ["a.env", ".env", "deep/b.env", "deep/.hidden/c.env", "deep/er/d.env"]
    for name in (*secret, *(f"data/{n}" for n in range(20))):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    if repository:
        subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    for name, text in ignoring.items():
        (project / name).write_text(text)
    travels = by_rsync(project, tmp_path) | by_archive(project, tmp_path)
    assert {name for name in secret if synced.takes(project, project / name)} == travels & set(secret)

    monkeypatch.chdir(project)
    assert synced.takes(Path("."), Path("deep/../a.env")) == ("a.env" in travels)
    (tmp_path / "link.env").symlink_to(project / "a.env")
    assert synced.takes(project, tmp_path / "link.env") == ("a.env" in travels)
    (tmp_path / "own.env").write_text("x")
    (project / "link.env").symlink_to(tmp_path / "own.env")
    assert not synced.takes(project, project / "link.env")


@WAYS
def test_a_runs_own_files_travel_from_a_folder_that_git_ignores(way: Way, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "job").mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("run/\n*.yaml\n*.py\n")
    for name in ("job.yaml", "train.yaml"):
        (run / "job" / name).write_text("a: 1\n")
    luggage.files_of(run)
    assert way(run / "job", tmp_path) == {".skyignore", "job.yaml", "train.yaml"}
    luggage.copy_of_launcher(run)
    copied = way(run / "code" / "launcher", tmp_path / "run")
    assert {"agent/main.py", "artifacts/keys.py", "skyplugin/plugin.py"} < copied
