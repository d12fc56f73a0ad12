"""What a stage trains on: bin/idx blends, packed or plain instructions, or data made up for a smoke test.

``data`` of a stage's config:

    data: null                   made-up data, for smoke tests
    data: {path: FOLDER}         an artifact of data/prep, or any folder laid out as one
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from recipes.bridge import gate
from recipes.bridge.common import ConfigError, require, several_nodes, work_dir, write_text

SPLITS = ("train", "valid", "test")
# The files that Bridge's fine-tuning datasets look for in a folder.
INSTRUCTIONS = {"train": "training.jsonl", "valid": "validation.jsonl", "test": "test.jsonl"}
_MOCK_ROWS = 512


def folder_of(section: Any) -> Path | None:
    """The folder that ``data`` names, None for made-up data. Raises ConfigError for anything else."""
    if section is None:
        return None
    if not isinstance(section, Mapping) or set(section) != {"path"} or not section["path"]:
        raise ConfigError("data must be null, for made-up data, or {path: FOLDER}")
    folder = Path(str(section["path"]))
    require(folder.is_dir(), f"data.path: there is no folder {folder}")
    return folder


def use_blend(config: Any, folder: Path | None) -> None:
    """Point a pretraining config at ``folder``'s blend.json; made-up data when it is None.

    On several nodes no index is cached: Megatron-Core has global rank 0 write the cache and every other rank
    read it (``GPTDataset``, 0.16), and the disk of node 0 is not that of the others. Without one each rank
    makes the index in its memory, 12 bytes for each sample of the run.
    """
    dataset = config.dataset
    if folder is None:
        dataset.blend = dataset.blend_per_split = None
        dataset.split = "1,1,1"
        return
    dataset.blend, dataset.split = None, None
    dataset.blend_per_split = [read_blend(folder, split) for split in SPLITS]
    if several_nodes():
        dataset.path_to_cache = ""  # None would be a folder beside the data


def read_blend(folder: Path, split: str) -> tuple[list[str], list[float]] | None:
    """Absolute shard prefixes of a split and their weights; None when the split is empty.

    ``blend.json`` is as Megatron reads it: for each split a flat list of weight, prefix, weight, prefix...
    Raises ConfigError when it, or a shard that it names, is not there, and for an empty ``train``.
    """
    file = folder / "blend.json"
    try:
        entries: Any = json.loads(file.read_text())[split]
    except OSError:
        raise ConfigError(f"data: there is no {file}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{file} has no blend for {split!r}") from None
    words = entries.split() if isinstance(entries, str) else [str(entry) for entry in entries]
    require(len(words) % 2 == 0, f"{file}: {split} must list weights and prefixes in turn")
    require(words or split != "train", f"{file} has no training data")
    prefixes = [str(folder / prefix) for prefix in words[1::2]]
    for prefix in prefixes:
        require(Path(f"{prefix}.idx").is_file(), f"{file} names {prefix}, which is not there")
    return (prefixes, [float(weight) for weight in words[0::2]]) if words else None


def use_instructions(config: Any, folder: Path | None, settings: Mapping[str, Any]) -> None:
    """Give a fine-tuning config its dataset: packed Parquet, JSONL, or made-up questions and answers.

    ``settings`` are the config's own ``dataset`` section; ``seq_length`` there is the length in tokens of
    a pack or of an example. Raises ConfigError when the folder holds neither kind.
    """
    from megatron.bridge.training.config import FinetuningDatasetConfig

    length = int(settings.get("seq_length") or config.model.seq_length)
    folder = folder or mock_instructions(work_dir() / "mock-instructions")
    values: dict[str, Any] = {"dataset_root": str(folder), "seq_length": length, "do_test": False}
    if (folder / "train").is_dir():
        values["packed_sequence_specs"] = packed(folder, length, int(config.model.context_parallel_size))
    elif not (folder / INSTRUCTIONS["train"]).is_file():
        raise ConfigError(f"data: {folder} has neither packed sequences (train/) nor {INSTRUCTIONS['train']}")
    else:
        if _is_chat(folder / INSTRUCTIONS["train"]):
            values["dataset_kwargs"] = {"chat": True, "use_hf_tokenizer_chat_template": True}
        if several_nodes() and os.environ.get("LOCAL_RANK") == "0":
            gate.index_lines([folder / name for name in INSTRUCTIONS.values() if (folder / name).is_file()])
    config.dataset = FinetuningDatasetConfig(**values)
    config.model.seq_length = length


def packed(folder: Path, length: int, context_parallel: int) -> Any:
    """Bridge's description of packed sequences of ``length`` tokens in ``folder``/train and /valid."""
    paths = {}
    for split in ("train", "valid"):
        shards = sorted((folder / split).glob("*.parquet"))
        require(shards, f"data: no packed sequences in {folder / split}")
        paths[split] = str(folder / split) if gate.reads_packed_parquet() else str(_numpy(shards, split))
    cls = gate.packed_specs_class()
    values = {
        "packed_sequence_size": length,
        "packed_train_data_path": paths["train"],
        "packed_val_data_path": paths["valid"],
        "packed_metadata_path": str(folder / "packing.json"),
        # Context parallelism halves each sequence twice over its ranks.
        "pad_seq_to_mult": 1 if context_parallel == 1 else 2 * context_parallel,
    }
    known = {item.name for item in fields(cls)}
    return cls(**{key: value for key, value in values.items() if key in known})


def _numpy(shards: Iterable[Path], split: str) -> Path:
    """The packs as the NumPy file that Bridge before 0.4.0 reads, made once per node."""
    import numpy as np
    import pyarrow.parquet as pq

    target = work_dir() / "packed" / f"{split}.npy"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
        temporary = target.with_name(f".{split}.{os.getpid()}.npy")
        np.save(temporary, np.array(rows, dtype=object), allow_pickle=True)
        temporary.replace(target)
    return target


def mock_instructions(folder: Path) -> Path:
    """Sums as questions and answers: enough for a smoke test, and nothing to download."""
    for split, name in INSTRUCTIONS.items():
        if not (folder / name).is_file():
            start = 7 * SPLITS.index(split)
            numbers = [((start + 37 * i) % 997, (11 + 53 * i) % 991) for i in range(_MOCK_ROWS)]
            lines = [json.dumps({"input": f"What is {a} + {b}?", "output": str(a + b)}) for a, b in numbers]
            write_text(folder / name, "\n".join(lines) + "\n")
    return folder


def _is_chat(file: Path) -> bool:
    with file.open() as lines:
        first = json.loads(lines.readline() or "{}")
    return "messages" in first
