"""Text into Megatron's bin/idx: the body of the ``data/prep/pretrain`` stages.

    sources:   [{name, path, weight, pattern, subset, field}, ...]
    tokenizer: a folder, a tokenizer.json, or a model on the hub
    eod:       the token that ends a document; null takes the tokenizer's own

The output holds ``{train,valid,test}/SOURCE/shard_NNNNNN.{bin,idx}``, ``blend.json``, which Megatron takes as
``per_split_data_args_path`` (paths relative to the output), and ``tokenizer.json``.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.bridge.common import ConfigError, require, write_metadata, write_text
from recipes.prep import settings as settings_of
from recipes.prep import shards
from recipes.prep.binidx import Writer
from recipes.prep.encoding import encoder as encoder_of
from recipes.prep.sources import Source, Unit, rows, text_of

SPLITS = ("train", "valid", "test")
DEFAULTS: dict[str, Any] = {
    "output": "",
    "sources": None,
    "tokenizer": "",
    "eod": None,
    "splits": None,
    "shards": 16,
    "seed": 1234,
    "on_bad": "skip",
}
# Tokens that end a document in the tokenizers we know, in order of preference.
_ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
# Texts are encoded together: enough that Python's share of the time is small, few enough for memory.
_BATCH_CHARACTERS = 100_000


def prepare(given: Mapping[str, Any]) -> None:
    """Make the artifact in ``output`` and its metadata. Raises ConfigError."""
    values = settings_of.known(given, DEFAULTS)
    settings_of.common(values)
    sources = settings_of.sources(values["sources"])
    valid, test = settings_of.shares(values["splits"] or {})
    tokenizer = settings_of.tokenizer_text(values["tokenizer"])
    end = end_of_document(tokenizer, values["eod"])
    started = time.monotonic()
    output = Path(values["output"])
    folder = shards.partial(output)
    write_text(folder / "tokenizer.json", tokenizer)
    context = {
        "fields": {source.name: source.field for source in sources},
        "end": end,
        "valid": valid,
        "test": test,
        "seed": values["seed"],
        "on_bad": values["on_bad"],
    }
    pieces = shards.plan(sources, values["shards"], values["seed"], {**context, "tokenizer": tokenizer})
    with shards.session():
        totals, receipts = shards.make(pieces, folder, make_shard, context)
    blend = blend_of(sources, receipts)
    require(blend["train"], "no document is left for training")
    write_text(folder / "blend.json", json.dumps(blend, indent=1) + "\n")
    seconds = time.monotonic() - started
    write_metadata(describe(values["tokenizer"], sources, totals, receipts, seconds))
    shards.finish(folder, output)


def end_of_document(tokenizer: str, wanted: str | None) -> int:
    """The id of the token that ends a document. Raises ConfigError when there is none."""
    from tokenizers import Tokenizer

    known = Tokenizer.from_str(tokenizer)
    for token in [wanted] if wanted else _ENDS:
        found = known.token_to_id(token)
        if found is not None:
            return int(found)
    raise ConfigError(f"eod: the tokenizer has no token {wanted or ' or '.join(_ENDS)}; name one of its own")


def make_shard(task: dict[str, Any]) -> dict[str, Any]:
    """In a Ray worker: tokenise one shard into up to three files pairs."""
    folder = Path(task["folder"])
    encoder = encoder_of(str(folder / "tokenizer.json"))
    name = f"shard_{task['number']:06d}"
    writers = {split: Writer(folder / split / task["source"] / name, encoder.vocabulary) for split in SPLITS}
    bad = shards.Bad(task["on_bad"])
    counts: Counter[str] = Counter()
    field = task["fields"][task["source"]]
    # Pieces of documents that wait to be encoded: the text, the split, and on a document's last its row and
    # its size in bytes.
    waiting: list[tuple[str, str, tuple[str, int] | None]] = []

    def flush() -> None:
        for (_, split, last), ids in zip(
            waiting, encoder.encode([piece for piece, _, _ in waiting]), strict=True
        ):
            writers[split].extend(ids)
            if last:
                row_name, size = last
                if writers[split].end(task["end"]):
                    counts["text_bytes"] += size
                else:
                    bad.add(row_name, "the tokenizer makes nothing of it")
        waiting.clear()

    characters = 0
    for unit in task["units"]:
        for row in rows(Unit(**unit), [field]):
            text, reason = text_of(row, field)
            row_name = f"{task['source']}/{row.name}"
            if reason:
                bad.add(row_name, reason)
                continue
            data = text.encode()
            split = shards.split_of(task["seed"], data, task["valid"], task["test"])
            done = 0
            for piece in encoder.pieces(text):
                done += len(piece)
                waiting.append((piece, split, (row_name, len(data)) if done == len(text) else None))
                characters += len(piece)
                if characters >= _BATCH_CHARACTERS:
                    flush()
                    characters = 0
    flush()
    files: dict[str, int] = {}
    for split, writer in writers.items():
        if writer.finish():
            counts[f"{split}_tokens"] += writer.tokens
            counts[f"{split}_documents"] += writer.documents
            for suffix in (".bin", ".idx"):
                relative = f"{split}/{task['source']}/{name}{suffix}"
                files[relative] = shards.temporary(folder / relative).stat().st_size
    return {"counts": counts, "bad": bad.counts, "examples": bad.examples, "files": files}


def blend_of(sources: list[Source], receipts: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Weights and prefixes by split. A source's weight is dealt to its shards by their tokens."""
    weights = {source.name: source.weight for source in sources}
    blend: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        tokens = Counter[str]()
        for receipt in receipts:
            tokens[receipt["source"]] += receipt["counts"].get(f"{split}_tokens", 0)
        for receipt in receipts:
            mine = receipt["counts"].get(f"{split}_tokens", 0)
            if mine:
                source = receipt["source"]
                weight = weights[source] * mine / tokens[source]
                blend[split] += [f"{weight:.9g}", f"{split}/{source}/shard_{receipt['number']:06d}"]
    return blend


def describe(
    tokenizer: str,
    sources: list[Source],
    totals: Mapping[str, shards.Totals],
    receipts: list[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """The artifact's typed metadata."""
    everything = sum((total.counts for total in totals.values()), Counter[str]())
    tokens = {split: everything[f"{split}_tokens"] for split in SPLITS}
    total = sum(tokens.values())
    print(f"{total:,} tokens in {seconds:.1f} s: {total / max(seconds, 1e-9):,.0f} tokens/s", flush=True)
    return {
        "total_tokens": total,
        "total_sequences": sum(everything[f"{split}_documents"] for split in SPLITS),
        "elapsed_sec": round(seconds, 3),
        "num_shards": sum(len(receipt["files"]) // 2 for receipt in receipts),
        "blend_path": "blend.json",
        **{f"{split}_tokens": tokens[split] for split in SPLITS},
        "source_datasets": [
            {
                "uri": source.path,
                "name": source.name,
                "weight": source.weight,
                "subset": source.subset,
                "text_field": source.field,
                "num_rows": sum(totals[source.name].counts[f"{split}_documents"] for split in SPLITS),
                "size_bytes": totals[source.name].counts["text_bytes"],
            }
            for source in sources
        ],
        "tokenizer_uri": tokenizer,
        "extra": {"bad_rows": {name: dict(item.bad) for name, item in totals.items() if item.bad}},
    }
