"""Distributed checkpoints under torchrun: interrupted, resumed at another parallelism, the same loss."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from recipes.tiny import checkpoint, tokenizer
from tests.tiny import ROOT, free_port, make_corpus, run, write_config

# Megatron-Core and torch warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

DRIVER = ROOT / "tests" / "fixtures" / "tiny_runs.py"
SHORT = ["train.steps=12", "train.save_interval=4", "train.eval_interval=12", "train.global_batch_size=4"]


def run_all(root: Path, *configs: Path) -> subprocess.CompletedProcess[str]:
    return run(root, DRIVER, *(f"{free_port()}={config}" for config in configs), ranks=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of four runs of 12 steps: whole at DP 2; stopped after 5 and resumed at TP 2; resumed at DP 2
    from the whole run's step 8, with rubbish where step 12 is to be saved."""
    root = tmp_path_factory.mktemp("tiny")
    data = {"data,path": make_corpus(root / "data")}
    whole, stopped, again = root / "whole", root / "stopped", root / "again"
    first = [
        write_config("pretrain", "smoke", whole, data, SHORT),
        write_config("pretrain", "smoke", stopped, data, SHORT, file="stop-5.yaml"),
    ]
    tensor = write_config("pretrain", "smoke", stopped, data, [*SHORT, "parallel.tensor=2"])
    done = run_all(root, *first)
    assert "stopped on request at step 5, saved" in done.stdout
    assert checkpoint.newest(stopped / "checkpoints") == 5
    assert not (stopped / "metadata.json").exists(), "a stopped run has no output yet"

    resumed = write_config("pretrain", "smoke", again, data, SHORT)
    shutil.copytree(whole / "checkpoints", again / "checkpoints")
    checkpoint.commit(again / "checkpoints", 8)
    (again / "checkpoints" / "iter_0000012" / "common.pt").write_text("half written")
    done = run_all(root, tensor, resumed)
    assert "resumed at step 5 of 12" in done.stdout
    assert "resumed at step 8 of 12" in done.stdout
    return {"whole": whole, "stopped": stopped, "again": again}


def metadata(work: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((work / "metadata.json").read_text())
    return values


@pytest.mark.parametrize("name", ["stopped", "again"])
def test_a_resumed_run_ends_with_the_loss_of_an_uninterrupted_one(runs: dict[str, Path], name: str) -> None:
    whole, resumed = metadata(runs["whole"]), metadata(runs[name])
    for key in ("final_loss", "valid_loss"):
        assert resumed[key] == pytest.approx(whole[key], abs=1e-4), key
    assert resumed["step"] == whole["step"] == 12
    assert resumed["total_tokens"] == whole["total_tokens"] == 12 * 4 * 64


def test_a_checkpoint_holds_what_a_consumer_needs(runs: dict[str, Path]) -> None:
    folder = checkpoint.find(runs["whole"] / "checkpoints", "model")
    assert folder.name == "iter_0000012"
    described = checkpoint.describe(folder)
    assert described.model.layers == 2
    assert described.vocab_size == tokenizer.load(folder / "tokenizer").get_vocab_size()
    assert checkpoint.find(folder, "model") == folder, "an artifact is the folder itself"


def test_every_rank_writes_its_share(runs: dict[str, Path]) -> None:
    """Nodes share no file system: one that wrote nothing would have nothing to commit."""
    folder = checkpoint.iteration_dir(runs["whole"] / "checkpoints", 12)
    sizes = [sum(path.stat().st_size for path in folder.glob(f"__{rank}_*.distcp")) for rank in (0, 1)]
    assert min(sizes) > 0.3 * sum(sizes), "half each, of tensors that are not cut"


def test_the_loss_falls(runs: dict[str, Path]) -> None:
    values = metadata(runs["whole"])
    assert values["final_loss"] < 5.6, "it began at ln 384 = 5.95"
