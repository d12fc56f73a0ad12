"""A wrong setting is one line and exit status 2, before any work."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.tiny import loop, model, parallel, settings
from recipes.tiny.pretrain.train import Settings
from recipes.tiny.rl import train as rl
from recipes.tiny.settings import ConfigError
from tests.tiny import RECIPES, run, write_config

TRAIN = loop.TrainSettings(
    steps=100, global_batch_size=8, micro_batch_size=2, lr=1e-3, min_lr=1e-4, warmup_steps=10
)
MODEL = model.ModelSettings()
STAGES = ["data/prep/pretrain", "data/prep/sft", "data/prep/rl", "pretrain", "sft", "rl", "eval"]


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    path = write_config("pretrain", "default", tmp_path, {"data,path": tmp_path})
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


def test_the_shipped_config_is_read(config: dict[str, Any]) -> None:
    read = settings.build(Settings, config)
    assert read.train.lr == 5e-3
    assert read.model.layers == 4
    assert isinstance(read.checkpoints, Path)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "stepz", 5, "unknown setting train.stepz; did you mean train.steps?"),
        ("train", "steps", "many", "train.steps must be a whole number, not 'many'"),
        ("train", "steps", True, "train.steps must be a whole number, not True"),
        ("train", "lr", "fast", "train.lr must be a number, not 'fast'"),
        ("", "model", 3, "model must be a section, not 3"),
        ("", "data", 3, "data must be a path, not 3"),
    ],
)
def test_wrong_settings_are_named(
    config: dict[str, Any], section: str, key: str, value: object, message: str
) -> None:
    (config[section] if section else config)[key] = value
    with pytest.raises(ConfigError) as caught:
        settings.build(Settings, config)
    assert str(caught.value) == message


def test_a_missing_setting_is_named(config: dict[str, Any]) -> None:
    del config["train"]["lr"]
    with pytest.raises(ConfigError, match=r"setting train\.lr is missing"):
        settings.build(Settings, config)


def test_numbers_as_yaml_1_1_reads_them(config: dict[str, Any]) -> None:
    config["train"]["lr"] = yaml.safe_load("1e-3")
    assert config["train"]["lr"] == "1e-3", "YAML 1.1 takes it for text"
    assert settings.build(Settings, config).train.lr == 0.001


@pytest.mark.parametrize(
    ("change", "tensor", "message"),
    [
        ({"heads": 3}, 1, "model.hidden 128 is not an even number of channels for each of 3 heads"),
        ({"kv_heads": 3}, 1, "model.kv_heads 3 does not divide model.heads 4"),
        ({"kv_heads": 1}, 2, "parallel.tensor 2 does not divide model.kv_heads 1"),
        ({"ffn": 383}, 2, "parallel.tensor 2 does not divide model.ffn 383"),
        ({"seq_length": 1}, 1, "model.seq_length must be at least 2, not 1"),
        (
            {"heads": 6, "kv_heads": 6, "hidden": 120, "ffn": 120},
            3,
            "parallel.tensor 3 does not divide the vocab",
        ),
        ({"layers": 0}, 1, "model.layers must be at least 1, not 0"),
    ],
)
def test_shapes_that_cannot_be(change: dict[str, Any], tensor: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model.check(replace(MODEL, **change), tensor)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "train.steps must be at least 1, not 0"),
        ({"micro_batch_size": 4, "global_batch_size": 12}, "train.global_batch_size 12 is no multiple of"),
        ({"min_lr": 1.0}, "train.min_lr must lie in 0..train.lr, not 1.0"),
        ({"warmup_steps": 100}, "train.warmup_steps must lie in 0..train.steps - 1, not 100"),
        ({"save_interval": 0}, "train.save_interval must be at least 1, not 0"),
    ],
)
def test_training_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    loop.check(TRAIN, 2)
    with pytest.raises(ConfigError) as caught:
        loop.check(replace(TRAIN, **change), 2)
    assert str(caught.value).startswith(message)
    with pytest.raises(ConfigError, match=r"parallel.tensor 3 does not divide the 4 ranks"):
        parallel.check(parallel.ParallelSettings(tensor=3))


def test_groups_of_answers_must_fill_a_batch() -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size 10 is no multiple of train.generations 4"):
        rl.check(rl.TrainSettings(steps=1, batch_size=10, generations=4, max_tokens=4, lr=1e-4))


def test_the_rate_rises_falls_and_ends_at_its_floor() -> None:
    rates = [loop.learning_rate(step, TRAIN) for step in range(TRAIN.steps)]
    assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(rates[10:]))
    halfway = loop.learning_rate(10 + 89 // 2, replace(TRAIN, steps=100, min_lr=0.0))
    assert math.isclose(halfway, 5e-4, rel_tol=0.02)


def test_a_mistake_ends_the_script_with_one_line(tmp_path: Path) -> None:
    config = write_config("pretrain", "smoke", tmp_path, {"data,path": tmp_path}, ["parallel.tensor=2"])
    done = run(tmp_path, RECIPES / "pretrain" / "train.py", "--config", config, code=2)
    assert done.stderr == "error: parallel.tensor 2 does not divide the 1 ranks of this run\n"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["default", "smoke"])
def test_every_shipped_config_composes(stage: str, name: str, tmp_path: Path) -> None:
    assert write_config(stage, name, tmp_path, {}).is_file()
