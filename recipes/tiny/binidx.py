"""Megatron's bin/idx shards and the blends that name them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recipes.tiny.settings import ConfigError, require

SPLITS = ("train", "valid", "test")


class ShardWriter:
    """One shard, ``prefix.bin`` and ``prefix.idx``, written by Megatron's own builder."""

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin, self._idx = f"{prefix}.bin", f"{prefix}.idx"
        self._builder = IndexedDatasetBuilder(self._bin, dtype=DType.optimal_dtype(vocab_size))
        self.counts: npt.NDArray[np.int64] = np.zeros(vocab_size, dtype=np.int64)

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def add(self, tokens: Sequence[int]) -> None:
        """Append one document."""
        ids = np.asarray(tokens, dtype=np.int64)
        self._builder.add_document(ids, [len(ids)])
        self.counts += np.bincount(ids, minlength=len(self.counts))

    def finish(self) -> bool:
        """Write the index. False, and no files, when there was no document."""
        self._builder.finalize(self._idx)
        if self.tokens == 0:
            Path(self._bin).unlink()
            Path(self._idx).unlink()
            return False
        return True


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution that ``counts`` (one per token id) describe.

    It is the loss of a model that knows how often each token occurs and nothing else.
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def write_blend(output: Path, writers: dict[tuple[str, int], ShardWriter]) -> int:
    """Finish the shards of (split, number) and write ``blend.json``. Returns how many shards there are.

    Weights are tokens. Shards without a document are left out, since Megatron cannot read them.
    """
    blend: dict[str, list[str]] = {split: [] for split in SPLITS}
    for (split, shard), writer in writers.items():
        weight = writer.tokens
        if writer.finish():
            blend[split] += [str(weight), f"{split}/shard_{shard:06d}"]
    (output / "blend.json").write_text(json.dumps(blend, indent=1) + "\n")
    return sum(len(entries) // 2 for entries in blend.values())


def read_blend(folder: Path, split: str) -> tuple[list[str], list[float]]:
    """The shards of a split as absolute prefixes, and their weights.

    ``blend.json`` is as Megatron reads it: a flat list of weight, prefix, weight, prefix... (or one text
    with blanks between). Raises ConfigError when it, or a shard that it names, is not there.
    """
    file = folder / "blend.json"
    try:
        entries: Any = json.loads(file.read_text())[split]
    except OSError:
        raise ConfigError(f"data: there is no {file}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{file} has no blend for {split!r}") from None
    words = entries.split() if isinstance(entries, str) else [str(entry) for entry in entries]
    require(
        len(words) >= 2 and len(words) % 2 == 0, f"{file}: {split} must list weights and prefixes in turn"
    )
    prefixes = [str(folder / prefix) for prefix in words[1::2]]
    for prefix in prefixes:
        require(Path(f"{prefix}.idx").is_file(), f"{file} names {prefix}, which is not there")
    return prefixes, [float(weight) for weight in words[0::2]]


def read_tokens(prefix: str, count: int) -> npt.NDArray[np.int64]:
    """The first ``count`` tokens of a shard, or as many as it has."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    stored = np.memmap(f"{prefix}.bin", dtype=IndexedDataset(prefix).index.dtype, mode="r")
    return np.asarray(stored[:count], dtype=np.int64)
