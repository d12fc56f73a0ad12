"""Pretraining data: Megatron's GPTDataset over bin/idx shards, or its mock."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.tiny import binidx

if TYPE_CHECKING:
    import torch

# Megatron's mock documents run through all token ids in turn; so few make them repeat within a sequence.
MOCK_VOCAB = 128
_ENTROPY_TOKENS = 20_000_000


@dataclass(frozen=True)
class Ids:
    """The facts about a tokenizer that Megatron's datasets ask for."""

    vocab_size: int
    eod: int
    pad: int

    @property
    def unique_identifiers(self) -> dict[str, int]:
        return {"vocab_size": self.vocab_size, "eod": self.eod, "pad": self.pad}


@dataclass(frozen=True)
class Corpus:
    """Training and validation sequences; see :class:`recipes.tiny.loop.Data`."""

    train_set: Any
    valid_set: Any

    @property
    def valid_samples(self) -> int:
        return len(self.valid_set)

    def train(self, index: int) -> dict[str, torch.Tensor]:
        sample: dict[str, torch.Tensor] = self.train_set[index]
        return sample

    def valid(self, index: int) -> dict[str, torch.Tensor]:
        sample: dict[str, torch.Tensor] = self.valid_set[index]
        return sample

    def collate(self, samples: Sequence[Any]) -> dict[str, torch.Tensor]:
        import torch

        wanted = ("tokens", "labels", "loss_mask", "position_ids")
        return {key: torch.stack([sample[key] for sample in samples]) for key in wanted}


def open_corpus(
    folder: Path | None, ids: Ids, *, seq_length: int, samples: int, eval_samples: int, seed: int, cache: Path
) -> Corpus:
    """``samples`` shuffled training sequences of ``folder`` (None: mock data) and one pass of validation.

    ``cache`` is a folder for this rank alone: Megatron keeps its indices there. Call it inside
    :func:`recipes.tiny.parallel.alone`. Raises ConfigError when shards are missing.
    """
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset

    logging.getLogger("megatron.core.datasets").setLevel(logging.WARNING)
    # What an earlier attempt left may be half written.
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    common: dict[str, Any] = {
        "random_seed": seed,
        "sequence_length": seq_length,
        "tokenizer": ids,
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": False,
        "create_attention_mask": False,
        "path_to_cache": str(cache),
    }
    if folder is None:
        config = GPTDatasetConfig(**common)
        sizes = [samples, eval_samples, 1]
        train_set, valid_set, _ = BlendedMegatronDatasetBuilder(
            MockGPTDataset, sizes, lambda: True, config
        ).build()
        return Corpus(train_set, valid_set)
    prefixes, weights = binidx.read_blend(folder, "train")
    held_out, _ = binidx.read_blend(folder, "valid")
    blends = [(prefixes, weights if len(prefixes) > 1 else None), (held_out, None), None]
    config = GPTDatasetConfig(blend_per_split=blends, **common)
    train_set, valid_set, _ = BlendedMegatronDatasetBuilder(
        GPTDataset, [samples, None, None], lambda: True, config
    ).build()
    return Corpus(train_set, valid_set)


def unigram_entropy(folder: Path) -> float:
    """Entropy in nats of the training tokens, over at most the first 20 million of each shard."""
    prefixes, _ = binidx.read_blend(folder, "train")
    found = [np.bincount(binidx.read_tokens(prefix, _ENTROPY_TOKENS)) for prefix in prefixes]
    counts = np.zeros(max(map(len, found)), dtype=np.int64)
    for item in found:
        counts[: len(item)] += item
    return binidx.entropy(counts)
