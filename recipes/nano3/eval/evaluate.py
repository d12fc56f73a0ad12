# /// script
# requires-python = ">=3.11"
# dependencies = ["lm_eval[vllm]>=0.4.9", "pyyaml>=6"]
#
# [tool.runspec]
# schema = "1"
# name = "nano3/eval"
#
# [tool.runspec.run]
# launch = "direct"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 8
#
# [tool.nemo_sky]
# accelerator = "H100"
# min_gpu_memory_gb = 80
# disk_gb = 500
# spot = true
# config_keys = ["model_args.*", "limit"]
#
# [tool.nemo_sky.inputs]
# model = "art://nano3-rl-hf"
#
# [tool.nemo_sky.output]
# name = "nano3-eval-report"
# type = "eval-report"
# ///
"""Score a model on public benchmarks with EleutherAI's lm-evaluation-harness on vLLM.

    python recipes/nano3/eval/evaluate.py --config FILE

Why not NVIDIA's evaluator launcher: it starts containers of its own, through Docker or Slurm, and a stage
here runs inside one already. The harness is a package in this process, released and used everywhere, with
the same tasks under their public names. `run.model=art://nano3-sft-hf` scores another stage's model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.bridge.common import did_you_mean, log_metrics, require, run, write_metadata, write_text

KEYS = ("model_path", "output", "backend", "model_args", "tasks", "fewshot", "limit", "batch_size")


def main(settings: dict[str, Any]) -> None:
    for key in settings:
        require(key in KEYS, f"unknown setting {key}{did_you_mean(key, KEYS)}")
    model, output = Path(settings["model_path"]), Path(settings["output"])
    require((model / "config.json").is_file(), f"model_path: {model} is not a Hugging Face folder")
    require(settings.get("tasks"), "tasks: name at least one")
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    done = subprocess.run(command(settings, output), check=False)
    if done.returncode:
        sys.exit(done.returncode)
    found = sorted(output.rglob("results_*.json"))
    require(found, f"lm_eval wrote no results to {output}")
    results = json.loads(found[-1].read_text())
    scores = scores_of(results)
    require(scores, f"{found[-1]} holds no scores")
    write_text(output / "scores.json", json.dumps(scores, indent=1) + "\n")
    log_metrics(0, scores)
    for name, score in scores.items():
        print(f"{name:<48} {score:.4f}", flush=True)
    write_metadata(
        {
            "scores": scores,
            "samples": sum(int(item["effective"]) for item in results.get("n-samples", {}).values()),
            "elapsed_sec": round(time.monotonic() - started, 3),
            "table": "scores.json",
        }
    )


def command(settings: Mapping[str, Any], output: Path) -> list[str]:
    """lm_eval's command line."""
    arguments = {"pretrained": settings["model_path"], **(settings.get("model_args") or {})}
    words = [sys.executable, "-m", "lm_eval", "--model", str(settings.get("backend", "vllm"))]
    words += ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    words += ["--tasks", ",".join(settings["tasks"]), "--output_path", str(output)]
    for key, flag in (("fewshot", "--num_fewshot"), ("limit", "--limit"), ("batch_size", "--batch_size")):
        if settings.get(key) is not None:
            words += [flag, str(settings[key])]
    return words


def scores_of(results: Mapping[str, Any]) -> dict[str, float]:
    """``task/metric`` -> score, without standard errors; lm_eval writes a metric as ``acc,none``."""
    scores = {}
    for task, values in results.get("results", {}).items():
        for key, value in values.items():
            metric, _, mode = key.partition(",")
            if isinstance(value, (int, float)) and not metric.endswith("_stderr") and mode:
                name = f"{task}/{metric}" if mode == "none" else f"{task}/{metric}/{mode}"
                scores[name] = float(value)
    return scores


if __name__ == "__main__":
    run(main)
