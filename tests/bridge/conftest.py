"""Megatron-Bridge's own environment, and a project whose runs use it. `make bridge-env` makes the first."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Project

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("NEMO_SKY_BRIDGE_PYTHON", ROOT / "tests/bridge/.venv/bin/python"))
VOCABULARY = 512


@pytest.fixture(scope="session")
def bridge_python() -> str:
    """The interpreter that has Megatron-Bridge; tests that need it are skipped without."""
    if not PYTHON.is_file():
        pytest.skip(f"Megatron-Bridge is not installed in {PYTHON}: `make bridge-env` does that (3 GB)")
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU: the CPU shim refuses to load on one")
    return str(PYTHON)


@pytest.fixture(scope="session")
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


def make_project(folder: Path, python: str, configs: Mapping[str, Mapping[str, Any]]) -> Project:
    """A project with the shipped recipes themselves, an empty store, and three profiles.

    `local` is the shipped one. `bridge` runs the agent and the stage's script in Bridge's environment, as a
    node with NVIDIA's image would; `shimmed` puts the CPU shim under the script too.
    """
    folder.mkdir()
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "nemo-sky.yaml").touch()
    (folder / "clusters").mkdir()
    shutil.copy(ROOT / "clusters/local.yaml", folder / "clusters")
    path = f"{Path(python).parent}:{os.environ['PATH']}"
    for name, first in (("bridge", ""), ("shimmed", f"{ROOT / 'tests/bridge/site'}:")):
        env = {"PATH": path, "PYTHONPATH": f"{first}{ROOT}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        profile = {"extends": "local", "env": env}
        (folder / f"clusters/{name}.yaml").write_text(yaml.safe_dump(profile))
    for name, values in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(dict(values)))
    return Project(folder)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `blend`, `packs` and `model`, laid out as the artifacts that training stages read."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    folder = tmp_path_factory.mktemp("inputs")
    blend = folder / "blend"
    for split in ("train", "valid", "test"):
        (blend / split).mkdir(parents=True)
        for suffix in ("bin", "idx"):
            (blend / split / f"shard_000000.{suffix}").touch()
    shards = {split: ["1.0", f"{split}/shard_000000"] for split in ("train", "valid", "test")}
    (blend / "blend.json").write_text(json.dumps(shards))
    row = {"input_ids": [1, 2, 3, 4], "loss_mask": [0, 1, 1, 0], "seq_start_id": [0]}
    for split in ("train", "valid"):
        (folder / "packs" / split).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row]), folder / "packs" / split / "shard_000000.idx.parquet")
    (folder / "packs" / "packing.json").write_text("[]")
    (folder / "model").mkdir()
    (folder / "model" / "run_config.yaml").write_text("{}\n")
    torch.save({"step": torch.tensor(7)}, folder / "model" / "train_state.pt")
    return folder
