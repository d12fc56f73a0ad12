"""A deliberately broken copy of nano3 for each fault: `nemo-sky check` names it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import checks, faults, fit, inputs, plan, project, runspec
from launcher.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("nano3", "dense")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for family in FAMILIES:
        shutil.copytree(ROOT / "recipes" / family, tmp_path / "recipes" / family)
    (tmp_path / "clusters").mkdir()
    for name in ("any", "cloud"):
        shutil.copy(ROOT / f"clusters/{name}.yaml", tmp_path / "clusters")
    (tmp_path / "nemo-sky.yaml").touch()
    return tmp_path


def found(root: Path) -> list[str]:
    problems, _ = checks.check_project(project.read(root))
    return [
        f"{os.path.relpath(problem.file, root / 'recipes')}:{problem.line}: {problem.message}"
        for problem in problems
    ]


def test_the_families_have_no_fault(copy: Path) -> None:
    assert found(copy) == []


def replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        path = root / "recipes" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return act


PRETRAIN, SFT, RL = (
    "nano3/pretrain/config/default.yaml",
    "nano3/sft/config/default.yaml",
    "nano3/rl/config/default.yaml",
)
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "1 internal image": (
        replaced("nano3/pretrain/train.py", "nvcr.io/nvidia/nemo:", "nvcr.io/nvidian/nemo:"),
        "nano3/pretrain/train.py:1: internal-image:",
    ),
    "2 somebody's folder": (
        replaced("nano3/data/prep/pretrain/config/default.yaml", "${node:output}", "/lustre/users/me/out"),
        "nano3/data/prep/pretrain/config/default.yaml:2: private-path:",
    ),
    "3 geometry": (
        replaced(SFT, "model:\n", "model:\n  hidden_size: 1344\n"),
        "nano3/sft/config/default.yaml:8: geometry: hidden_size 1344",
    ),
    "4 placeholder": (
        replaced(RL, "${art:data,path}/train.jsonl", "/path/to/train.jsonl"),
        "nano3/rl/config/default.yaml:9: placeholder:",
    ),
    "4 unused input": (
        replaced(
            RL,
            'model_name: ${art:model,path}\n    tokenizer: {name: "${art:model,path}"}',
            "model_name: nvidia/x",
        ),
        "nano3/rl/train.py:1: placeholder: the input 'model' is declared, but no config reads it",
    ),
    "5 parallelism": (
        replaced(RL, "pipeline_model_parallel_size: 1", "pipeline_model_parallel_size: 2"),
        "nano3/rl/config/default.yaml:20: parallelism: EP x ETP x PP = 16 does not divide 8 GPUs",
    ),
    "5 validates on training data": (
        replaced(RL, "valid.jsonl", "train.jsonl"),
        "nano3/rl/config/default.yaml:10: parallelism: validation is on training data",
    ),
    "6 broken chain": (
        replaced("nano3/data/prep/rl/prep.py", "nano3-rl-data", "nano3-rl-data-tiny"),
        "nano3/rl/train.py:1: broken-chain: input data: no stage makes 'nano3-rl-data'",
    ),
    "6 another architecture": (
        replaced("dense/pretrain/config/llama32_1b.yaml", "llama32_1b_pretrain", "llama32_3b_pretrain"),
        "dense/sft/config/llama32_1b.yaml:1: broken-chain: input model: 'dense-pretrain-model' of config "
        "'llama32_1b' is llama32_3b",
    ),
    "7 nothing makes it wait": (
        lambda root: (
            replaced("nano3/sft/train.py", '# model = "art://nano3-pretrain-model"\n', "")(root),
            replaced("nano3/sft/train.py", '# [tool.nemo_sky.inputs]\n# data = "art://nano3-sft-data"\n', "")(
                root
            ),
            replaced(SFT, "${art:model,path}", "checkpoints/pretrain")(root),
            replaced(SFT, "${art:data,path}", "packs")(root),
            replaced(SFT, '"${art:data,pack_size}"', "4096")(root),
            replaced("nano3/sft/config/smoke.yaml", "run: {data: null}\n", "")(root),
        )[0],
        "nano3/sft/config/default.yaml:5: unordered: model_path",
    ),
    "9 no resume": (
        replaced(PRETRAIN, "load: ${node:checkpoints}", "load: null"),
        "nano3/pretrain/config/default.yaml:25: no-resume:",
    ),
    "10 forced tracker": (
        replaced(PRETRAIN, "logger: {", "logger: {wandb_project: mine, "),
        "nano3/pretrain/config/default.yaml:29: forced-tracker: logger.wandb_project is 'mine'",
    ),
    "11 one release only": (
        replaced(SFT, "nemotron_3_nano_sft_config", "nemotron_3_nano_finetune_config"),
        "nano3/sft/config/default.yaml:3: version-bound: nemotron_3_nano_finetune_config",
    ),
    "11 its keywords": (
        replaced(PRETRAIN, "recipe:\n", "recipe:\n  train_iters: 100\n"),
        "nano3/pretrain/config/default.yaml:3: version-bound: recipe functions take 'train_iters'",
    ),
    "12 never deleted": (
        replaced(PRETRAIN, "most_recent_k: 2", "most_recent_k: -1"),
        "checkpoint-churn: checkpoints of 442 GB are never deleted",
    ),
    "12 too often": (
        replaced(PRETRAIN, "save_interval: 200", "save_interval: 20"),
        "nano3/pretrain/config/default.yaml:27: checkpoint-churn: 442 GB every 20 steps",
    ),
    "too large for the GPUs": (
        replaced(SFT, "tensor_model_parallel_size: 2", "tensor_model_parallel_size: 1"),
        "nano3/sft/config/default.yaml:8: memory: about",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_copy_is_caught_by_name(name: str, copy: Path) -> None:
    breaks, expected = BROKEN[name]
    breaks(copy)
    assert any(expected in line for line in found(copy)), found(copy)


def test_fault_8_the_task_asks_for_what_the_recipe_needs() -> None:
    where = project.read(ROOT)
    request = plan.Request("nano3", "pretrain", cluster="any")
    made = plan.plans(request, where, plan.select(request, where))[0]
    task = plan.to_task(made, where, job_dir="tasks/nano3/pretrain")
    assert faults.of_task(made.spec, task) == []
    dropped = {key: value for key, value in task.items() if key != "num_nodes"}
    assert [str(fault) for fault in faults.of_task(made.spec, dropped)] == [
        "resources: 1 nodes, but the recipe needs 2"
    ]
    dropped = {**task, "resources": {**task["resources"], "accelerators": "H100:1"}}
    assert faults.of_task(made.spec, dropped)[0].name == "resources"


def test_every_stage_of_a_family_comes_after_what_it_reads() -> None:
    specs, _ = runspec.discover([ROOT / "recipes"])
    for family in FAMILIES:
        made: set[str] = set()
        for spec in inputs.order([spec for spec in specs if spec.family == family]):
            for text in spec.sky.inputs.values():
                assert text.removeprefix("art://") in made
            assert spec.sky.output
            made.add(spec.sky.output.name)


def test_a_config_says_its_size_and_does_without_data() -> None:
    where = project.read(ROOT)

    def planned(config: str, cluster: str = "any", nodes: int | None = None) -> plan.Plan:
        request = plan.Request("nano3", "sft", config=config, cluster=cluster, nodes=nodes)
        return plan.plans(request, where, plan.select(request, where))[0]

    assert planned("default").nodes == 2
    one = planned("1gpu")
    task = plan.to_task(one, where, job_dir="x")
    assert (one.nodes, task["resources"]["accelerators"]) == (1, "H200:1")
    assert planned("1gpu", nodes=2).nodes == 2
    assert list(planned("smoke").inputs) == ["model"]


def test_memory_follows_what_a_person_would_expect() -> None:
    where = project.read(ROOT)
    request = plan.Request("nano3", "pretrain", cluster="any")
    values = plan.plans(request, where, plan.select(request, where))[0].values
    default = fit.memory_gb(values, 16)
    assert default is not None
    more_nodes = fit.memory_gb(values, 64)
    longer_values = {**values, "model": {**values["model"], "seq_length": 32768}}
    longer = fit.memory_gb(longer_values, 16)
    assert more_nodes is not None
    assert longer is not None
    assert more_nodes < default < 80 < longer
    assert fit.memory_gb({**values, "recipe": {"_target_": "a.b"}}, 16) is None


def test_a_wrong_size_is_refused(copy: Path) -> None:
    replaced("nano3/sft/config/lora.yaml", "nodes: 1", "nodes: 0")(copy)
    assert any("run.nodes must be a whole number from 1, not 0" in line for line in found(copy))


def test_a_launch_refuses_parallelism_that_does_not_divide() -> None:
    where = project.read(ROOT)

    def planned(*overrides: str, nodes: int | None = None) -> None:
        request = plan.Request("nano3", "pretrain", cluster="any", overrides=overrides, nodes=nodes)
        plan.plans(request, where, plan.select(request, where))

    planned(nodes=4)
    with pytest.raises(UserError, match="TP 3 x PP 1 x CP 1 = 3 does not divide 16 GPUs"):
        planned("model.tensor_model_parallel_size=3")
    with pytest.raises(UserError, match="not a multiple of micro batch 1 x 6 copies"):
        planned(nodes=3)
