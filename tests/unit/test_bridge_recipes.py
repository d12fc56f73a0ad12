"""What the Bridge stages do around Megatron-Bridge, without it: gate, settings, checkpoints, RL, eval."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from recipes.bridge import checkpoints, convert, data, gate, overrides, train
from recipes.bridge.common import ConfigError
from recipes.bridge.watch import Watch

ROOT = Path(__file__).resolve().parents[2]


def script(path: str) -> ModuleType:
    """A stage's script as a module."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def library(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """A module ``bridge_recipes`` in the form that some release of Bridge has."""
    module = ModuleType("bridge_recipes")
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "bridge_recipes", module)


OLD = """
def nano_pretrain_config(**kwargs): return ("pretrain", kwargs)
def nano_finetune_config(**kwargs): return ("finetune", kwargs)
"""
MIDDLE = """
def nano_pretrain_config(): return "pretrain"
def nano_sft_config(): return "sft"
def nano_peft_config(peft_scheme="lora"): return ("peft", peft_scheme)
"""
NEW = """
def nano_pretrain_64gpu_h100_bf16_config(): return 64
def nano_pretrain_8gpu_h100_bf16_config(): return 8
def nano_sft_16gpu_h100_bf16_config(): return 16
def nano_sft_32gpu_h100_bf16_config(): return 32
"""


@pytest.mark.parametrize(
    ("source", "name", "keywords", "built"),
    [
        (OLD, "nano_pretrain_config", {}, ("pretrain", {})),
        (OLD, "nano_sft_config", {}, ("finetune", {"peft": None})),
        (OLD, "nano_peft_config", {"peft_scheme": "dora"}, ("finetune", {"peft": "dora"})),
        (MIDDLE, "nano_sft_config", {}, "sft"),
        (MIDDLE, "nano_peft_config", {"peft_scheme": "lora"}, ("peft", "lora")),
        (NEW, "nano_pretrain_config", {}, 8),
        (NEW, "nano_sft_config", {}, 16),
    ],
)
def test_the_gate_finds_a_recipe_in_every_release(
    source: str, name: str, keywords: dict[str, Any], built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(monkeypatch, source)
    recipe = gate.find({"_target_": f"bridge_recipes.{name}", **keywords})
    assert recipe.build() == built
    assert bool(recipe.note) == (recipe.function.__name__ != name)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "must be the dotted name"),
        ({"_target_": "bridge_recipes.nano_pretrian_config"}, "did you mean 'nano_pretrain_config'"),
        ({"_target_": "no_such_library.x_config"}, "there is no module no_such_library"),
        ({"_target_": "bridge_recipes.nano_sft_config", "train_iters": 5}, "takes no arguments"),
    ],
)
def test_the_gate_says_what_is_not_there(
    section: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(monkeypatch, MIDDLE)
    with pytest.raises(ConfigError, match=message):
        gate.find(section)


class Backend(Enum):
    flash = 1
    fused = 2


@dataclass
class Train:
    steps: int = 10
    rate: float = 0.1
    flag: bool = False
    backend: Backend = Backend.flash
    keep: int | None = None


@dataclass
class Container:
    train: Train = field(default_factory=Train)
    peft: Any = None


def test_settings_take_the_types_of_their_fields() -> None:
    config = Container()
    values = {"steps": 5, "rate": "1e-3", "flag": True, "backend": "fused", "keep": 2}
    overrides.apply(config, {"train": values})
    assert config.train == Train(5, 0.001, True, Backend.fused, 2)
    overrides.apply(config, {"peft": {"_target_": "types.SimpleNamespace", "dim": 3}})
    assert config.peft.dim == 3
    overrides.apply(config, {"train": {"keep": None}})
    assert config.train.keep is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, "trian: no such setting in Container; did you mean 'train'"),
        ({"train": {"step": 1}}, "did you mean 'train.steps'"),
        ({"train": {"steps": "many"}}, "train.steps must be a number, not 'many'"),
        ({"train": {"steps": True}}, "train.steps must be a number, not True"),
        ({"train": {"flag": 1}}, "train.flag must be true or false, not 1"),
        ({"train": {"backend": "slow"}}, "'slow' is none of flash, fused"),
        ({"peft": {"dim": 8}}, "give its class as peft._target_"),
        ({"peft": {"_target_": "no.such.Thing"}}, "there is no 'no.such.Thing'"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overrides.apply(Container(), values)


def saved(folder: Path, step: int) -> Path:
    import torch

    made = folder / checkpoints.name_of(step)
    made.mkdir(parents=True)
    torch.save({"step": torch.tensor(step)}, made / checkpoints.TRAIN_STATE)
    return made


def test_a_checkpoint_is_announced_only_when_it_is_whole(tmp_path: Path) -> None:
    assert checkpoints.announce(tmp_path) is None
    made = saved(tmp_path, 4)
    (tmp_path / checkpoints.HELD_TRACKER).write_text("4")
    assert checkpoints.announce(tmp_path) is None
    assert not (tmp_path / checkpoints.TRACKER).exists()
    (made / checkpoints.RUN_CONFIG).write_text("{}")
    assert checkpoints.announce(tmp_path) == 4
    assert (tmp_path / checkpoints.TRACKER).read_text() == "4\n"


def test_a_resume_goes_by_the_tracker_alone(tmp_path: Path) -> None:
    assert checkpoints.prepare_resume(tmp_path) is None
    for step in (4, 6):
        saved(tmp_path, step)
    (tmp_path / checkpoints.TRACKER).write_text("4\n")
    (tmp_path / checkpoints.BRIDGE_TRACKER).write_bytes(
        (tmp_path / checkpoints.name_of(6) / checkpoints.TRAIN_STATE).read_bytes()
    )  # of a checkpoint that was never committed
    assert checkpoints.prepare_resume(tmp_path) == 4
    assert checkpoints.saved_step(tmp_path / checkpoints.BRIDGE_TRACKER) == 4
    (tmp_path / checkpoints.TRACKER).write_text("8\n")
    with pytest.raises(ConfigError, match="names step 8, but"):
        checkpoints.prepare_resume(tmp_path)


def test_every_node_removes_its_own_old_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bridge's own retention is global rank 0's, which sees node 0's disk only."""

    def left(rank: int, local: int, keep: int | None) -> list[str]:
        for step in (2, 4, 6, 8):
            (tmp_path / checkpoints.name_of(step)).mkdir(exist_ok=True)
        monkeypatch.setenv("LOCAL_RANK", str(local))
        Watch(tmp_path, rank, 1, keep).announce()
        return sorted(path.name for path in tmp_path.glob("iter_*"))

    everything = [checkpoints.name_of(step) for step in (2, 4, 6, 8)]
    assert left(8, 0, 2) == everything[1:], "two, and the one that may be in the making"
    assert left(0, 0, 2) == left(9, 1, 2) == left(8, 0, -1) == left(8, 0, None) == everything


def test_on_several_nodes_every_one_must_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """What data-parallel ranks have in common is else saved by node 0 alone, and no agent commits nothing."""
    config = SimpleNamespace(
        checkpoint=SimpleNamespace(save="c", load="c", fully_parallel_save=False),
        train=SimpleNamespace(exit_signal_handler=True, micro_batch_size=1, global_batch_size=16),
        model=SimpleNamespace(
            tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1
        ),
    )
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    train.check(config)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match="fully_parallel_save must be true on several nodes"):
        train.check(config)
    config.checkpoint.fully_parallel_save = True
    train.check(config)


def test_the_index_is_cached_only_where_all_ranks_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prefix in ("a", "b", "c"):
        (tmp_path / f"{prefix}.idx").touch()
    (tmp_path / "blend.json").write_text(json.dumps({"train": "1 a", "valid": "1 b", "test": "1 c"}))

    def cache(world: str, local_world: str) -> str | None:
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world)
        config = SimpleNamespace(dataset=SimpleNamespace(path_to_cache="/work/cache"))
        data.use_blend(config, tmp_path)
        found: str | None = config.dataset.path_to_cache
        return found

    assert cache("8", "8") == "/work/cache"
    assert cache("16", "8") == ""


def test_a_model_artifact_becomes_a_folder_that_bridge_loads(tmp_path: Path) -> None:
    model = saved(tmp_path / "run", 12)
    with pytest.raises(ConfigError, match="is not a Megatron-Bridge checkpoint"):
        checkpoints.shelve(model, tmp_path / "shelf")
    (model / checkpoints.RUN_CONFIG).write_text("{}")
    for _ in range(2):  # every rank of a node does it
        shelf = checkpoints.shelve(model, tmp_path / "shelf")
    assert (shelf / checkpoints.name_of(12)).resolve() == model
    assert checkpoints.saved_step(shelf / checkpoints.BRIDGE_TRACKER) == 12
    assert checkpoints.shelve(shelf, tmp_path / "other") == shelf
    with pytest.raises(ConfigError, match="there is no folder"):
        checkpoints.shelve(tmp_path / "gone", tmp_path / "shelf")


def test_blends_are_read_and_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*blend.json"):
        data.read_blend(tmp_path, "train")
    (tmp_path / "blend.json").write_text(json.dumps({"train": ["2", "a"], "valid": [], "test": "1 a"}))
    with pytest.raises(ConfigError, match="which is not there"):
        data.read_blend(tmp_path, "train")
    (tmp_path / "a.idx").touch()
    assert data.read_blend(tmp_path, "train") == ([str(tmp_path / "a")], [2.0])
    assert data.read_blend(tmp_path, "test") == ([str(tmp_path / "a")], [1.0])
    assert data.read_blend(tmp_path, "valid") is None
    for wrong in ("text", {"path": ""}, {"path": "x", "more": 1}, {"path": str(tmp_path / "gone")}):
        with pytest.raises(ConfigError, match="data"):
            data.folder_of(wrong)


def test_made_up_instructions_are_the_same_everywhere(tmp_path: Path) -> None:
    one, two = data.mock_instructions(tmp_path / "a"), data.mock_instructions(tmp_path / "b")
    for name in data.INSTRUCTIONS.values():
        assert (one / name).read_text() == (two / name).read_text()
        for line in (one / name).read_text().splitlines():
            row = json.loads(line)
            numbers = [int(word.strip("?")) for word in row["input"].split() if word.strip("?").isdigit()]
            assert int(row["output"]) == sum(numbers)


def test_weights_are_found_in_an_rl_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no Megatron-Bridge checkpoint"):
        convert.weights_in(tmp_path)
    inner = tmp_path / "policy/weights/iter_0000000"
    inner.mkdir(parents=True)
    assert convert.weights_in(tmp_path) == inner
    with pytest.raises(ConfigError, match="unknown setting hf_modle; did you mean 'hf_model'"):
        convert.check({"hf_modle": "x"}, ())


def test_rl_overrides_are_hydras() -> None:
    train = script("recipes/nano3/rl/train.py")
    given = {"a": {"b": 1, "c": None, "d": True}, "e": ["x", 2], "f": "/p/q", "g": {}}
    assert train.arguments(given, {"h": 0.5}) == [
        "++a.b=1", "++a.c=null", "++a.d=true", "++e=['x',2]", "++f='/p/q'", "++g={}", "++h=0.5",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="has a quote"):
        train.arguments({"a": "it's"}, {})


# Like NeMo-RL: each checkpoint under a temporary name, then renamed; the newest one found is gone on from.
TRAINER = """
import json, pathlib, re, sys, time
words = dict(word.lstrip("+").split("=", 1) for word in sys.argv[3:])
steps = pathlib.Path(words["checkpointing.checkpoint_dir"].strip("'"))
done = max([int(p.name[5:]) for p in steps.glob("step_*")], default=0)
for step in range(done + 2, int(words["grpo.max_num_steps"]) + 1, 2):
    folder = steps / f"tmp_step_{step}"
    (folder / "policy" / "weights").mkdir(parents=True)
    (folder / "policy" / "weights" / "w").write_text(f"{step} after {done}")
    (folder / "training_info.json").write_text(json.dumps({"reward": step / 10, "name": "x"}))
    folder.rename(steps / f"step_{step}")
    if step == int(words.get("stop_at", 0)):
        time.sleep(600)
"""


@pytest.fixture
def rl_run(tmp_path: Path) -> Any:
    (tmp_path / "entry.py").write_text(TRAINER)
    (tmp_path / "base.yaml").write_text("{}")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NEMO_SKY_METRICS": str(tmp_path / "metrics.jsonl"),
        "NEMO_SKY_METADATA": str(tmp_path / "metadata.json"),
    }

    def start(**more: Any) -> subprocess.Popen[bytes]:
        values = {
            "entry": str(tmp_path / "entry.py"),
            "base": str(tmp_path / "base.yaml"),
            "steps": str(tmp_path / "steps"),
            "checkpoints": str(tmp_path / "checkpoints"),
            "overrides": {"grpo": {"max_num_steps": 8}, **more},
        }
        (tmp_path / "config.yaml").write_text(json.dumps(values))
        path = ROOT / "recipes/nano3/rl/train.py"
        return subprocess.Popen(
            [sys.executable, str(path), "--config", str(tmp_path / "config.yaml")], env=environment
        )

    return start


def test_rl_checkpoints_are_shown_and_given_back(rl_run: Any, tmp_path: Path) -> None:
    tracker = tmp_path / "checkpoints/latest_checkpointed_iteration.txt"
    first = rl_run(stop_at=4)
    deadline = time.monotonic() + 60
    while not (tracker.is_file() and tracker.read_text() == "4\n"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0 or not (tmp_path / "metadata.json").exists()
    for path in sorted((tmp_path / "steps").rglob("*"), reverse=True):  # another machine
        path.rmdir() if path.is_dir() else path.unlink()
    second = rl_run()
    assert second.wait(60) == 0
    assert tracker.read_text() == "8\n"
    weights = tmp_path / "checkpoints/iter_0000008/policy/weights/w"
    assert weights.read_text() == "8 after 4"
    assert json.loads((tmp_path / "metadata.json").read_text())["step"] == 8
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 4
    assert steps[-1] == 8


def test_rl_fails_with_the_trainers_code(rl_run: Any, tmp_path: Path) -> None:
    (tmp_path / "entry.py").write_text("import sys; sys.exit(7)")
    assert rl_run().wait(60) == 7


def test_scores_are_read_from_the_harness_results() -> None:
    evaluate = script("recipes/nano3/eval/evaluate.py")
    results = {
        "results": {
            "mmlu": {"alias": "mmlu", "acc,none": 0.5, "acc_stderr,none": 0.1},
            "gsm8k": {"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A"},
        }
    }
    assert evaluate.scores_of(results) == {"mmlu/acc": 0.5, "gsm8k/exact_match/strict-match": 0.25}
    words = evaluate.command(
        {"model_path": "m", "tasks": ["a", "b"], "limit": 5, "model_args": {"dtype": "bfloat16"}}, Path("o")
    )
    assert words[3:] == [
        "--model", "vllm", "--model_args", "pretrained=m,dtype=bfloat16", "--tasks", "a,b",
        "--output_path", "o", "--limit", "5",
    ]  # fmt: skip
