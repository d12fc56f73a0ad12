# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "megatron-core==0.16.1", "psutil>=7", "trl==1.16.0", "tokenizers>=0.22",
#     "matplotlib>=3.9", "pyyaml>=6",
# ]
#
# [tool.runspec]
# schema = "1"
# name = "tiny/eval"
#
# [tool.runspec.run]
# launch = "direct"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
#
# [tool.runspec.env]
# OMP_NUM_THREADS = "1"
#
# [tool.nemo_sky.inputs]
# data = "art://tiny-pretrain-data"
# tasks = "art://tiny-rl-data"
# model = "art://tiny-rl-model"
# sft = "art://tiny-sft-model"
#
# [tool.nemo_sky.output]
# name = "tiny-eval-report"
# type = "eval-report"
# ///
"""Held-out perplexity and task accuracy of the model after SFT and after RL.

    python recipes/tiny/eval/eval.py --config FILE

The output holds ``report.json`` (scores, and every answer) and ``report.png``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.tiny import binidx, checkpoint, convert, parallel, prompts
from recipes.tiny.output import log_metrics, write_json, write_metadata
from recipes.tiny.settings import load, require, run


@dataclass(frozen=True)
class Settings:
    """``data`` is pretraining data, ``tasks`` RL's; ``model`` is the model after RL, ``sft`` the one before.

    Perplexity is over the first ``sequences`` test sequences of ``seq_length`` tokens.
    """

    output: Path
    data: Path
    tasks: Path
    model: Path
    sft: Path
    seq_length: int = 256
    sequences: int = 64
    max_tokens: int = 4


@dataclass(frozen=True)
class Result:
    """One model's scores and its answers to the test prompts."""

    perplexity: float
    accuracy: float
    answers: list[str]


def main(config: Path) -> None:
    settings = load(Settings, config)
    for name in ("seq_length", "sequences", "max_tokens"):
        require(getattr(settings, name) >= 1, f"{name} must be at least 1, not {getattr(settings, name)}")
    started = time.monotonic()
    parallel.quiet_megatron()
    prefixes, _ = binidx.read_blend(settings.data, "test")
    rows = prompts.read(settings.tasks / "test.jsonl")
    tokens = binidx.read_tokens(prefixes[0], settings.sequences * settings.seq_length + 1)
    require(
        len(tokens) > settings.seq_length, f"data: the test split has no {settings.seq_length + 1} tokens"
    )
    before = checkpoint.find(settings.sft, "sft")
    require((settings.model / "config.json").is_file(), f"model: there is no config.json in {settings.model}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    encoder = AutoTokenizer.from_pretrained(before / checkpoint.TOKENIZER)
    models = {
        "sft": convert.to_llama(before),
        "rl": AutoModelForCausalLM.from_pretrained(settings.model),
    }
    results = {name: measure(llama, encoder, tokens, rows, settings) for name, llama in models.items()}
    for name, result in results.items():
        print(f"{name:<4} perplexity {result.perplexity:.3f}  accuracy {result.accuracy:.3f}", flush=True)
    report(settings, results, rows, time.monotonic() - started)


def measure(llama: Any, encoder: Any, tokens: Any, rows: list[dict[str, str]], settings: Settings) -> Result:
    """Scores of one Hugging Face model; ``tokens`` is a numpy array of held-out text."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    llama = llama.to(device).eval()
    given = prompts.answers(llama, encoder, rows, settings.max_tokens)
    size = settings.seq_length
    count = (len(tokens) - 1) // size
    inputs = torch.tensor(tokens[: count * size].reshape(count, size), device=device)
    labels = torch.tensor(tokens[1 : count * size + 1].reshape(count, size), device=device)
    total = 0.0
    with torch.no_grad():
        for start in range(0, count, 8):
            logits = llama(input_ids=inputs[start : start + 8]).logits
            wanted = labels[start : start + 8]
            total += float(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), wanted.flatten(), reduction="sum"
                )
            )
    perplexity = math.exp(total / (count * size))
    return Result(perplexity, prompts.accuracy(given, rows), given)


def report(
    settings: Settings, results: Mapping[str, Result], rows: list[dict[str, str]], seconds: float
) -> None:
    """Write report, plot, metrics and metadata; the score ``perplexity`` is the final model's."""
    after = results["rl"]
    scores = {"perplexity": after.perplexity}
    for name, result in results.items():
        scores |= {f"{name}_perplexity": result.perplexity, f"{name}_accuracy": result.accuracy}
    answered = [
        {**row, **{name: result.answers[at] for name, result in results.items()}}
        for at, row in enumerate(rows)
    ]
    write_json(settings.output / "report.json", {"scores": scores, "answers": answered})
    plot(results, settings.output / "report.png")
    log_metrics(0, scores)
    write_metadata(
        {
            "scores": scores,
            "samples": len(rows),
            "elapsed_sec": round(seconds, 3),
            "plot": "report.png",
            "table": "report.json",
        }
    )


def plot(results: Mapping[str, Result], file: Path) -> None:
    """Accuracy and perplexity of each model, side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = [name.upper() for name in results]
    panels = {
        "Accuracy on unseen test prompts (%)": [100 * result.accuracy for result in results.values()],
        "Perplexity of held-out text": [result.perplexity for result in results.values()],
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(8, 3.6), layout="constrained")
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        bars = axis.bar(names, values, width=0.5, color=["#9aa5b1", "#2f6fb5"])
        axis.bar_label(bars, fmt="%.1f", padding=2)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 1.15 * max([*values, 1e-9]))
        axis.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main)
