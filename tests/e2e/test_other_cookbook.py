"""A stage of another cookbook runs on this machine: its own imports, its own files, the node's paths."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import yaml

from tests.e2e.conftest import commit_all, make_project

PREP = "src/book/recipes/nano3/stage0_pretrain/config/data_prep"


def test_a_stage_of_another_cookbook_runs(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", NEMO_SKY_RECIPES="../Nemotron")
    words = tmp_path / "Nemotron" / PREP / "words.txt"
    commit_all(tmp_path / "Nemotron")
    words.write_text(words.read_text() + "\n")  # an edit that is not committed
    done = project.run("launch", "nano3", "data/prep/pretrain", "--cloud", "local", "shards=8")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    seen = json.loads(line)
    (run,) = (project.root / ".nemo-sky" / "runs").glob("nano3-*")
    work = run / "work" / "node-0"
    assert seen["words"] == ["one", "two", "three"]
    assert seen["cache"] == f"{work}/cache"
    assert seen["config"] == {
        "words": f"{tmp_path}/Nemotron/{PREP}/words.txt",
        "output_dir": f"{work}/data",
        "shards": 8,
        "rows": 2000,
    }
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=words.parent, capture_output=True, text=True)
    made_from = yaml.safe_load((run / "job" / "job.yaml").read_text())["provenance"]
    assert (made_from["cookbook_git_sha"], made_from["cookbook_git_dirty"]) == (head.stdout.strip(), True)
    assert "words.txt" in (run / "cookbook.patch").read_text()
