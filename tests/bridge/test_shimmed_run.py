"""The scripts of nano3 themselves, on a CPU under a shim, with a tiny model in place of the large one.

Shimmed: this shows that the scripts drive the real Megatron-Bridge rightly, and nothing about GPUs.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from recipes.prep.binidx import Writer

from .conftest import ROOT

VOCABULARY = 512
STEPS = 10
PRETRAIN = ROOT / "recipes/nano3/pretrain/train.py"
SFT = ROOT / "recipes/nano3/sft/train.py"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of exactly 512 tokens: the vocabulary needs no padding at any TP."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|endoftext|>", *letters, *(f"<|unused{n}|>" for n in range(VOCABULARY - 1 - len(letters)))]
    made = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Python's own library as bin/idx with a blend, as data/prep/pretrain lays it out."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    folder = tmp_path_factory.mktemp("data")
    texts = [path.read_text() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))]
    blend = {}
    for number, split in enumerate(("train", "valid", "test")):
        prefix = folder / split / "shard_000000"
        writer = Writer(prefix, VOCABULARY)
        for text in texts[number::3]:
            writer.add([*encoder.encode(text).ids, 0])
        writer.finish()
        for suffix in (".bin", ".idx"):
            prefix.with_name(f".{prefix.name}{suffix}").replace(f"{prefix}{suffix}")
        blend[split] = ["1.0", f"{split}/shard_000000"]
    (folder / "blend.json").write_text(json.dumps(blend))
    return folder


class Run:
    """One launch of a script with its own work folder; ``folder`` keeps checkpoints between launches."""

    def __init__(self, python: str, folder: Path, script: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        where = {
            "save": str(self.checkpoints),
            "load": str(self.checkpoints),
            "save_interval": 2,
            "most_recent_k": 2,
        }
        values = {
            **settings,
            "train": {"train_iters": STEPS, "exit_signal_handler": True},
            "checkpoint": where,
            "logger": {"log_interval": 1},
        }
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(values))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._log = (folder / "log.txt").open("w")
        self.process = subprocess.Popen(
            [python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port),
             str(ROOT / "tests/bridge/on_cpu.py"), str(script), "--config", str(config)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                 "NEMO_SKY_WORK": str(folder), "NEMO_SKY_METRICS": str(folder / "metrics.jsonl"),
                 "NEMO_SKY_METADATA": str(folder / "metadata.json")},
            stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def finish(self) -> None:
        assert self.process.wait(600) == 0, (self.folder / "log.txt").read_text()[-3000:]

    def committed(self) -> int:
        """The step that the tracker names, as the agent reads it."""
        tracker = self.checkpoints / "latest_checkpointed_iteration.txt"
        return int(tracker.read_text()) if tracker.is_file() else 0

    def kill_after(self, step: int) -> None:
        deadline = time.monotonic() + 600
        while self.committed() < step:
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        # torchrun gives every rank a session of its own.
        ranks = psutil.Process(self.process.pid).children(recursive=True)
        for rank in ranks:
            rank.kill()
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(ranks, timeout=60)

    def losses(self) -> dict[int, float]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines if "loss" in line}


def settings(data: Path, tokenizer: Path, tensor: int) -> dict[str, Any]:
    return {
        "recipe": {"_target_": "tests.bridge.tiny_provider.tiny_pretrain_config"},
        "data": {"path": str(data)},
        "model": {"tensor_model_parallel_size": tensor},
        "tokenizer": {
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": str(tokenizer),
            "vocab_size": None,
        },
    }


def test_pretrain_kill_resume_at_another_tp_then_sft(
    bridge_python: str, data: Path, tokenizer: Path, tmp_path: Path
) -> None:
    whole = Run(bridge_python, tmp_path / "whole", PRETRAIN, settings(data, tokenizer, 1))
    whole.finish()
    assert set(whole.losses()) == set(range(1, STEPS + 1))

    killed = Run(bridge_python, tmp_path / "killed", PRETRAIN, settings(data, tokenizer, 1))
    killed.kill_after(4)
    at = killed.committed()
    assert 4 <= at < STEPS
    assert (killed.checkpoints / f"iter_{at:07d}" / "run_config.yaml").is_file()
    (killed.folder / "metrics.jsonl").unlink()
    # What the agent restores: the committed checkpoint and the tracker, and nothing of Bridge's own.
    (killed.checkpoints / "latest_train_state.pt").unlink()

    resumed = Run(bridge_python, tmp_path / "killed", PRETRAIN, settings(data, tokenizer, 2))
    resumed.finish()
    assert f"resuming at step {at}" in (resumed.folder / "log.txt").read_text()
    again, before = resumed.losses(), whole.losses()
    assert set(again) == set(range(at + 1, STEPS + 1))
    assert again == pytest.approx({step: before[step] for step in again}, abs=1e-4)
    assert resumed.committed() == STEPS
    metadata = json.loads((resumed.folder / "metadata.json").read_text())
    assert metadata["step"] == STEPS
    assert metadata["final_loss"] == pytest.approx(before[STEPS], abs=1e-4)

    model = resumed.checkpoints / f"iter_{STEPS:07d}"
    tuning = {
        **settings(data, tokenizer, 1),
        "recipe": {"_target_": "tests.bridge.tiny_provider.tiny_sft_config"},
        "data": None,
        "model_path": str(model),
        "dataset": {"seq_length": 64, "num_workers": 0, "pin_memory": False},
    }
    tuned = Run(bridge_python, tmp_path / "sft", SFT, tuning)
    tuned.finish()
    losses = tuned.losses()
    assert set(losses) == set(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1]
    log = (tuned.folder / "log.txt").read_text(errors="replace")
    assert f"successfully loaded checkpoint from {tmp_path / 'sft/base'}" in log
    assert f"at iteration {STEPS}" in log
    assert json.loads((tuned.folder / "metadata.json").read_text())["step"] == STEPS
