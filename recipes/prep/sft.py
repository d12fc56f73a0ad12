"""Chats into packed sequences with a loss mask: the body of the ``data/prep/sft`` stages.

A row is ``{messages: [{role, content}, ...]}`` (``field`` names the key), or ``{input, output}``. The
tokenizer's own chat template writes it as text; only what the assistant says is trained on. The output holds
``{train,valid,test}/SOURCE-NNNNNN.idx.parquet`` with the columns that Megatron-Bridge reads: ``input_ids``,
``loss_mask`` (shifted by one, so that it stands at the token which predicts), and ``seq_start_id``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.bridge.common import ConfigError, require, write_metadata, write_text
from recipes.prep import settings as settings_of
from recipes.prep import shards
from recipes.prep.sources import Row, Unit, rows

SPLITS = ("train", "valid", "test")
DEFAULTS: dict[str, Any] = {
    "output": "",
    "sources": None,
    "tokenizer": "",
    "pack_size": 4096,
    "too_long": "drop",
    "splits": None,
    "shards": 16,
    "seed": 1234,
    "on_bad": "skip",
}
# So many examples are packed together: the more, the fuller the packs, and the more memory.
_WINDOW, _WINDOW_TOKENS = 8192, 8_000_000
_ROW_GROUP = 256

Ids = NDArray[np.int32]
Mask = NDArray[np.int8]


def prepare(given: Mapping[str, Any]) -> None:
    """Make the artifact in ``output`` and its metadata. Raises ConfigError."""
    values = settings_of.known(given, DEFAULTS)
    settings_of.common(values)
    require(values["pack_size"] >= 2, f"pack_size must be at least 2, not {values['pack_size']}")
    too_long = values["too_long"]
    require(too_long in ("drop", "truncate"), f"too_long must be drop or truncate, not {too_long!r}")
    sources = settings_of.sources(values["sources"])
    valid, test = settings_of.shares(values["splits"] or {})
    tokenizer = load_tokenizer(values["tokenizer"])
    started = time.monotonic()
    output = Path(values["output"])
    folder = shards.partial(output)
    context = {
        "fields": {source.name: "messages" if source.field == "text" else source.field for source in sources},
        "tokenizer": values["tokenizer"],
        "pack_size": values["pack_size"],
        "too_long": too_long,
        "valid": valid,
        "test": test,
        "seed": values["seed"],
        "on_bad": values["on_bad"],
    }
    pieces = shards.plan(
        sources, values["shards"], values["seed"], {**context, "content": content_of(tokenizer)}
    )
    with shards.session():
        totals, receipts = shards.make(pieces, folder, make_shard, context)
    everything = sum((total.counts for total in totals.values()), Counter[str]())
    require(everything["train_packs"], "no chat is left for training")
    longest = max((receipt["longest"] for receipt in receipts), default=0)
    fullest = max((receipt["fullest"] for receipt in receipts), default=0)
    packing = [{"dataset_max_seqlen": longest, "max_samples_per_bin": fullest, "min_packed_seqlen": 1}]
    write_text(folder / "packing.json", json.dumps(packing) + "\n")
    seconds = time.monotonic() - started
    used = everything["tokens"] / max(1, values["pack_size"] * sum(everything[f"{s}_packs"] for s in SPLITS))
    print(f"{everything['tokens']:,} tokens in packs that are {used:.0%} full; {seconds:.1f} s", flush=True)
    write_metadata(
        {
            "total_tokens": everything["tokens"],
            "total_sequences": everything["examples"],
            "pack_size": values["pack_size"],
            "elapsed_sec": round(seconds, 3),
            "num_shards": sum(len(receipt["files"]) for receipt in receipts),
            "training_path": "train",
            "validation_path": "valid",
            "test_path": "test",
            "metadata_path": "packing.json",
            "tokenizer_uri": values["tokenizer"],
            "source_datasets": [
                {
                    "uri": source.path,
                    "name": source.name,
                    "weight": source.weight,
                    "subset": source.subset,
                    "num_rows": totals[source.name].counts["examples"],
                }
                for source in sources
            ],
            "extra": {
                "trained_tokens": everything["trained_tokens"],
                "bad_rows": {name: dict(item.bad) for name, item in totals.items() if item.bad},
            },
        }
    )
    shards.finish(folder, output)


def load_tokenizer(name: str) -> Any:
    """A fast tokenizer with a chat template. Raises ConfigError when it is not one."""
    from transformers import AutoTokenizer

    require(name, "setting tokenizer is missing")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenizer: cannot load {name!r}: {str(error).splitlines()[0]}") from None
    require(tokenizer.chat_template, f"tokenizer: {name!r} has no chat template")
    require(tokenizer.is_fast, f"tokenizer: {name!r} has no fast version, which says where a token stands")
    return tokenizer


def content_of(tokenizer: Any) -> str:
    """A digest of what decides the ids: a folder may hold another tokenizer the next time."""
    text = f"{tokenizer.backend_tokenizer.to_str()}\0{tokenizer.chat_template}"
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=1)
def loaded(name: str) -> Any:
    """One for each process."""
    return load_tokenizer(name)


def messages_of(row: Row, field: str) -> tuple[list[dict[str, Any]], str]:
    """A row's chat and why it has none: exactly one of the two is empty."""
    if row.bad:
        return [], row.bad
    value = row.value.get(field)
    if value is None and {"input", "output"} <= row.value.keys():
        value = [
            {"role": "user", "content": row.value["input"]},
            {"role": "assistant", "content": row.value["output"]},
        ]
    if not isinstance(value, list) or not value:
        return [], f"no chat under {field!r}"
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return [], "a message without a role"
        if not isinstance(message.get("content"), str):
            return [], "a message without content"
    if not any(message["role"] == "assistant" and message["content"].strip() for message in value):
        return [], "the assistant says nothing"
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return [], "not UTF-8"
    return value, ""


def tokenise(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[list[int], list[bool], str]:
    """Token ids, which of them the assistant says, and why it could not be told.

    A turn is found as the text that the template adds for it. Some templates shorten earlier turns when
    later ones follow, so that theirs cannot be found: those are not trained on.
    """
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        spans = []
        for at, message in enumerate(messages):
            if message["role"] == "assistant":
                before = tokenizer.apply_chat_template(
                    messages[:at], tokenize=False, add_generation_prompt=True
                )
                after = tokenizer.apply_chat_template(messages[: at + 1], tokenize=False)
                if text.startswith(before) and text.startswith(after) and len(after) > len(before):
                    spans.append((len(before), len(after)))
    except Exception as error:  # a template may raise whatever it likes
        return [], [], f"chat template: {type(error).__name__}"
    if not spans:
        return [], [], "the template hides where the assistant speaks"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    said = [any(start <= at < end for start, end in spans) for at, _ in encoded["offset_mapping"]]
    return encoded["input_ids"], said, ""


def pack(lengths: list[int], size: int) -> list[list[int]]:
    """Indices by pack, first fit: each into the first pack with room for it."""
    room = np.zeros(len(lengths), dtype=np.int64)
    packs: list[list[int]] = []
    for index, length in enumerate(lengths):
        fits = np.flatnonzero(room[: len(packs)] >= length)
        if len(fits):
            at = int(fits[0])
        else:
            at = len(packs)
            packs.append([])
            room[at] = size
        packs[at].append(index)
        room[at] -= length
    return packs


def columns_of(
    packs: list[list[int]], examples: list[tuple[Ids, Mask]]
) -> list[tuple[NDArray[np.int32], NDArray[Any]]]:
    """Ids, mask and starts of some packs, each as offsets into one array of values."""
    ids = [np.concatenate([examples[index][0] for index in members]) for members in packs]
    mask = [np.concatenate([examples[index][1] for index in members]) for members in packs]
    starts = [np.cumsum([0, *(len(examples[index][0]) for index in members[:-1])]) for members in packs]
    return [
        (np.cumsum([0, *map(len, parts)], dtype=np.int32), np.concatenate(parts))
        for parts in (ids, mask, starts)
    ]


def make_shard(task: dict[str, Any]) -> dict[str, Any]:
    """In a Ray worker: one shard's packs, a file per split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.int8())),
         ("seq_start_id", pa.list_(pa.int32()))]
    )  # fmt: skip
    folder, size = Path(task["folder"]), task["pack_size"]
    field = task["fields"][task["source"]]
    tokenizer = loaded(task["tokenizer"])
    bad = shards.Bad(task["on_bad"])
    counts: Counter[str] = Counter()
    waiting: dict[str, list[tuple[Ids, Mask]]] = {split: [] for split in SPLITS}
    held: Counter[str] = Counter()  # tokens in waiting
    names = {split: f"{split}/{task['source']}-{task['number']:06d}.idx.parquet" for split in SPLITS}
    writers: dict[str, Any] = {}
    longest = fullest = 0

    def flush(split: str) -> None:
        nonlocal longest, fullest
        examples = waiting[split]
        # Bridge counts a sequence by what it predicts: one token less than it has.
        packs = pack([len(ids) - 1 for ids, _ in examples], size)
        for members in packs:
            longest = max(longest, *(len(examples[index][0]) - 1 for index in members))
            fullest = max(fullest, len(members))
        if split not in writers:
            target = shards.temporary(folder / names[split])
            target.parent.mkdir(parents=True, exist_ok=True)
            writers[split] = pq.ParquetWriter(target, schema, compression="zstd")
        for at in range(0, len(packs), _ROW_GROUP):
            columns = columns_of(packs[at : at + _ROW_GROUP], examples)
            lists = [
                pa.ListArray.from_arrays(offsets, values.astype(field.type.value_type.to_pandas_dtype()))
                for field, (offsets, values) in zip(schema, columns, strict=True)
            ]
            writers[split].write_table(pa.Table.from_arrays(lists, schema=schema))
        counts[f"{split}_packs"] += len(packs)
        held[split] = 0
        examples.clear()

    for unit in task["units"]:
        for row in rows(Unit(**unit), [field, "input", "output"]):
            name = f"{task['source']}/{row.name}"
            messages, reason = messages_of(row, field)
            if not reason:
                ids, said, reason = tokenise(tokenizer, messages)
            if not reason and len(ids) - 1 > size:
                if task["too_long"] == "truncate":
                    ids, said = ids[: size + 1], said[: size + 1]
                    counts["truncated"] += 1
                else:
                    reason = f"longer than a pack of {size} tokens"
            if not reason and not any(said[1:]):
                reason = "nothing of it is trained on"
            if reason:
                bad.add(name, reason)
                continue
            mask = np.array([*said[1:], False], dtype=np.int8)
            split = shards.split_of(task["seed"], json.dumps(messages), task["valid"], task["test"])
            waiting[split].append((np.array(ids, dtype=np.int32), mask))
            held[split] += len(ids)
            counts["examples"] += 1
            counts["tokens"] += len(ids)
            counts["trained_tokens"] += int(mask.sum())
            if len(waiting[split]) >= _WINDOW or held[split] >= _WINDOW_TOKENS:
                flush(split)
    for split, examples in waiting.items():
        if examples:
            flush(split)
    for writer in writers.values():
        writer.close()
    files = {}
    for split in writers:
        files[names[split]] = shards.temporary(folder / names[split]).stat().st_size
    return {
        "counts": counts, "bad": bad.counts, "examples": bad.examples, "files": files,
        "longest": longest, "fullest": fullest,
    }  # fmt: skip
