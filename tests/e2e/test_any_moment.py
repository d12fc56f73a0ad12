"""A launcher that is killed at any moment: the same command, typed again, ends the launch well and once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.unit.conftest import MlflowTemplate

ROOT = Path(__file__).parents[2]


def test_a_launcher_killed_at_any_moment_loses_and_doubles_nothing(
    mlflow_template: MlflowTemplate, tmp_path: Path
) -> None:
    dropped = ("NEMO_SKY_", "AWS_", "MLFLOW_", "SKYPILOT_", "RAY_")
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.launch_moments", str(mlflow_template.file), str(tmp_path)],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith(dropped)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^(\d+) moments\n", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 40
    assert "killed at" not in done.stdout, done.stdout
