"""Megatron-Bridge's own environment, and stand-ins for what its stages read. `make bridge-env` makes it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("NEMO_SKY_BRIDGE_PYTHON", ROOT / "tests/bridge/.venv/bin/python"))


@pytest.fixture(scope="session")
def bridge_python() -> str:
    """The interpreter that has Megatron-Bridge; tests that need it are skipped without."""
    if not PYTHON.is_file():
        pytest.skip(f"Megatron-Bridge is not installed in {PYTHON}: `make bridge-env` does that (3 GB)")
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU: the CPU shim refuses to load on one")
    return str(PYTHON)


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
