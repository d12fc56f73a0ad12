"""The tiny family's scripts one after the other, as the agent starts them; stopped and resumed on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.artifacts.types import check_metadata
from recipes.tiny import checkpoint
from tests.tiny import RECIPES, command, environment, run, write_config

LONG = ["train.steps=60", "train.save_interval=20", "train.eval_interval=60"]


def metadata(work: Path, kind: str) -> dict[str, Any]:
    """The typed metadata that a stage wrote, as the agent would check it."""
    values: dict[str, Any] = json.loads((work / "metadata.json").read_text())
    check_metadata(kind, values)
    return values


def script(stage: str) -> Path:
    names = {
        "data/prep": "prep.py",
        "pretrain": "train.py",
        "sft": "train.py",
        "rl": "train.py",
        "eval": "eval.py",
    }
    return RECIPES / stage / names["data/prep" if stage.startswith("data/prep") else stage]


def stage(name: str, work: Path, inputs: dict[str, Any], *overrides: str, ranks: int = 0) -> str:
    config = write_config(name, "smoke", work, inputs, overrides)
    return run(work, script(name), "--config", config, ranks=ranks).stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where every stage has run once in `smoke`."""
    root = tmp_path_factory.mktemp("tiny")
    data, model = {"data,path": root / "data" / "output"}, "iter_0000060"
    stage("data/prep/pretrain", root / "data", {})
    stage("data/prep/sft", root / "sft-data", data)
    stage("data/prep/rl", root / "rl-data", {})
    stage("pretrain", root / "pretrain", data, *LONG, ranks=2)
    inputs: dict[str, Any] = {"data,path": root / "sft-data" / "output", "data,pack_size": 64}
    stage("sft", root / "sft", inputs | {"model,path": root / "pretrain" / "checkpoints" / model}, ranks=2)
    inputs = {"data,path": root / "rl-data" / "output", "model,path": root / "sft" / "checkpoints"}
    stage("rl", root / "rl", inputs)
    inputs = data | {"tasks,path": root / "rl-data" / "output", "sft,path": root / "sft" / "checkpoints"}
    stage("eval", root / "eval", inputs | {"model,path": root / "rl" / "checkpoints" / "iter_0000004"})
    return root


def test_every_stage_describes_its_output(root: Path) -> None:
    data = metadata(root / "data", "pretrain-data")
    assert data["total_tokens"] == sum(data[f"{split}_tokens"] for split in ("train", "valid", "test"))
    assert metadata(root / "sft-data", "sft-data")["pack_size"] == 64
    assert metadata(root / "rl-data", "rl-data")["train"] == "train.jsonl"
    pretrained = metadata(root / "pretrain", "model")
    assert pretrained["valid_loss"] < data["extra"]["unigram_entropy"]
    assert metadata(root / "sft", "model")["step"] == 10
    assert metadata(root / "rl", "model")["step"] == 4
    assert set(metadata(root / "eval", "eval-report")["scores"]) >= {
        "perplexity",
        "sft_accuracy",
        "rl_accuracy",
    }
    assert (root / "eval" / "output" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_are_json_lines(root: Path) -> None:
    lines = [json.loads(line) for line in (root / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(5, 61, 5))
    assert all(line["tokens_per_second"] > 0 and line["memory_mb"] > 0 for line in lines if "loss" in line)
    counted = [line["total_tokens"] for line in lines if "loss" in line]
    assert counted == sorted(counted)
    assert counted[0] > 0


def test_a_killed_run_resumes_on_one_rank_with_the_same_loss(root: Path, tmp_path: Path) -> None:
    """kill -9 of torchrun and its ranks while step 60 is on its way; then no torchrun at all."""
    data = {"data,path": root / "data" / "output"}
    config = write_config("pretrain", "smoke", tmp_path, data, LONG)
    words = command(script("pretrain"), "--config", config, ranks=2)
    with subprocess.Popen(words, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        wait_for("saved iter_0000020", running)
        for process in [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]:
            process.kill()
    assert checkpoint.newest(tmp_path / "checkpoints") in (20, 40)
    out = run(tmp_path, script("pretrain"), "--config", config).stdout
    assert "resumed at step" in out
    same_end(root / "pretrain", tmp_path)


def test_sigterm_saves_and_ends_well(root: Path, tmp_path: Path) -> None:
    """SIGTERM to the ranks, as the agent sends it: they save between two intervals and leave with 0."""
    data = {"data,path": root / "data" / "output"}
    config = write_config("pretrain", "smoke", tmp_path, data, LONG)
    words = command(script("pretrain"), "--config", config, ranks=2)
    with subprocess.Popen(words, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        wait_for("step    25/60", running)
        for rank in psutil.Process(running.pid).children():
            rank.send_signal(signal.SIGTERM)
        rest = running.stdout.read()
        assert running.wait() == 0
    assert "stopped on request at step" in rest
    saved = checkpoint.newest(tmp_path / "checkpoints")
    assert saved is not None
    assert 25 <= saved < 60
    run(tmp_path, script("pretrain"), "--config", config, ranks=2)
    same_end(root / "pretrain", tmp_path)


def test_rl_stops_and_resumes(root: Path, tmp_path: Path) -> None:
    inputs = {"data,path": root / "rl-data" / "output", "model,path": root / "sft" / "checkpoints"}
    config = write_config("rl", "smoke", tmp_path, inputs, ["train.steps=40", "train.save_interval=40"])
    words = command(script("rl"), "--config", config)
    with subprocess.Popen(words, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        wait_for("step     4/40", running)
        os.kill(running.pid, signal.SIGTERM)
        assert "stopped on request at step" in running.stdout.read()
        assert running.wait() == 0
    saved = checkpoint.newest(tmp_path / "checkpoints")
    assert saved is not None
    assert not (tmp_path / "metadata.json").exists()
    assert f"resumed at step {saved} of 40" in run(tmp_path, script("rl"), "--config", config).stdout
    assert metadata(tmp_path, "model")["step"] == 40
    assert checkpoint.newest(tmp_path / "checkpoints") == 40


def test_mock_data_needs_no_text(tmp_path: Path) -> None:
    config = write_config("pretrain", "mock", tmp_path, {}, ["train.steps=30", "train.global_batch_size=4"])
    out = run(tmp_path, script("pretrain"), "--config", config).stdout
    assert "unigram entropy" not in out
    assert metadata(tmp_path, "model")["valid_loss"] < 3, "it began at ln 128 = 4.85"
    shutil.rmtree(tmp_path)


def wait_for(words: str, running: subprocess.Popen[str]) -> None:
    """Read the output up to the line that begins with ``words``."""
    assert running.stdout
    for line in running.stdout:
        if line.startswith(words):
            return
    raise AssertionError(f"the run ended without {words!r}")


def same_end(whole: Path, resumed: Path) -> None:
    expected, got = metadata(whole, "model"), metadata(resumed, "model")
    for key in ("final_loss", "valid_loss"):
        assert got[key] == pytest.approx(expected[key], abs=1e-4), key
    assert got["total_tokens"] == expected["total_tokens"]
