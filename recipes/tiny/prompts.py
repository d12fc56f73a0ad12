"""RL's prompts, and how well a model answers them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.tiny.settings import ConfigError, require

_BATCH = 256


def read(file: Path) -> list[dict[str, str]]:
    """The lines of a split. Raises ConfigError, naming the line, for one without prompt and answer."""
    rows: list[dict[str, str]] = []
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({"prompt": str(row["prompt"]), "answer": str(row["answer"])})
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{file}:{number} must be JSON with prompt and answer") from None
    require(bool(rows), f"{file} holds no prompts")
    return rows


def answers(llama: Any, encoder: Any, rows: Sequence[dict[str, str]], max_tokens: int) -> list[str]:
    """The model's greedy answer to every prompt; ``encoder`` is transformers' tokenizer."""
    import torch

    found: list[str] = []
    for start in range(0, len(rows), _BATCH):
        prompts = [row["prompt"] for row in rows[start : start + _BATCH]]
        batch = encoder(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(llama.device)
        with torch.no_grad():
            out = llama.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=max_tokens,
                do_sample=False,
            )
        found += encoder.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return found


def accuracy(given: Sequence[str], rows: Sequence[dict[str, str]]) -> float:
    """The share of prompts answered exactly."""
    hits = sum(text.strip() == row["answer"] for text, row in zip(given, rows, strict=True))
    return hits / len(rows)
