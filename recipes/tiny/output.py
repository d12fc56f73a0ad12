"""What a stage gives back: metrics line by line, typed metadata, files that are whole or absent."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS = "NEMO_SKY_METRICS"
METADATA = "NEMO_SKY_METADATA"


def log_metrics(step: int, values: Mapping[str, float]) -> None:
    """Append one JSON line to $NEMO_SKY_METRICS; without that variable, nothing."""
    if path := os.environ.get(METRICS):
        line = {"step": step, "ts": int(time.time() * 1000), **values}
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def write_metadata(values: Mapping[str, Any]) -> None:
    """Write the output's typed metadata to $NEMO_SKY_METADATA; what is None is left out."""
    if path := os.environ.get(METADATA):
        write_json(Path(path), {key: value for key, value in values.items() if value is not None})


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by a file with this text, on disk before it has the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
