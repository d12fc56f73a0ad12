"""Typed metadata of artifacts: one dataclass per type named in runspecs.

The classes and their fields follow Nemotron's ``nemotron/kit/artifacts`` as far as our stages use them, so
that ``${art:data,pack_size}`` means the same here. What a stage wants to say beyond them goes in ``extra``.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any

from launcher.errors import UserError, did_you_mean


@dataclass(frozen=True)
class InputDatasetInfo:
    """One source that data was made of. Sizes are in bytes."""

    uri: str
    name: str | None = None
    weight: float | None = None
    split: str | None = None
    subset: str | None = None
    text_field: str | None = None
    num_rows: int | None = None
    size_bytes: int | None = None
    num_files: int | None = None


@dataclass(frozen=True)
class PretrainDataArtifact:
    """Tokenised text in Megatron's bin/idx. ``blend_path`` is relative to the artifact."""

    total_tokens: int
    total_sequences: int
    elapsed_sec: float | None = None
    num_shards: int | None = None
    blend_path: str | None = None
    train_tokens: int | None = None
    valid_tokens: int | None = None
    test_tokens: int | None = None
    source_datasets: list[InputDatasetInfo] = field(default_factory=list)
    tokenizer_uri: str | None = None


@dataclass(frozen=True)
class SFTDataArtifact:
    """Packed instruction data; ``pack_size`` is in tokens, paths are relative to the artifact."""

    total_tokens: int
    total_sequences: int
    pack_size: int
    elapsed_sec: float | None = None
    num_shards: int | None = None
    data_format: str = "packed_sft_parquet"
    blend_path: str | None = None
    training_path: str | None = None
    validation_path: str | None = None
    test_path: str | None = None
    metadata_path: str | None = None
    source_datasets: list[InputDatasetInfo] = field(default_factory=list)
    tokenizer_uri: str | None = None


@dataclass(frozen=True)
class SplitJsonlDataArtifact:
    """JSONL with splits, as RL uses; ``train``, ``val`` and ``test`` are paths relative to the artifact."""

    total_sequences: int
    train: str
    val: str | None = None
    test: str | None = None
    elapsed_sec: float | None = None
    source_datasets: list[InputDatasetInfo] = field(default_factory=list)


@dataclass(frozen=True)
class ModelArtifact:
    """A checkpoint; ``step`` counts optimizer steps, ``total_tokens`` what it was trained on in this run."""

    step: int
    final_loss: float | None = None
    valid_loss: float | None = None
    total_tokens: int | None = None
    parameters: int | None = None
    elapsed_sec: float | None = None
    tokenizer_uri: str | None = None


@dataclass(frozen=True)
class EvalReport:
    """Scores by name, and the report's plot and table as paths relative to the artifact."""

    scores: dict[str, float]
    samples: int | None = None
    elapsed_sec: float | None = None
    plot: str | None = None
    table: str | None = None


# The names that a runspec's `[tool.nemo_sky.output] type` may have.
TYPES: dict[str, type[Any]] = {
    "pretrain-data": PretrainDataArtifact,
    "sft-data": SFTDataArtifact,
    "rl-data": SplitJsonlDataArtifact,
    "model": ModelArtifact,
    "eval-report": EvalReport,
}
EXTRA = "extra"


def check_type(type_name: str) -> type[Any]:
    """The metadata class of a type. Raises UserError with the nearest name when there is none."""
    if type_name not in TYPES:
        raise UserError(
            f"unknown artifact type {type_name!r}{did_you_mean(type_name, TYPES)}",
            hint=f"the types are {', '.join(TYPES)}",
        )
    return TYPES[type_name]


def check_metadata(type_name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with its defaults, without what is None; ``extra`` may hold anything.

    Raises UserError naming the field that is missing, of a wrong type, or unknown (with the nearest known).
    """
    known = check_type(type_name)
    extra = values.get(EXTRA, {})
    if not isinstance(extra, Mapping):
        raise UserError(f"{type_name} metadata: {EXTRA} must be a mapping, not {extra!r}")
    typed = {key: value for key, value in values.items() if key != EXTRA}
    built = _build(known, typed, f"{type_name} metadata")
    result = {key: value for key, value in _plain(asdict(built)).items() if value is not None}
    return result | ({EXTRA: dict(extra)} if extra else {})


def _build(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """An instance of the dataclass ``cls``, every value checked against its annotation."""
    declared = {item.name: item for item in fields(cls)}
    for key in values:
        if key not in declared:
            raise UserError(
                f"{where}: unknown field {key!r}{did_you_mean(str(key), declared)}",
                hint=f"a field of your own goes under {EXTRA!r}",
            )
    hints = typing.get_type_hints(cls)
    given = {}
    for key, item in declared.items():
        if key in values:
            given[key] = _checked(values[key], hints[key], f"{where}: {key}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{where}: {key!r} is missing", hint=f"it is a {_describe(hints[key])}")
    return cls(**given)


def _checked(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        return _checked(value, arguments[0], where)
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, hint, where)
        return [_checked(item, arguments[0], f"{where}[{at}]") for at, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(value, hint, where)
        return {str(key): _checked(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _wrong(value, hint, where)
        return _build(typing.cast("type[Any]", hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or isinstance(value, bool):
        raise _wrong(value, hint, where)
    return value


def _wrong(value: Any, hint: Any, where: str) -> UserError:
    return UserError(f"{where} must be a {_describe(hint)}, not {value!r}")


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return _describe(arguments[0])
    if origin is list:
        return f"list of {_describe(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {_describe(arguments[1])}"
    names = {int: "whole number", float: "number", str: "text"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))


def _plain(value: Any) -> Any:
    """Nested dataclasses are dicts by now; drop their Nones, which say nothing."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
