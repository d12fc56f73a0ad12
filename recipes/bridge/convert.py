"""Between Hugging Face's format and Megatron's, through Bridge's ``AutoBridge``, in the CPU's memory."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from recipes.bridge import checkpoints
from recipes.bridge.common import ConfigError, did_you_mean, require, write_metadata, write_text

KEYS = ("hf_model", "output", "model_path", "checkpoints", "trust_remote_code")


def import_model(settings: dict[str, Any]) -> None:
    """``hf_model``, a hub id or a folder, as a Megatron checkpoint in ``checkpoints``."""
    check(settings, ("hf_model", "checkpoints"))
    from megatron.bridge import AutoBridge

    started = time.monotonic()
    target = Path(settings["checkpoints"])
    # AutoBridge writes step 0 into a folder of its own, with a tracker that is there before all is.
    scratch = target.with_name(f"{target.name}.import")
    shutil.rmtree(scratch, ignore_errors=True)
    AutoBridge.import_ckpt(settings["hf_model"], str(scratch), trust_remote_code=_trusted(settings))
    found = sorted(scratch.glob("iter_*"))
    require(found, f"AutoBridge wrote no checkpoint for {settings['hf_model']}")
    step = int(found[-1].name.removeprefix("iter_"))
    target.mkdir(parents=True, exist_ok=True)
    whole = target / checkpoints.name_of(step)
    shutil.rmtree(whole, ignore_errors=True)
    found[-1].replace(whole)
    write_text(target / checkpoints.TRACKER, f"{step}\n")
    shutil.rmtree(scratch)
    write_metadata(
        {
            "step": step,
            "elapsed_sec": round(time.monotonic() - started, 3),
            "tokenizer_uri": str(settings["hf_model"]),
        }
    )


def export_model(settings: dict[str, Any]) -> None:
    """The checkpoint ``model_path`` as a Hugging Face folder in ``output``.

    ``hf_model`` gives the architecture, the tokenizer and any custom code.
    """
    check(settings, ("hf_model", "model_path", "output"))
    started = time.monotonic()
    step = to_hugging_face(
        Path(settings["model_path"]), settings["hf_model"], Path(settings["output"]), _trusted(settings)
    )
    write_metadata(
        {
            "step": step,
            "elapsed_sec": round(time.monotonic() - started, 3),
            "tokenizer_uri": str(settings["hf_model"]),
        }
    )


def to_hugging_face(model: Path, hf_model: str, output: Path, trust_remote_code: bool) -> int:
    """Write ``output``, whole or not at all; returns the step that the checkpoint is of."""
    from megatron.bridge import AutoBridge

    model = weights_in(model)
    state = model / checkpoints.TRAIN_STATE
    step = checkpoints.saved_step(state) if state.is_file() else 0
    bridge = AutoBridge.from_hf_pretrained(hf_model, trust_remote_code=trust_remote_code)
    scratch = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    bridge.export_ckpt(megatron_path=str(model), hf_path=str(scratch))
    written = scratch / "config.json"
    require(written.is_file(), f"AutoBridge wrote no config.json for {model}")
    print(f"exported {json.loads(written.read_text()).get('architectures')} of step {step}", flush=True)
    if output.is_dir():
        shutil.rmtree(output)
    scratch.replace(output)
    return step


def weights_in(model: Path) -> Path:
    """The Bridge checkpoint in an artifact: itself, or NeMo-RL's ``policy/weights/iter_*``.

    Raises ConfigError when there is none.
    """
    if (model / checkpoints.RUN_CONFIG).is_file():
        return model
    inner = sorted((model / "policy" / "weights").glob("iter_*"))
    require(inner, f"model_path: there is no Megatron-Bridge checkpoint in {model}")
    return inner[-1]


def check(settings: dict[str, Any], needed: tuple[str, ...]) -> None:
    """Raises ConfigError for unknown and missing settings."""
    for key in settings:
        if key not in KEYS:
            raise ConfigError(f"unknown setting {key}{did_you_mean(key, KEYS)}")
    for key in needed:
        require(settings.get(key), f"setting {key} is missing")


def _trusted(settings: dict[str, Any]) -> bool:
    return bool(settings.get("trust_remote_code", False))
