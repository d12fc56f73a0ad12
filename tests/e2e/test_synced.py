"""What SkyPilot copies to the nodes. It alone reads `.skyignore`: the files that we write for it are tried
with both of its own ways, rsync to a node and the archive for an API server elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import luggage

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
    for name in kept | left:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    (project / ".gitignore").write_text("build\n")
    shutil.copyfile(ROOT / ".skyignore", project / ".skyignore")
    assert way(project, tmp_path) == kept | {".gitignore"}


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
