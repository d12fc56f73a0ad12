"""A project of its own for the end-to-end tests: the shipped recipes, an empty store, a fresh MLflow."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.conftest import mlflow_template, s3_server, store, tracking  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COPIED = ("recipes", "clusters", "docs", "nemo-sky.yaml", "tasks")


@dataclass(frozen=True)
class Project:
    """A folder and the command as a user would type it there."""

    root: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        dropped = ("NEMO_SKY_", "AWS_", "MLFLOW_", "SKYPILOT_", "RAY_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        return {**kept, "PATH": f"{BIN}:{os.environ['PATH']}", **self.env}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `nemo-sky WORDS` in a session of its own, its output to be read."""
        return subprocess.Popen(
            [BIN / "nemo-sky", *words],
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Tests that a shell started in the background ignore Ctrl-C; what they start must not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *words: str, code: int = 0, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run `nemo-sky WORDS` to its end and check its exit code."""
        done = subprocess.run(
            [BIN / "nemo-sky", *words],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == code, (
            f"exit {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        )
        # Ours would stand by itself; what a job's torchrun logs of its own end has the node before it.
        assert not re.search("^Traceback", done.stderr, re.MULTILINE), done.stderr[-3000:]
        return done


def make_project(root: Path, **env: str) -> Project:
    """Copy the shipped project to ``root`` and commit it, so that runs know their commit. Another cookbook
    stands beside it."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "tests" / "fixtures" / "cookbook", root.parent / "Nemotron", dirs_exist_ok=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, root / name)
    (root / ".gitignore").write_text(".nemo-sky/\n__pycache__/\n")
    commit_all(root)
    return Project(root, env)


def commit_all(root: Path) -> None:
    """Make ``root`` a git repository with all that is in it."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "Test project"]):
        subprocess.run(["git", *words], cwd=root, check=True)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, subprocess.CompletedProcess[str]]:
    """`nemo-sky launch tiny all --cloud local`, run once with the default configs, and what it printed."""
    catalogs = str(ROOT / "tests" / "fixtures" / "catalogs" / "v8")  # what SkyPilot would have downloaded
    project = make_project(tmp_path_factory.mktemp("demo") / "project", NEMO_SKY_CATALOGS=catalogs)
    return project, project.run("launch", "tiny", "all", "--cloud", "local")
