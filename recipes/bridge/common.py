"""What every stage here shares: plain YAML in; metrics, metadata and one-line errors out."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

# Read by the launcher, not by the stage.
LAUNCHER_SECTION = "run"


class ConfigError(Exception):
    """A setting, or what it points to, is wrong: one line for a person, no traceback."""


def run(main: Callable[[dict[str, Any]], None]) -> None:
    """Call ``main`` with the settings of ``--config``; a ConfigError ends the process with status 2.

    Under torchrun every rank finds the same mistake, and the first of each node tells it.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="plain YAML")
    arguments = parser.parse_args()
    try:
        main(read_config(arguments.config))
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def read_config(path: Path) -> dict[str, Any]:
    """The settings of ``path`` without the launcher's own section. Raises ConfigError."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds no settings")
    return {str(key): value for key, value in values.items() if key != LAUNCHER_SECTION}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def require(condition: object, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def log_metrics(step: int, values: Mapping[str, float]) -> None:
    """Append one JSON line to $NEMO_SKY_METRICS; without that variable, nothing."""
    if path := os.environ.get("NEMO_SKY_METRICS"):
        line = {"step": step, "ts": int(time.time() * 1000), **values}
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def write_metadata(values: Mapping[str, Any]) -> None:
    """Write the output's typed metadata to $NEMO_SKY_METADATA; what is None is left out."""
    if path := os.environ.get("NEMO_SKY_METADATA"):
        write_text(
            Path(path), json.dumps({k: v for k, v in values.items() if v is not None}, indent=1) + "\n"
        )


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by a file with this text, on disk before it has the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def several_nodes() -> bool:
    """Whether torchrun runs this on more than one node, each with a disk of its own."""
    world = os.environ.get("WORLD_SIZE", "1")
    return os.environ.get("LOCAL_WORLD_SIZE", world) != world


def work_dir() -> Path:
    """The node's work folder; the current one outside a launch."""
    return Path(os.environ.get("NEMO_SKY_WORK", "."))
