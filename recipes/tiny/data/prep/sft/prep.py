# /// script
# requires-python = ">=3.11"
# dependencies = ["ray[data]==2.60.0", "tokenizers>=0.22", "pyyaml>=6"]
#
# [tool.runspec]
# schema = "1"
# name = "tiny/data/prep/sft"
#
# [tool.runspec.run]
# launch = "ray"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
#
# [tool.nemo_sky]
# sources = ["source.path"]
#
# [tool.nemo_sky.inputs]
# data = "art://tiny-pretrain-data"
#
# [tool.nemo_sky.output]
# name = "tiny-sft-data"
# type = "sft-data"
# ///
"""Instruction pairs, packed to the sequence length with a loss mask.

    python recipes/tiny/data/prep/sft/prep.py --config FILE

Pairs are docstrings of real code ("What does json.dumps do?") and arithmetic, some of whose answers are
deliberately wrong: RL, which checks answers, is to mend that. The output holds
``splits/{train,valid,test}/*.parquet`` and the tokenizer of the input ``data``.
"""

from __future__ import annotations

import ast
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recipes.tiny import arithmetic, packing, raydata, text, tokenizer
from recipes.tiny.output import write_metadata
from recipes.tiny.progress import Progress
from recipes.tiny.settings import load, require, run

# Arithmetic's names of the splits are RL's; SFT's are Megatron's.
SPLIT_NAMES = {"train": "train", "val": "valid", "test": "test"}


@dataclass(frozen=True)
class SplitSettings:
    """Shares of the docstring pairs; the rest is for training."""

    valid: float = 0.05
    test: float = 0.05


@dataclass(frozen=True)
class Settings:
    """``pack_size`` is in tokens. ``answer_chars`` bounds a docstring's answer.

    ``examples`` counts the arithmetic pairs to train on, of which the share ``noise`` name the smaller
    number where the larger was asked for.
    """

    output: Path
    tokenizer: Path
    source: text.Source = field(default_factory=text.Source)
    splits: SplitSettings = field(default_factory=SplitSettings)
    arithmetic: arithmetic.ArithmeticSettings = field(default_factory=arithmetic.ArithmeticSettings)
    examples: int = 20_000
    noise: float = 0.6
    pack_size: int = 256
    answer_chars: int = 120
    rows_per_shard: int = 2_000
    seed: int = 1234
    on_bad: str = "skip"


@dataclass(frozen=True)
class Pair:
    """One question with its answer."""

    question: str
    answer: str
    split: str


def check(settings: Settings) -> None:
    """Raises ConfigError for values that no run could use."""
    require(settings.on_bad in ("skip", "fail"), f"on_bad must be skip or fail, not {settings.on_bad!r}")
    require(0 <= settings.noise <= 1, f"noise must lie in 0..1, not {settings.noise}")
    require(settings.pack_size >= 16, f"pack_size must be at least 16, not {settings.pack_size}")
    for name in ("examples", "answer_chars", "rows_per_shard"):
        require(getattr(settings, name) >= 1, f"{name} must be at least 1, not {getattr(settings, name)}")
    shares = (settings.splits.valid, settings.splits.test)
    require(
        min(shares) > 0 and sum(shares) < 1, "splits.valid and splits.test must be above 0 and sum below 1"
    )
    arithmetic.check(settings.arithmetic)


def main(config: Path) -> None:
    settings = load(Settings, config)
    check(settings)
    started = time.monotonic()
    encoder = tokenizer.load(settings.tokenizer)
    units = text.units(settings.source, settings.seed)
    with raydata.session():
        print(f"ray: ready after {time.monotonic() - started:.1f} s", flush=True)
        pairs, bad = docstring_pairs(settings, units)
    pairs += arithmetic_pairs(settings)
    require(any(pair.split == "valid" for pair in pairs), "no pair fell into valid: raise splits.valid")
    totals = write(settings, pairs, encoder, bad)
    tokenizer.save(encoder, settings.output / "tokenizer")
    write_metadata(describe(settings, units, totals, bad, time.monotonic() - started))


def docstring_pairs(settings: Settings, units: list[text.Unit]) -> tuple[list[Pair], Counter[str]]:
    """Pairs from the source's code, and what could not be used by reason; Ray must be up."""
    bar = Progress("docstrings", len(units), "files")
    pairs: list[Pair] = []
    bad: Counter[str] = Counter()
    rows = raydata.stream([vars(unit) for unit in units], read_pairs, expand_with={"settings": settings})
    for row in itertools.chain.from_iterable(rows):
        if row["end_of_file"]:
            bar.add(1)
        elif row["bad"]:
            require(settings.on_bad == "skip", f"{row['name']}: {row['bad']} (on_bad: skip leaves such out)")
            reason = row["bad"].partition(":")[0]
            if not bad[reason]:
                print(
                    f"left out {row['name']}: {row['bad']} (more of this kind are only counted)", flush=True
                )
            bad[reason] += 1
        else:
            pairs.append(Pair(row["question"], row["answer"], split_of(row["question"], settings)))
    bar.finish()
    return pairs, bad


def read_pairs(row: dict[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """In a Ray worker: a row per pair or bad document of one file, and one for the file's end."""
    blank = {"name": row["name"], "question": "", "answer": "", "bad": "", "end_of_file": False}
    found = []
    for document in text.documents(
        text.Unit(row["path"], row["name"], row["limit"]), settings.source.text_key
    ):
        if document.bad:
            found.append({**blank, "name": document.name, "bad": document.bad})
            continue
        try:
            tree = ast.parse(document.text)
        except (SyntaxError, ValueError, RecursionError):
            found.append({**blank, "name": document.name, "bad": "not Python"})
            continue
        module = row["name"].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for question, answer in docstrings(tree, module, settings.answer_chars):
            found.append({**blank, "question": question, "answer": answer})
    return [*found, {**blank, "end_of_file": True}]


def docstrings(tree: ast.Module, module: str, answer_chars: int) -> Iterator[tuple[str, str]]:
    """Questions about the public functions and classes of a module; the first line of each docstring."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            lines = (ast.get_docstring(node) or "").strip().splitlines()
            if lines and lines[0].strip() and not node.name.startswith("_"):
                verb = "is" if isinstance(node, ast.ClassDef) else "does"
                tail = "" if verb == "is" else " do"
                yield f"What {verb} {module}.{node.name}{tail}?", lines[0].strip()[:answer_chars]


def split_of(question: str, settings: Settings) -> str:
    at = text.uniform(settings.seed, question)
    if at < settings.splits.valid:
        return "valid"
    return "test" if at < settings.splits.valid + settings.splits.test else "train"


def arithmetic_pairs(settings: Settings) -> list[Pair]:
    """``examples`` training pairs, some answers wrong; each held-out question once, right."""
    problems = arithmetic.by_split(settings.arithmetic)
    random = np.random.default_rng(settings.seed)
    train = problems["train"]
    picks = random.integers(len(train), size=settings.examples)
    wrong = random.random(settings.examples) < settings.noise
    pairs = []
    for pick, off in zip(picks, wrong, strict=True):
        problem = train[int(pick)]
        pairs.append(Pair(problem.question, str(problem.slip if off else problem.answer), "train"))
    for name in ("val", "test"):
        pairs += [Pair(p.question, str(p.answer), SPLIT_NAMES[name]) for p in problems[name]]
    return pairs


@dataclass
class Totals:
    """What was written, by split."""

    pairs: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    shards: int = 0


def write(settings: Settings, pairs: list[Pair], encoder: Any, bad: Counter[str]) -> Totals:
    """Encode, shuffle, pack and write every split; pairs longer than a pack are counted in ``bad``."""
    totals = Totals()
    random = np.random.default_rng(settings.seed)
    encoder.encode_special_tokens = True  # text that looks like a special token stays text
    for split in SPLIT_NAMES.values():
        chosen = [pair for pair in pairs if pair.split == split]
        examples = []
        for position in random.permutation(len(chosen)):
            example = packing.example(chosen[position].question, chosen[position].answer, encoder)
            if len(example.tokens) > settings.pack_size:
                require(settings.on_bad == "skip", f"{chosen[position].question} is longer than pack_size")
                bad["longer than pack_size"] += 1
                continue
            examples.append(example)
        packs = packing.pack(examples, settings.pack_size)
        folder = settings.output / "splits" / split
        totals.shards += packing.write(packs, folder, settings.rows_per_shard)
        totals.pairs[split] = len(examples)
        totals.tokens[split] = sum(len(example.tokens) for example in examples)
        filled = totals.tokens[split] / max(1, len(packs) * settings.pack_size)
        print(f"{split}: {len(examples):,} pairs in {len(packs):,} packs, {filled:.0%} full", flush=True)
    return totals


def describe(
    settings: Settings, units: list[text.Unit], totals: Totals, bad: Counter[str], seconds: float
) -> dict[str, Any]:
    """The output's metadata."""
    print(f"{sum(bad.values())} documents left out {dict(sorted(bad.items())) or ''}; {seconds:.1f} s in all")
    return {
        "total_tokens": sum(totals.tokens.values()),
        "total_sequences": sum(totals.pairs.values()),
        "pack_size": settings.pack_size,
        "elapsed_sec": round(seconds, 3),
        "num_shards": totals.shards,
        "data_format": "packed_sft_parquet",
        "training_path": "splits/train",
        "validation_path": "splits/valid",
        "test_path": "splits/test",
        "source_datasets": [
            {"uri": settings.source.path, "name": "docstrings", "num_files": len(units)},
            {"uri": "arithmetic", "name": "arithmetic", "num_rows": settings.examples},
        ],
        "tokenizer_uri": "tokenizer",
        "extra": {"bad_documents": dict(sorted(bad.items())), "noise": settings.noise},
    }


if __name__ == "__main__":
    run(main)
