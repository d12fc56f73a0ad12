"""Prompts for reinforcement learning as JSONL: the body of the ``data/prep/rl`` stages.

A row is kept as it is, if it has the keys that ``required`` names (NeMo-Gym's
``responses_create_params`` by default). Weights repeat or thin out a source: a weight of 2 has each row
twice, one of 0.5 every other row. The output holds ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``, in a
seeded order.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.bridge.common import require, write_metadata
from recipes.prep import settings as settings_of
from recipes.prep import shards
from recipes.prep.sources import Row, Unit, rows

SPLITS = ("train", "valid", "test")
DEFAULTS: dict[str, Any] = {
    "output": "",
    "sources": None,
    "required": ["responses_create_params"],
    "splits": None,
    "shards": 8,
    "seed": 1234,
    "on_bad": "skip",
}
# A shard is sorted in memory.
_SHARD_BYTES = 64_000_000
# Rows of NVIDIA's blend that only point at another data set, whose licence forbids copying it.
_PLACEHOLDER = "_hf_placeholder"


def prepare(given: Mapping[str, Any]) -> None:
    """Make the artifact in ``output`` and its metadata. Raises ConfigError."""
    values = settings_of.known(given, DEFAULTS)
    settings_of.common(values)
    sources = settings_of.sources(values["sources"])
    valid, test = settings_of.shares(values["splits"] or {})
    started = time.monotonic()
    output = Path(values["output"])
    folder = shards.partial(output)
    context = {
        "weights": {source.name: source.weight for source in sources},
        "required": values["required"],
        "valid": valid,
        "test": test,
        "seed": values["seed"],
        "on_bad": values["on_bad"],
    }
    pieces = shards.plan(sources, values["shards"], values["seed"], context, _SHARD_BYTES)
    with shards.session():
        totals, receipts = shards.make(pieces, folder, make_shard, context)
    counts = {split: join(folder, split, receipts) for split in SPLITS}
    require(counts["train"], "no row is left for training")
    seconds = time.monotonic() - started
    print(f"{sum(counts.values()):,} rows in {seconds:.1f} s", flush=True)
    write_metadata(
        {
            "total_sequences": sum(counts.values()),
            "train": "train.jsonl",
            "val": "valid.jsonl",
            "test": "test.jsonl",
            "elapsed_sec": round(seconds, 3),
            "source_datasets": [
                {
                    "uri": source.path,
                    "name": source.name,
                    "weight": source.weight,
                    "subset": source.subset,
                    "num_rows": sum(totals[source.name].counts[f"{split}_rows"] for split in SPLITS),
                }
                for source in sources
            ],
            "extra": {"bad_rows": {name: dict(item.bad) for name, item in totals.items() if item.bad}},
        }
    )
    for path in sorted(folder.glob("parts/*")):
        path.unlink()
    (folder / "parts").rmdir()
    shards.finish(folder, output)


def make_shard(task: dict[str, Any]) -> dict[str, Any]:
    """In a Ray worker: one shard's rows by split, in their seeded order."""
    folder = Path(task["folder"])
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    bad = shards.Bad(task["on_bad"])
    counts: Counter[str] = Counter()
    weight = task["weights"][task["source"]]
    kept: dict[str, list[tuple[float, str]]] = {split: [] for split in SPLITS}
    for unit in task["units"]:
        for row in rows(Unit(**unit)):
            if reason := why_not(row, task["required"]):
                bad.add(f"{task['source']}/{row.name}", reason)
                continue
            line = json.dumps(row.value, sort_keys=True)  # in ASCII: any JSON reader takes it
            split = shards.split_of(task["seed"], line, task["valid"], task["test"])
            copies = int(weight) + (shards.uniform(task["seed"] + 1, line) < weight % 1)
            for copy in range(copies if split == "train" else min(copies, 1)):
                kept[split].append((shards.uniform(task["seed"] + 2, f"{line}{copy}"), line))
                counts[f"{split}_rows"] += 1
    files = {}
    for split, lines in kept.items():
        name = part_name(split, task["source"], task["number"])
        target = shards.temporary(folder / name)
        with target.open("w") as file:
            file.writelines(f"{key:.17f}\t{line}\n" for key, line in sorted(lines))
        files[name] = target.stat().st_size
    return {"counts": counts, "bad": bad.counts, "examples": bad.examples, "files": files}


def why_not(row: Row, required: list[str]) -> str:
    """Why a row cannot be used; empty when it can."""
    if row.bad:
        return row.bad
    if _PLACEHOLDER in row.value:
        return "a placeholder for a row of another data set"
    for key in required:
        if key not in row.value:
            return f"no {key!r}"
        value = row.value[key]
        # NeMo-Gym's requests have the prompt under "input".
        if empty(value) or (isinstance(value, dict) and empty(value.get("input", value))):
            return f"empty {key!r}"
    try:
        json.dumps(row.value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return "not UTF-8"
    except (TypeError, ValueError):  # Parquet's dates and bytes; NaN
        return "a value that JSON does not have"
    return ""


def empty(value: Any) -> bool:
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def part_name(split: str, source: str, number: int) -> str:
    return f"parts/{split}-{source}-{number:06d}"


def join(folder: Path, split: str, receipts: list[dict[str, Any]]) -> int:
    """Merge the sorted parts of a split into one file; returns its rows. Holds one row of each part."""
    import heapq

    parts = [folder / part_name(split, receipt["source"], receipt["number"]) for receipt in receipts]
    opened = [part.open() for part in parts]
    count = 0
    with (folder / f"{split}.jsonl").open("w") as target:
        for line in heapq.merge(*opened):
            target.write(line.partition("\t")[2])
            count += 1
    for file in opened:
        file.close()
    return count
