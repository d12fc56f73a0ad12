"""The whole story at laptop scale: data, pretraining, SFT, RL and evaluation, tracked from end to end."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Project

Demo = tuple[Project, subprocess.CompletedProcess[str]]
STAGES = ["data/prep/pretrain", "data/prep/rl", "data/prep/sft", "pretrain", "sft", "rl", "eval"]
OUTPUTS = ["tiny-eval-report", "tiny-pretrain-data", "tiny-pretrain-model", "tiny-rl-data"]
OUTPUTS += ["tiny-rl-model", "tiny-sft-data", "tiny-sft-model"]


def artifact(project: Project, uri: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(project.run("artifacts", "show", uri, "--json").stdout)
    return found


def test_every_stage_made_its_artifact(demo: Demo) -> None:
    project, done = demo
    listed = json.loads(project.run("artifacts", "list", "--json").stdout)
    assert sorted(item["name"] for item in listed) == OUTPUTS
    for stage in STAGES:
        assert f"tiny/{stage}" in done.stdout, "the summary names every stage"
    assert "mlflow ui --backend-store-uri" in done.stdout
    assert "art://tiny-eval-report:v1" in done.stdout, "the lineage tree stands in the summary"


def test_pretraining_learned_more_than_the_frequency_of_tokens(demo: Demo) -> None:
    project, done = demo
    model = artifact(project, "art://tiny-pretrain-model")["metadata"]
    data = artifact(project, "art://tiny-pretrain-data")["metadata"]
    entropy = data["extra"]["unigram_entropy"]
    assert model["valid_loss"] < 0.75 * entropy, (model["valid_loss"], entropy)
    assert "unigram entropy" in done.stdout


def test_rl_answers_better_than_sft(demo: Demo) -> None:
    scores = artifact(demo[0], "art://tiny-eval-report")["metadata"]["scores"]
    assert scores["rl_accuracy"] > scores["sft_accuracy"]
    assert scores["perplexity"] > 1


def test_lineage_is_whole_both_ways(demo: Demo) -> None:
    project, _ = demo

    def names(node: dict[str, Any]) -> set[str]:
        return {node["uri"].partition("art://")[2].partition(":")[0]}.union(
            *(names(child) for child in node["children"])
        )

    up = json.loads(project.run("lineage", "show", "art://tiny-eval-report", "--json").stdout)
    assert names(up) == set(OUTPUTS)
    down = json.loads(project.run("lineage", "show", "art://tiny-pretrain-data", "--down", "--json").stdout)
    assert names(down) == set(OUTPUTS) - {"tiny-rl-data"}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project.root, capture_output=True, text=True)
    producer = artifact(project, "art://tiny-rl-model")["producer"]
    assert producer["git_sha"] == head.stdout.strip()
    assert producer["git_dirty"] is False
    assert producer["cost_usd"] == 0
    assert producer["versions"]["torch"]


def test_mlflow_shows_the_run_whole(demo: Demo) -> None:
    import mlflow

    project, _ = demo
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/.nemo-sky/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    found = client.search_runs([experiment.experiment_id])
    runs = [client.get_run(run.info.run_id) for run in found]  # a search leaves a run's models out
    parents = {r.data.tags["nemo_sky.stage"]: r for r in runs if "mlflow.parentRunId" not in r.data.tags}
    assert set(parents) == set(STAGES)
    assert {run.info.status for run in parents.values()} == {"FINISHED"}
    pretrain = parents["pretrain"]
    assert pretrain.data.params["train.steps"]
    assert len(client.get_metric_history(pretrain.info.run_id, "loss")) > 5
    assert any(key.startswith("system/") for key in pretrain.data.metrics)
    assert pretrain.inputs.model_inputs
    assert pretrain.outputs.model_outputs
    sft = parents["sft"]
    made = {output.model_id for output in pretrain.outputs.model_outputs}
    assert made <= {item.model_id for item in sft.inputs.model_inputs}, "the edge pretrain -> sft"
    assert [v.version for v in client.search_model_versions("name='tiny-pretrain-model'")] in ([1], ["1"])


def test_a_second_launch_skips_everything(demo: Demo) -> None:
    project, _ = demo
    again = json.loads(project.run("launch", "tiny", "all", "--cloud", "local", "--json").stdout)
    assert [item["status"] for item in again] == ["skipped"] * len(STAGES)


def test_runs_show_their_story(demo: Demo) -> None:
    project, _ = demo
    runs = json.loads(project.run("runs", "list", "--json").stdout)
    assert {item["status"] for item in runs} == {"SUCCEEDED"}
    (pretrain,) = [item for item in runs if item["stage"] == "pretrain"]
    shown = json.loads(project.run("runs", "show", pretrain["run_id"], "--json").stdout)
    assert shown["output"] == "art://tiny-pretrain-model:v1"
    assert shown["attempt_list"][0]["checkpoints"]
    assert shown["attempt_list"][0]["status"] == "succeeded"
    assert "loss" in project.run("runs", "logs", pretrain["run_id"]).stdout


def commands_of(page: Path) -> list[str]:
    """Every line that a ```console block shows behind `$ `."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_docs_works(demo: Demo, page: Path) -> None:
    project, _ = demo
    for command in commands_of(page):
        if command.startswith("make "):
            continue  # the tests themselves are run by `make test`, and `make demo` is the fixture
        words = shlex.split(command)
        assert words[0] == "nemo-sky", f"{page.name}: {command} is no command of ours"
        project.run(*words[1:])
