# /// script
# requires-python = ">=3.11"
#
# [tool.runspec]
# schema = "1"
# name = "nano3/rl"
# image = "nvcr.io/nvidia/nemo-rl:v0.4.0.nemotron_3_nano"
# setup = "NeMo-RL and its environments are in the image, at /opt/nemo-rl."
#
# [tool.runspec.run]
# launch = "ray"
# cmd = "uv run python {script} --config {config}"
# workdir = "/opt/nemo-rl"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 8
#
# [tool.runspec.env]
# RAY_ENABLE_UV_RUN_RUNTIME_ENV = "0"
#
# [tool.nemo_sky]
# accelerator = "H200"
# min_gpu_memory_gb = 141
# disk_gb = 3000
# spot = true
# checkpoint_dir = "checkpoints"
# config_keys = ["overrides.*"]
#
# [tool.nemo_sky.inputs]
# data = "art://nano3-rl-data"
# model = "art://nano3-sft-hf"
#
# [tool.nemo_sky.output]
# name = "nano3-rl-model"
# type = "model"
# ///
"""GRPO on Nemotron 3 Nano with NeMo-RL under Ray.

    uv run python recipes/nano3/rl/train.py --config FILE      in the image's /opt/nemo-rl

NeMo-RL's Python interface changes with every release, so that a script of our own would fit one image only.
This one runs the image's *own* entry script on the image's *own* config for this model, and hands it our
settings as overrides: script and library cannot come apart. Around it, NeMo-RL's ``step_N`` checkpoints are
shown to nemo-sky as the ``iter_*`` folders that it commits, and the other way round on a resume.

One node: NeMo-RL writes checkpoints from all nodes into one folder, which needs a shared file system.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.bridge.common import (
    ConfigError,
    did_you_mean,
    log_metrics,
    require,
    run,
    write_metadata,
    write_text,
)

KEYS = ("entry", "base", "steps", "checkpoints", "overrides")
TRACKER = "latest_checkpointed_iteration.txt"
_SECONDS_BETWEEN_LOOKS = 2.0


def main(settings: dict[str, Any]) -> None:
    for key in settings:
        require(key in KEYS, f"unknown setting {key}{did_you_mean(key, KEYS)}")
    for key in KEYS:
        require(settings.get(key), f"setting {key} is missing")
    for key in ("entry", "base"):
        require(Path(settings[key]).is_file(), f"{key}: there is no {settings[key]} in this image")
    steps, checkpoints = Path(settings["steps"]), Path(settings["checkpoints"])
    started = time.monotonic()
    restore(checkpoints, steps)
    command = [sys.executable, settings["entry"], "--config", settings["base"]]
    command += arguments(settings["overrides"], {"checkpointing.checkpoint_dir": str(steps), **_mlflow()})
    code = follow(command, steps, checkpoints)
    if code:
        sys.exit(code if code > 0 else 128 - code)
    last = newest(steps)
    require(last is not None, "NeMo-RL ended without a checkpoint")
    write_metadata({"step": last, "elapsed_sec": round(time.monotonic() - started, 3)})


def arguments(overrides: Mapping[str, Any], more: Mapping[str, Any]) -> list[str]:
    """Hydra overrides, one for each value; ``++`` also sets keys that the base config does not have.

    Raises ConfigError for text that Hydra would take apart.
    """
    return [f"++{key}={_hydra(value, key)}" for key, value in [*_leaves(overrides), *more.items()]]


def _leaves(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, dotted)
        else:
            yield dotted, value


def _hydra(value: Any, key: str) -> str:
    if isinstance(value, str):
        if "'" in value or "\\" in value:
            raise ConfigError(f"overrides.{key}: {value!r} has a quote or a backslash in it")
        return f"'{value}'"
    if isinstance(value, list):
        return f"[{','.join(_hydra(item, key) for item in value)}]"
    return json.dumps(value)


def _mlflow() -> dict[str, Any]:
    """NeMo-RL's own MLflow logger, where a server is named. It uploads metrics and no checkpoints."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return {}
    return {
        "logger.mlflow_enabled": True,
        "logger.mlflow.experiment_name": os.environ.get("MLFLOW_EXPERIMENT_NAME", "nemo-rl"),
        "logger.mlflow.run_name": os.environ.get("NEMO_SKY_RUN_ID", "nemo-rl"),
        "logger.mlflow.tracking_uri": uri,
    }


def follow(command: list[str], steps: Path, checkpoints: Path) -> int:
    """Run NeMo-RL, publish its checkpoints as they come; returns its exit code.

    NeMo-RL does not save on SIGTERM: what was made since its last ``save_period`` is lost.
    """
    child = subprocess.Popen(command)
    stopped = threading.Event()

    def pass_on(number: int, frame: Any) -> None:
        stopped.set()
        child.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    while True:
        publish(steps, checkpoints)
        try:
            code = child.wait(_SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            continue
        publish(steps, checkpoints)
        return 0 if stopped.is_set() else code


def newest(steps: Path) -> int | None:
    """The last finished step: NeMo-RL writes ``tmp_step_N`` and renames it."""
    names = [path.name.removeprefix("step_") for path in steps.glob("step_*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def publish(steps: Path, checkpoints: Path) -> None:
    """Show the newest ``step_N`` as ``iter_N``, by hard links, and name it in the tracker, once."""
    step = newest(steps)
    if step is None:
        return
    target = checkpoints / f"iter_{step:07d}"
    tracker = checkpoints / TRACKER
    if tracker.is_file() and tracker.read_text().strip() == str(step):
        return
    _link_tree(steps / f"step_{step}", target)
    write_text(tracker, f"{step}\n")
    information = steps / f"step_{step}" / "training_info.json"
    if information.is_file():
        values = json.loads(information.read_text())
        numbers = {key: float(v) for key, v in values.items() if type(v) in (int, float)}
        log_metrics(step, numbers)
    for old in sorted(checkpoints.glob("iter_*"))[:-2]:
        for path in sorted(old.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        old.rmdir()


def restore(checkpoints: Path, steps: Path) -> None:
    """Give NeMo-RL the checkpoint that the tracker names, so that it goes on from there."""
    steps.mkdir(parents=True, exist_ok=True)
    tracker = checkpoints / TRACKER
    text = tracker.read_text().strip() if tracker.is_file() else ""
    if text.isdigit() and not (steps / f"step_{text}").exists():
        source = checkpoints / f"iter_{int(text):07d}"
        require(source.is_dir(), f"{tracker} names step {text}, but {source} is not there")
        _link_tree(source, steps / f"step_{text}")


def _link_tree(source: Path, target: Path) -> None:
    """A copy without copying, whole or absent."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    for path in sorted(source.rglob("*")):
        here = temporary / path.relative_to(source)
        if path.is_dir():
            here.mkdir(parents=True, exist_ok=True)
        else:
            here.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, here)
    temporary.replace(target)


if __name__ == "__main__":
    run(main)
