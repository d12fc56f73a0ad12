"""A deliberately broken copy of nano3 for each fault: the command line names it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import fit, inputs, plan, project, runspec
from launcher.cli.main import main
from launcher.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("nano3", "dense")
Found = Callable[[], list[str]]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for kind in ("recipes", "tasks"):
        for family in FAMILIES:
            shutil.copytree(ROOT / kind / family, tmp_path / kind / family)
    (tmp_path / "clusters").mkdir()
    for name in ("any", "cloud"):
        shutil.copy(ROOT / f"clusters/{name}.yaml", tmp_path / "clusters")
    (tmp_path / "nemo-sky.yaml").touch()
    return tmp_path


@pytest.fixture
def checked(copy: Path, capfd: pytest.CaptureFixture[str]) -> Found:
    """What `nemo-sky check` says of the copy."""

    def call() -> list[str]:
        with pytest.raises(SystemExit) as ended:
            main(["check", "--project", str(copy), "--json"])
        problems = json.loads(capfd.readouterr().out)
        assert ended.value.code == (4 if problems else 0)
        return [
            f"{os.path.relpath(problem['file'], copy / 'recipes')}:{problem['line']}: {problem['message']}"
            for problem in problems
        ]

    return call


@pytest.fixture
def rendered(copy: Path, capfd: pytest.CaptureFixture[str]) -> Found:
    """What `nemo-sky render --all --check` says of the copy."""

    def call() -> list[str]:
        with pytest.raises(SystemExit) as ended:
            main(["render", "--all", "--check", "--project", str(copy), "--json"])
        problems: list[str] = json.loads(capfd.readouterr().out)
        assert ended.value.code == (4 if problems else 0)
        return problems

    return call


def test_the_families_have_no_fault(checked: Found, rendered: Found) -> None:
    assert checked() == []
    assert rendered() == []


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
def test_a_broken_copy_is_caught_by_name(name: str, copy: Path, checked: Found) -> None:
    breaks, expected = BROKEN[name]
    breaks(copy)
    assert any(expected in line for line in checked()), checked()


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("tasks/nano3/pretrain.yaml", "num_nodes: 2\n", "", "1 nodes, but the recipe needs 2"),
        ("tasks/nano3/sft.yaml", "H100:8", "H100", "GPUs H100, but the recipe needs 8 on each node"),
        (
            "clusters/any.yaml",
            "extends: cloud",
            "extends: cloud\nnodes: 1",
            "1 nodes, but the recipe needs 2",
        ),
    ],
    ids=["a task that lost its nodes", "a task that lost its GPUs", "a profile that overrules the recipe"],
)
def test_fault_8_a_task_that_asks_for_other_than_its_recipe(
    file: str, old: str, new: str, says: str, copy: Path, rendered: Found
) -> None:
    path = copy / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    if file.startswith("clusters"):  # every task is as it is rendered, and still wrong
        with pytest.raises(SystemExit):
            main(["render", "--all", "--project", str(copy)])
    stage = "sft" if "sft" in file else "pretrain"
    assert f"tasks/nano3/{stage}.yaml: resources: {says}" in rendered()


def planned(stage: str, *overrides: str, config: str | None = None, nodes: int | None = None) -> plan.Plan:
    """The plan of one of nano3's stages on the profile `any`."""
    where = project.read(ROOT)
    request = plan.Request("nano3", stage, "any", config, overrides, nodes=nodes)
    (made,) = plan.plans(request, where, plan.select(request, where))
    return made


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
    assert planned("sft").nodes == 2
    one = planned("sft", config="1gpu")
    task = plan.to_task(one, project.read(ROOT), job_dir="x")
    assert (one.nodes, task["resources"]["accelerators"]) == (1, "H200:1")
    assert planned("sft", config="1gpu", nodes=2).nodes == 2
    assert list(planned("sft", config="smoke").inputs) == ["model"]


def test_memory_follows_what_a_person_would_expect() -> None:
    values = planned("pretrain").values
    default = fit.memory_gb(values, 16)
    assert default is not None
    more_nodes = fit.memory_gb(values, 64)
    longer_values = {**values, "model": {**values["model"], "seq_length": 32768}}
    longer = fit.memory_gb(longer_values, 16)
    assert more_nodes is not None
    assert longer is not None
    assert more_nodes < default < 80 < longer
    assert fit.memory_gb({**values, "recipe": {"_target_": "a.b"}}, 16) is None


def test_a_wrong_size_is_refused(copy: Path, checked: Found) -> None:
    replaced("nano3/sft/config/lora.yaml", "nodes: 1", "nodes: 0")(copy)
    assert any("run.nodes must be a whole number from 1, not 0" in line for line in checked())


def test_a_launch_refuses_parallelism_that_does_not_divide() -> None:
    planned("pretrain", nodes=4)
    with pytest.raises(UserError, match="TP 3 x PP 1 x CP 1 = 3 does not divide 16 GPUs"):
        planned("pretrain", "model.tensor_model_parallel_size=3")
    with pytest.raises(UserError, match="not a multiple of micro batch 1 x 6 copies"):
        planned("pretrain", nodes=3)


def test_nodes_that_generate_do_not_train() -> None:
    """109 nodes: 72 for generation, 5 for the environments' models, 32 to train on."""
    values = {
        "policy": {
            "megatron_cfg": {"tensor_model_parallel_size": 4, "context_parallel_size": 64},
            "generation": {"colocated": {"enabled": False, "resources": {"num_nodes": 72}}},
        },
        "env": {"nemo_gym": {"num_gpu_nodes": 5}},
        "cluster": {"gpus_per_node": 8},
    }
    assert fit.divides(values, 109 * 8) == []
    assert fit.divides({"overrides": values}, 109 * 8) == []
    ((key, message),) = [item for item in fit.divides(values, 110 * 8) if "tensor" in item[0]]
    assert (key, message) == (
        "policy.megatron_cfg.tensor_model_parallel_size",
        "TP 4 x PP 1 x CP 64 = 256 does not divide 264 GPUs",
    )
