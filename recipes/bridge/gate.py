"""Megatron-Bridge as it is installed: which recipe functions it has, how they are called, what they can do.

NVIDIA does not publish which Bridge is in which container, so nothing here goes by a version number:

    0.3.0          recipe functions take keywords; ``X_finetune_config(peft=...)`` is SFT and LoRA in one
    0.3.1 to 0.5   no arguments; ``X_sft_config()``, ``X_peft_config(peft_scheme="lora")``
    0.6 and later  further names, such as ``X_pretrain_8gpu_h100_bf16_config``; some old ones are gone
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from recipes.bridge.common import ConfigError, did_you_mean

TARGET = "_target_"
# As many GPUs as one node has come first: what a first run will have.
_PREFERRED_GPUS = 8


@dataclass(frozen=True)
class Recipe:
    """A recipe function and the keywords to call it with; ``note`` says how the request was adapted."""

    function: Callable[..., Any]
    keywords: dict[str, Any]
    note: str = ""

    def build(self) -> Any:
        """The recipe's ``ConfigContainer``. Raises ConfigError when the function fails."""
        try:
            return self.function(**self.keywords)
        except Exception as error:  # a recipe may reach for the Hugging Face hub
            name = self.function.__name__
            reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
            hint = (
                " (a gated model needs HF_TOKEN and its licence accepted)" if "hf" in reason.lower() else ""
            )
            raise ConfigError(f"recipe {name} failed: {reason}{hint}") from error


def find(section: dict[str, Any]) -> Recipe:
    """The recipe that ``recipe: {_target_: module.function, keyword: value}`` asks for.

    Raises ConfigError, with what the installed Bridge has, for one that is not there in any known form.
    """
    target = section.get(TARGET)
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"recipe.{TARGET} must be the dotted name of a recipe function, not {target!r}")
    keywords = {key: value for key, value in section.items() if key != TARGET}
    module_name, _, name = target.rpartition(".")
    module = _module(module_name)
    function = getattr(module, name, None)
    if callable(function):
        return _checked(Recipe(function, keywords))
    return _checked(_adapted(module, name, keywords))


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not name.startswith(error.name):
            raise ConfigError(f"{name} needs {error.name}, which is not installed") from None
        if error.name == "megatron":
            raise ConfigError("Megatron-Bridge is not installed: use the image of the runspec") from None
        raise ConfigError(f"recipe.{TARGET}: there is no module {error.name}") from None


def _adapted(module: ModuleType, name: str, keywords: dict[str, Any]) -> Recipe:
    """The function that does the same in an older or newer Bridge."""
    found = re.fullmatch(r"(\w+?)_(pretrain|sft|peft)_config", name)
    if found:
        stem, kind = found.groups()
        together = getattr(module, f"{stem}_finetune_config", None)
        if kind != "pretrain" and callable(together):  # 0.3.0
            scheme = keywords.get("peft_scheme", "lora") if kind == "peft" else None
            rest = {key: value for key, value in keywords.items() if key != "peft_scheme"}
            note = f"{name} is {together.__name__}(peft={scheme!r}) in this Bridge"
            return Recipe(together, {**rest, "peft": scheme}, note)
        newer = _sized(module, stem, kind)
        if newer:
            return Recipe(getattr(module, newer), keywords, f"{name} is called {newer} in this Bridge")
    known = sorted(key for key in vars(module) if key.endswith("_config") and not key.startswith("_"))
    guess = did_you_mean(name, known) or (f"; it has {', '.join(known[:8])}" if known else "")
    raise ConfigError(f"recipe.{TARGET}: this Bridge's {module.__name__} has no {name}{guess}")


def _sized(module: ModuleType, stem: str, kind: str) -> str | None:
    """0.6's name for a recipe: the one for a single node, else the smallest."""
    pattern = re.compile(rf"{re.escape(stem)}_{kind}_(\d+)gpu_h100_bf16_config")
    sizes = {int(found[1]): key for key in vars(module) if (found := pattern.fullmatch(key))}
    return sizes.get(_PREFERRED_GPUS) or (sizes[min(sizes)] if sizes else None)


def _checked(recipe: Recipe) -> Recipe:
    """Raises ConfigError for keywords that the function would not take."""
    parameters = inspect.signature(recipe.function).parameters
    if any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values()):
        return recipe
    for key in recipe.keywords:
        if key not in parameters:
            name = recipe.function.__name__
            takes = ", ".join(parameters) or "no arguments"
            raise ConfigError(
                f"recipe.{key}: {name} of this Bridge takes {takes}; set fields of its result instead, "
                "as train.train_iters or model.seq_length"
            )
    return recipe


def reads_packed_parquet() -> bool:
    """Whether packed sequences may be Parquet (0.4.0 and later); before, only NumPy files."""
    return any(
        _exists(name)
        for name in ("megatron.bridge.data.datasets.packed_parquet", "megatron.bridge.data.packing.parquet")
    )


def can_silence_mlflow_uploads(logger_config: Any) -> bool:
    """Whether the library's MLflow logger can be told not to upload checkpoints (0.5.0 and later)."""
    return hasattr(logger_config, "mlflow_log_artifacts")


def packed_specs_class() -> Any:
    """``PackedSequenceSpecs``, which moved in 0.6.0."""
    for name in ("megatron.bridge.data.packing.config", "megatron.bridge.data.datasets.packed_sequence"):
        if _exists(name):
            return importlib.import_module(name).PackedSequenceSpecs
    raise ConfigError("this Bridge has no PackedSequenceSpecs: it cannot train on packed sequences")


def index_lines(files: Sequence[Path]) -> None:
    """Make the index of JSONL files that Bridge reads beside them; those that are there stay.

    Bridge has the first rank of the first node make it, and no other node (``_TextMemMapDataset``, 0.3.1,
    whose comments promise otherwise).
    """
    utils = importlib.import_module("megatron.bridge.data.datasets.utils")
    utils.build_index_files([str(file) for file in files], 10, workers=1)  # 10 ends a line


def trainer(kind: str) -> Callable[..., None]:
    """``pretrain`` or ``finetune``, called as ``f(config, forward_step, callbacks=[...])``.

    Up to 0.5 ``finetune`` takes no callbacks, and does nothing but check that there is a checkpoint to
    start from and call ``pretrain``; the caller has checked that, so ``pretrain`` it is.
    Raises ConfigError when neither takes callbacks.
    """
    names = ("finetune", "pretrain") if kind == "finetune" else ("pretrain",)
    for name in names:
        function: Callable[..., None] = getattr(
            importlib.import_module(f"megatron.bridge.training.{name}"), name
        )
        if "callbacks" in inspect.signature(function).parameters:
            return function
    raise ConfigError("this Megatron-Bridge is too old: its pretrain() takes no callbacks (0.3.0 does)")


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
