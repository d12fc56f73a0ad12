# /// script
# requires-python = ">=3.11"
# dependencies = ["ray[data]==2.60.0", "pyyaml>=6"]
#
# [tool.runspec]
# schema = "1"
# name = "tiny/data/prep/rl"
#
# [tool.runspec.run]
# launch = "ray"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
#
# [tool.nemo_sky.output]
# name = "tiny-rl-data"
# type = "rl-data"
# ///
"""Prompts with answers that can be checked, as JSONL: ``train.jsonl``, ``val.jsonl``, ``test.jsonl``.

    python recipes/tiny/data/prep/rl/prep.py --config FILE

Each line has ``question``, ``prompt`` (the question in the chat template) and ``answer``.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.tiny import arithmetic, raydata, tokenizer
from recipes.tiny.output import write_metadata, write_text
from recipes.tiny.progress import Progress
from recipes.tiny.settings import load, run


@dataclass(frozen=True)
class Settings:
    output: Path
    arithmetic: arithmetic.ArithmeticSettings = field(default_factory=arithmetic.ArithmeticSettings)


def main(config: Path) -> None:
    settings = load(Settings, config)
    arithmetic.check(settings.arithmetic)
    started = time.monotonic()
    problems = [
        {"split": split, **vars(problem)}
        for split, found in arithmetic.by_split(settings.arithmetic).items()
        for problem in found
    ]
    lines: dict[str, list[str]] = {split: [] for split in arithmetic.SPLITS}
    bar = Progress("prompts", len(problems), "prompts")
    with raydata.session():
        rows = raydata.stream(problems, render, expand_with={})
        for row in itertools.chain.from_iterable(rows):
            lines[row["split"]].append(row["line"])
            bar.add(1)
    bar.finish()
    for split, texts in lines.items():
        write_text(settings.output / f"{split}.jsonl", "".join(texts))
    seconds = time.monotonic() - started
    counts = {split: len(texts) for split, texts in lines.items()}
    listed = ", ".join(f"{split} {count}" for split, count in counts.items())
    print(f"{listed} prompts; {seconds:.1f} s in all", flush=True)
    write_metadata(
        {
            "total_sequences": len(problems),
            "elapsed_sec": round(seconds, 3),
            **{split: f"{split}.jsonl" for split in arithmetic.SPLITS},
            "source_datasets": [{"uri": "arithmetic", "name": "arithmetic", "num_rows": len(problems)}],
            "extra": {f"{split}_sequences": count for split, count in counts.items()},
        }
    )


def render(row: dict[str, Any]) -> list[dict[str, Any]]:
    """In a Ray worker: one problem as its split and a line of JSON."""
    question = row["question"]
    line = {"question": question, "prompt": tokenizer.prompt(question), "answer": str(row["answer"])}
    return [{"split": row["split"], "line": json.dumps(line) + "\n"}]


if __name__ == "__main__":
    run(main)
