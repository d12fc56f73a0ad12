# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "megatron-core==0.16.1", "psutil>=7", "ray[data]==2.60.0", "tokenizers>=0.22",
#     "pyyaml>=6",
# ]
#
# [tool.runspec]
# schema = "1"
# name = "tiny/data/prep/pretrain"
#
# [tool.runspec.run]
# launch = "ray"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
#
# [tool.nemo_sky]
# sources = ["source.path", "tokenizer.path"]
#
# [tool.nemo_sky.output]
# name = "tiny-pretrain-data"
# type = "pretrain-data"
# ///
"""Tokenise real text into Megatron's bin/idx, split by document into train, valid and test.

    python recipes/tiny/data/prep/pretrain/prep.py --config FILE

The output holds ``train/``, ``valid/`` and ``test/`` shards, ``blend.json`` (what Megatron takes as
``per_split_data_args_path``, its paths relative to the output) and ``tokenizer/``. The same text, settings
and seed give the same bytes.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recipes.tiny import parallel, raydata, text, tokenizer
from recipes.tiny.binidx import SPLITS, ShardWriter, entropy, write_blend
from recipes.tiny.output import write_metadata
from recipes.tiny.progress import Progress
from recipes.tiny.settings import load, require, run


@dataclass(frozen=True)
class TokenizerSettings:
    """``path`` takes an existing ``tokenizer.json`` (or its folder) instead of training one.

    It is trained on the first ``train_bytes`` of the text.
    """

    vocab_size: int = 512
    train_bytes: int = 2_000_000
    path: str | None = None


@dataclass(frozen=True)
class SplitSettings:
    """Shares of the documents; the rest is for training."""

    valid: float = 0.05
    test: float = 0.05


@dataclass(frozen=True)
class Settings:
    """``shards`` counts the training shards. ``on_bad`` is ``skip`` or ``fail``."""

    output: Path
    source: text.Source = field(default_factory=text.Source)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    splits: SplitSettings = field(default_factory=SplitSettings)
    shards: int = 2
    seed: int = 1234
    on_bad: str = "skip"


def check(settings: Settings) -> None:
    """Raises ConfigError for values that no run could use."""
    require(settings.on_bad in ("skip", "fail"), f"on_bad must be skip or fail, not {settings.on_bad!r}")
    require(settings.shards >= 1, f"shards must be at least 1, not {settings.shards}")
    shares = (settings.splits.valid, settings.splits.test)
    require(
        min(shares) > 0 and sum(shares) < 1, "splits.valid and splits.test must be above 0 and sum below 1"
    )


def main(config: Path) -> None:
    settings = load(Settings, config)
    check(settings)
    parallel.quiet_megatron()
    started = time.monotonic()
    units = text.units(settings.source, settings.seed)
    encoder = make_tokenizer(settings, units)
    print(f"tokenizer: {encoder.get_vocab_size()} tokens, {time.monotonic() - started:.1f} s", flush=True)
    with raydata.session():
        print(f"ray: ready after {time.monotonic() - started:.1f} s", flush=True)
        summary = tokenise(settings, units, encoder)
    tokenizer.save(encoder, settings.output / "tokenizer")
    write_metadata(describe(settings, units, summary, time.monotonic() - started))


def make_tokenizer(settings: Settings, units: list[text.Unit]) -> Any:
    """The tokenizer of the settings: an existing one, or one trained on the head of the text."""
    if settings.tokenizer.path:
        return tokenizer.load(Path(settings.tokenizer.path))

    def head() -> Iterator[str]:
        left = settings.tokenizer.train_bytes
        found = itertools.chain.from_iterable(
            text.documents(unit, settings.source.text_key) for unit in units
        )
        for document in found:
            if not document.bad:
                yield document.text
                left -= len(document.text)
            if left <= 0:
                return

    return tokenizer.train(head(), settings.tokenizer.vocab_size)


@dataclass
class Summary:
    """What was written: tokens and documents by split, and what could not be used, by reason."""

    tokens: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    size: int = 0
    unigram_entropy: float = 0.0


def tokenise(settings: Settings, units: list[text.Unit], encoder: Any) -> Summary:
    """Write every shard and the blend; Ray must be up.

    Raises ConfigError for a bad document under ``on_bad: fail``, and when a split stays empty.
    """
    summary = Summary()
    vocab = encoder.get_vocab_size()
    writers = {
        (split, shard): ShardWriter(settings.output / split / f"shard_{shard:06d}", vocab)
        for split in SPLITS
        for shard in range(settings.shards if split == "train" else 1)
    }
    bar = Progress("tokenise", sum(unit.limit or text.size_of(Path(unit.path)) for unit in units), "bytes")
    batches = raydata.stream(
        [vars(unit) for unit in units],
        read_documents,
        expand_with={"text_key": settings.source.text_key},
        transform=encode,
        transform_with={"tokenizer_json": encoder.to_str(), "settings": settings},
    )
    for row in itertools.chain.from_iterable(batches):
        bar.add(row["size"])
        if row["bad"]:
            reason = row["bad"].partition(":")[0]
            require(settings.on_bad == "skip", f"{row['name']}: {row['bad']} (on_bad: skip leaves such out)")
            if not summary.bad[reason]:
                print(
                    f"left out {row['name']}: {row['bad']} (more of this kind are only counted)", flush=True
                )
            summary.bad[reason] += 1
            continue
        writers[row["split"], row["shard"]].add(row["tokens"])
        summary.documents[row["split"]] += 1
        summary.tokens[row["split"]] += len(row["tokens"])
        summary.size += row["size"]
    bar.finish()
    for split in SPLITS:
        require(
            summary.documents[split] > 0,
            f"no document fell into {split}: {sum(summary.documents.values())} usable documents are too few",
        )
    counts = [writer.counts for (split, _), writer in writers.items() if split == "train"]
    summary.unigram_entropy = entropy(np.sum(counts, axis=0))
    summary.shards = write_blend(settings.output, writers)
    return summary


def read_documents(row: dict[str, Any], text_key: str) -> list[dict[str, Any]]:
    """In a Ray worker: the documents of one file."""
    unit = text.Unit(row["path"], row["name"], row["limit"])
    return [vars(document) for document in text.documents(unit, text_key)]


def encode(table: Any, tokenizer_json: str, settings: Settings) -> Any:
    """In a Ray worker: token ids, split and shard of a batch of documents (an Arrow table)."""
    import pyarrow as pa

    encoder = tokenizer.parse(tokenizer_json)
    encoder.encode_special_tokens = True  # text that looks like a special token stays text
    eod = encoder.token_to_id(tokenizer.EOD)
    rows = []
    for row in table.to_pylist():
        content = row["text"]
        tokens = [] if row["bad"] else [*encoder.encode(content, add_special_tokens=False).ids, eod]
        split = split_of(content, settings)
        shard = int(text.uniform(settings.seed + 1, content) * settings.shards) if split == "train" else 0
        rows.append(
            {
                "name": row["name"],
                "bad": row["bad"],
                "size": len(content.encode()),
                "tokens": tokens,
                "split": split,
                "shard": shard,
            }
        )
    return pa.Table.from_pylist(rows, schema=_schema())


def split_of(content: str, settings: Settings) -> str:
    """By content, so that two copies of a document never stand on both sides."""
    at = text.uniform(settings.seed, content)
    if at < settings.splits.valid:
        return "valid"
    return "test" if at < settings.splits.valid + settings.splits.test else "train"


def _schema() -> Any:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("name", "bad", "split")]
    numbers = [(name, pa.int64()) for name in ("size", "shard")]
    return pa.schema([*texts, *numbers, ("tokens", pa.list_(pa.int32()))])


def describe(settings: Settings, units: list[text.Unit], summary: Summary, seconds: float) -> dict[str, Any]:
    """The output's metadata; also prints what a person wants to know of it."""
    tokens, bad = summary.tokens, dict(sorted(summary.bad.items()))
    listed = ", ".join(f"{split} {tokens[split]:,} tokens" for split in SPLITS)
    print(f"{listed} in {summary.shards} shards; {sum(bad.values())} documents left out {bad or ''}")
    print(
        f"unigram entropy of the training tokens: {summary.unigram_entropy:.4f} nats; {seconds:.1f} s in all"
    )
    source = {
        "uri": settings.source.path,
        "name": "python standard library" if settings.source.path == text.STDLIB else settings.source.path,
        "text_field": settings.source.text_key,
        "num_rows": sum(summary.documents.values()),
        "size_bytes": summary.size,
        "num_files": len(units),
    }
    return {
        "total_tokens": sum(tokens.values()),
        "total_sequences": sum(summary.documents.values()),
        "elapsed_sec": round(seconds, 3),
        "num_shards": summary.shards,
        "blend_path": "blend.json",
        **{f"{split}_tokens": tokens[split] for split in SPLITS},
        "source_datasets": [source],
        "tokenizer_uri": settings.tokenizer.path or "tokenizer",
        "extra": {"unigram_entropy": summary.unigram_entropy, "bad_documents": bad},
    }


if __name__ == "__main__":
    run(main)
