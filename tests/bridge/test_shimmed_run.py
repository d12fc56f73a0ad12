"""Shimmed: nano3's own scripts on two CPU nodes, with a tiny model in place of the large one.

Everything else is what a launch on a cluster is: the launcher, the agents, the store, MLflow, and the real
Megatron-Bridge. This shows that they work together, and nothing about GPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.bridge.conftest import ROOT, make_project
from tests.bridge.tiny_provider import STEP_S
from tests.e2e.conftest import Project
from tests.e2e.crash import kill_all, story, until_committed

Outcome = dict[str, Any]
STEPS = 30
SHIMMED = ("--cloud", "shimmed", "--nodes", "2")
PRETRAIN = ("nano3", "pretrain", "-c", "pretrain.yaml", *SHIMMED)


@pytest.fixture(scope="module")
def project(bridge_python: str, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project, with Python's own library prepared as pretraining data by nano3's own stage."""
    folder = tmp_path_factory.mktemp("shimmed")
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f.read_text()}) + "\n" for f in files))
    prepare = {
        "output": "${node:output}",
        "sources": [{"name": "library", "path": str(folder / "text.jsonl")}],
        "tokenizer": str(tokenizer),
        "splits": {"valid": 0.1, "test": 0.1},
        "shards": 2,
    }
    common = {
        "tokenizer": {
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": str(tokenizer),
            "vocab_size": None,
        },
        "model": {"tensor_model_parallel_size": 1},
        "train": {"train_iters": STEPS, "exit_signal_handler": True},
        "checkpoint": {
            "save": "${node:checkpoints}",
            "load": "${node:checkpoints}",
            "save_interval": 5,
            "most_recent_k": 2,
        },
        "logger": {"log_interval": 1},
    }
    pretrain = {
        **common,
        "recipe": {"_target_": "tests.bridge.tiny_provider.tiny_pretrain_config"},
        "data": {"path": "${art:data,path}"},
        "dataset": {"path_to_cache": "${node:work}/index-cache"},
    }
    sft = {
        **common,
        "recipe": {"_target_": "tests.bridge.tiny_provider.tiny_sft_config"},
        "run": {"data": None},
        "data": None,
        "model_path": "${art:model,path}",
        "dataset": {"seq_length": 64, "num_workers": 0, "pin_memory": False},
    }
    made = make_project(
        folder / "project", bridge_python, {"data": prepare, "pretrain": pretrain, "sft": sft}
    )
    made.run("launch", "nano3", "data/prep/pretrain", "-c", "data.yaml", "--cloud", "local")
    return made


def test_the_shim_refuses_a_machine_with_a_gpu(bridge_python: str, tmp_path: Path) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\n")
    driver.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'tests/bridge/site'}:{ROOT}",
    }

    def started(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([bridge_python, *words], env=env, cwd=ROOT, capture_output=True, text=True)

    for stage in ("pretrain/train.py", "model/from_hf/convert.py"):
        refused = started("-u", f"recipes/nano3/{stage}", "--config", "none.yaml")
        assert refused.returncode == 2
        assert "the CPU shim is for machines without a GPU" in refused.stderr
        assert str(driver) in refused.stderr
    assert started("-c", "import launcher.agent").returncode == 0, "programs other than recipes go on"


def output_of(project: Project, *words: str) -> Outcome:
    """Launch one stage to its end; what it made."""
    (outcome,) = json.loads(project.run("launch", *words, "--json").stdout)
    assert outcome["status"] == "made"
    return dict(outcome)


def test_shimmed_pretrain_killed_resumed_at_another_tp_then_sft(project: Project) -> None:
    whole = output_of(project, *PRETRAIN)
    assert whole["output"] == "art://nano3-pretrain-model:v1"

    slowly = Project(project.root, {**project.env, STEP_S: "0.5"})  # or it is done before the kill
    launcher = slowly.start("launch", *PRETRAIN, "--force")
    until_committed(launcher)
    kill_all(project, launcher)
    killed = story(project)
    assert killed["status"] == "LOST"

    tensor = "model.tensor_model_parallel_size=2"
    resumed = output_of(project, *PRETRAIN, tensor, "--resume", killed["run_id"])
    assert resumed["output"] == "art://nano3-pretrain-model:v2"
    first, second = story(project)["attempt_list"]
    assert first["output"] is None
    assert 0 < second["restored_from"] < STEPS
    assert second["checkpoints"][-1] == STEPS
    assert resumed["metadata"]["step"] == STEPS
    assert resumed["metadata"]["final_loss"] == pytest.approx(whole["metadata"]["final_loss"], abs=1e-4)

    tuned = output_of(project, "nano3", "sft", "-c", "sft.yaml", *SHIMMED)
    assert tuned["output"] == "art://nano3-sft-model:v1"
    log = project.run("runs", "logs", tuned["run_id"]).stdout
    assert "successfully loaded checkpoint from" in log

    tracked(project, whole, resumed, tuned)


def tracked(project: Project, whole: Outcome, resumed: Outcome, tuned: Outcome) -> None:
    """What MLflow and the store say of the three runs."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.root}/.nemo-sky/mlflow.db")
    experiment = client.get_experiment_by_name("nano3")
    found = [client.get_run(run.info.run_id) for run in client.search_runs([experiment.experiment_id])]
    parents = {run.data.tags["nemo_sky.run_id"]: run for run in found if not parent_of(run)}
    runs = [parents[outcome["run_id"]] for outcome in (whole, resumed, tuned)]
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert sum(parent_of(run) == runs[1].info.run_id for run in found) == 2, "a run below it per attempt"

    def losses(run: Any) -> dict[int, float]:
        return {point.step: point.value for point in client.get_metric_history(run.info.run_id, "loss")}

    before, after, tuning = map(losses, runs)
    assert set(before) == set(after) == set(tuning) == set(range(1, STEPS + 1))
    assert after == pytest.approx(before, abs=1e-4)
    assert tuning[STEPS] < tuning[1]

    versions = client.search_model_versions("name='nano3-pretrain-model'")
    assert sorted(int(version.version) for version in versions) == [1, 2]
    assert len(client.search_model_versions("name='nano3-sft-model'")) == 1
    made = {item.model_id for item in runs[1].outputs.model_outputs}
    assert made == {item.model_id for item in runs[2].inputs.model_inputs}, "the edge pretrain -> sft"

    lineage = json.loads(project.run("lineage", "show", tuned["output"], "--json").stdout)
    (model,) = lineage["children"]
    (data,) = model["children"]
    uris = [node["uri"] for node in (lineage, model, data)]
    assert uris == [tuned["output"], resumed["output"], "art://nano3-pretrain-data:v1"]


def parent_of(run: Any) -> str | None:
    """The MLflow run that this one is an attempt of."""
    found: str | None = run.data.tags.get("mlflow.parentRunId")
    return found
