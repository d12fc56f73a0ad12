"""The settings that the preparation stages share, from plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from recipes.bridge.common import ConfigError, did_you_mean, require
from recipes.prep.sources import Source

ON_BAD = ("skip", "fail")


def known(values: Mapping[str, Any], keys: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """``values`` over the defaults ``keys``. Raises ConfigError for a key that is not among them, and for a
    value of another type than its default."""
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in keys:
            raise ConfigError(f"unknown setting {dotted}{did_you_mean(str(key), keys)}")
        default = keys[key]
        number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        if default is not None and not number and type(value) is not type(default):
            raise ConfigError(f"{dotted} must be a {type(default).__name__}, not {value!r}")
    return {**keys, **values}


def common(values: Mapping[str, Any]) -> None:
    """What every preparation checks before it reads anything. Raises ConfigError."""
    require(values["output"], "setting output is missing")
    require(values["shards"] >= 1, f"shards must be at least 1, not {values['shards']}")
    on_bad = values["on_bad"]
    require(on_bad in ON_BAD, f"on_bad must be {' or '.join(ON_BAD)}, not {on_bad!r}")


def sources(given: Any) -> list[Source]:
    """``sources: [{name: ..., path: ..., weight: ...}, ...]``. Raises ConfigError for anything else."""
    require(isinstance(given, list) and given, "sources must be a list of data sets")
    keys = {item.name: item for item in fields(Source)}
    result = []
    for number, item in enumerate(given):
        where = f"sources.{number}"
        require(isinstance(item, Mapping), f"{where} must be a table with name and path")
        for key in item:
            require(key in keys, f"unknown setting {where}.{key}{did_you_mean(str(key), keys)}")
        for key in ("name", "path"):
            require(isinstance(item.get(key), str) and item[key], f"{where}.{key} is missing")
        require("/" not in item["name"], f"{where}.name must be one word, not {item['name']!r}")
        weight = item.get("weight", 1.0)
        require(
            type(weight) in (int, float) and weight > 0, f"{where}.weight must be above 0, not {weight!r}"
        )
        result.append(Source(**{**item, "weight": float(weight)}))
    return result


def shares(splits: Mapping[str, Any]) -> tuple[float, float]:
    """The shares of documents for validation and test. Raises ConfigError."""
    values = known(splits, {"valid": 0.01, "test": 0.01}, "splits")
    valid, test = float(values["valid"]), float(values["test"])
    require(
        min(valid, test) >= 0 and valid + test < 1, "splits.valid and splits.test must sum to less than 1"
    )
    return valid, test


def tokenizer_file(name: str) -> str:
    """The ``tokenizer.json`` of a folder, a file, or a model on the hub. Raises ConfigError."""
    path = Path(name)
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.is_file():
        return str(path)
    require("/" in name and not name.startswith(("/", ".", "~")), f"tokenizer: there is no file {path}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return hf_hub_download(name, "tokenizer.json")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"tokenizer: neither a folder nor a model on the hub: {name!r} ({reason})"
        ) from None


def tokenizer_text(name: str) -> str:
    """The JSON of a tokenizer. Raises ConfigError when it is none."""
    from tokenizers import Tokenizer

    require(name, "setting tokenizer is missing")
    file = tokenizer_file(name)
    try:
        text = Path(file).read_text("utf-8")
        Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"tokenizer: {file} is not a tokenizer: {error}") from None
    return text
