"""Every config of every Bridge stage, built and validated by the real library, offline."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher import plan, project, runspec
from launcher.config import files

from .conftest import ROOT

PACK_SIZE = 4096
GEOMETRY = {  # layers and hidden size of the models themselves
    "nemotron_3_nano": (52, 2688),
    "llama32_1b": (16, 2048),
    "llama32_3b": (28, 3072),
    "llama31_8b": (32, 4096),
    "qwen3_600m": (28, 1024),
    "qwen3_1p7b": (28, 2048),
    "qwen3_4b": (36, 2560),
    "qwen3_8b": (36, 4096),
}


def stages() -> list[tuple[str, str]]:
    """Stage and config of everything that Bridge trains."""
    found, _ = runspec.discover([ROOT / "recipes"])
    trained = [spec for spec in found if "recipes.bridge.train" in spec.script_path.read_text()]
    return [(spec.name, path.stem) for spec in trained for path in files.configs(spec.config_dir)]


def composed(name: str, config: str, inputs: Path) -> dict[str, Any]:
    """A case for build_configs.py: the config as the agent would hand it to the script."""
    family, _, stage = name.partition("/")
    where = project.read(ROOT)
    request = plan.Request(family, stage, config=config, cluster="any")
    made = plan.plans(request, where, plan.select(request, where))[0]
    kind = "pretrain" if stage == "pretrain" else "finetune"
    data = inputs / ("blend" if kind == "pretrain" else "packs")

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        if value == "${art:data,pack_size}":
            return PACK_SIZE
        if isinstance(value, str):
            value = value.replace("$NEMO_SKY_INPUTS/data", str(data))
            value = value.replace("$NEMO_SKY_INPUTS/model", str(inputs / "model"))
        return value

    values = {key: filled(value) for key, value in made.values.items() if key != "run"}
    gpus = made.nodes * int(made.spec.resources.gpus_per_node)
    return {"name": f"{name} -c {config}", "config": values, "kind": kind, "gpus": gpus}


def build(cases: list[dict[str, Any]], python: str, folder: Path) -> dict[str, dict[str, Any]]:
    (folder / "cases.json").write_text(json.dumps(cases))
    script = ROOT / "tests/bridge/build_configs.py"
    subprocess.run(
        [python, str(script), str(folder / "cases.json"), str(folder / "results.json")],
        check=True,
        env={**os.environ, "NEMO_SKY_WORK": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    results: dict[str, dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return results


@pytest.fixture(scope="module")
def results(
    bridge_python: str, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    cases = [composed(name, config, inputs) for name, config in stages()]
    return build(cases, bridge_python, tmp_path_factory.mktemp("build"))


@pytest.mark.parametrize(("name", "config"), stages())
def test_config_is_true_to_the_library(name: str, config: str, results: dict[str, dict[str, Any]]) -> None:
    result = results[f"{name} -c {config}"]
    assert result["error"] is None
    assert result["save"] == result["load"] == "$NEMO_SKY_CHECKPOINTS"
    assert result["keep"] > 0
    assert result["wandb"] is None
    assert result["mlflow"] is None
    where = project.read(ROOT)
    family, _, stage = name.partition("/")
    request = plan.Request(family, stage, config=config, cluster="any")
    values = plan.plans(request, where, plan.select(request, where))[0].values
    recipe = values["recipe"]["_target_"].rpartition(".")[2]
    expected = next(shape for prefix, shape in GEOMETRY.items() if recipe.startswith(prefix))
    assert (result["layers"], result["hidden"]) == expected


def test_the_library_refuses_what_it_does_not_know(bridge_python: str, inputs: Path, tmp_path: Path) -> None:
    def broken(label: str, **sections: dict[str, Any]) -> dict[str, Any]:
        case = composed("nano3/pretrain", "smoke", inputs)
        case["name"] = label
        for section, values in sections.items():
            case["config"][section] = {**(case["config"].get(section) or {}), **values}
        return case

    cases = [
        broken("typo", train={"train_itres": 5}),
        broken("type", train={"train_iters": "many"}),
        broken("section", traning={"x": 1}),
        broken("load", checkpoint={"load": "/elsewhere"}),
        broken("divides", model={"tensor_model_parallel_size": 3}),
        broken(
            "recipe", recipe={"_target_": "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nano_config"}
        ),
        broken("keyword", recipe={"train_iters": 5}),
        {**broken("gpus"), "gpus": 12},
    ]
    errors = {name: result["error"] for name, result in build(cases, bridge_python, tmp_path).items()}
    assert "train.train_itres: no such setting" in errors["typo"]
    assert "did you mean 'train.train_iters'" in errors["typo"]
    assert "train.train_iters must be a number, not 'many'" in errors["type"]
    assert "traning: no such setting" in errors["section"]
    assert "it would not resume" in errors["load"]
    assert "does not divide 8 GPUs" in errors["divides"]
    assert "has no nano_config" in errors["recipe"]
    assert "takes no arguments" in errors["keyword"]
    assert "EP x ETP x PP = 8 does not divide 12 GPUs" in errors["gpus"]
