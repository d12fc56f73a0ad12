"""Checkpoints between Megatron-Bridge and nemo-sky's agent.

Both use Megatron's layout: ``iter_0000100/`` folders beside ``latest_checkpointed_iteration.txt``, which
names the newest. The agent takes a checkpoint for whole as soon as that file names it. Bridge writes that
file *before* the checkpoint's ``run_config.yaml`` and tokenizer (``training/checkpointing.py``,
``train_state_finalize_fn``; 0.3.0 to 0.6.0), and keeps a second marker of its own beside it,
``latest_train_state.pt``, which the agent does not restore.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from recipes.bridge.common import ConfigError, require, write_text

TRACKER = "latest_checkpointed_iteration.txt"
# Where Bridge writes the tracker until the checkpoint is whole.
HELD_TRACKER = ".bridge_iteration.txt"
TRAIN_STATE = "train_state.pt"
BRIDGE_TRACKER = "latest_train_state.pt"
RUN_CONFIG = "run_config.yaml"


def hold_back_tracker() -> None:
    """Have Bridge write its tracker under another name, for :func:`announce` to publish when all is there."""
    from megatron.bridge.training import checkpointing

    require(
        hasattr(checkpointing, "get_checkpoint_tracker_filename"),
        "this Megatron-Bridge saves checkpoints in a way that is not known here; 0.3.0 to 0.6.0 are",
    )
    checkpointing.get_checkpoint_tracker_filename = lambda folder: os.path.join(folder, HELD_TRACKER)


def announce(folder: Path) -> int | None:
    """Name the newest whole checkpoint in the tracker; called by global rank 0 between steps.

    Returns its step, or None when there is none.
    """
    held = folder / HELD_TRACKER
    step = _step(held) if held.is_file() else None
    if step is None or not (folder / name_of(step) / RUN_CONFIG).is_file():
        return None
    if not (folder / TRACKER).is_file() or _step(folder / TRACKER) != step:
        write_text(folder / TRACKER, f"{step}\n")
    return step


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and the one that may be in the making.

    For the first rank of a node other than node 0: Bridge has global rank 0 remove old checkpoints
    (``cleanup_old_non_persistent_checkpoint``, 0.3.1), which sees the disk of its own node only.
    """
    for old in sorted(folder.glob("iter_*"))[: -(keep + 1)]:
        shutil.rmtree(old, ignore_errors=True)


def prepare_resume(folder: Path) -> int | None:
    """Make Bridge load the checkpoint that the tracker names; returns its step, None for a fresh start.

    Raises ConfigError when that checkpoint is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tracker = folder / TRACKER
    step = _step(tracker) if tracker.is_file() else None
    if step is None:
        (folder / BRIDGE_TRACKER).unlink(missing_ok=True)
        return None
    state = folder / name_of(step) / TRAIN_STATE
    require(state.is_file(), f"{tracker} names step {step}, but {state} is not there")
    _replace(state, folder / BRIDGE_TRACKER)
    write_text(folder / HELD_TRACKER, f"{step}\n")
    return step


def shelve(model: Path, shelf: Path) -> Path:
    """A folder from which Bridge loads the weights in ``model``.

    ``model`` is one checkpoint's own folder, as artifacts are, or already one with ``iter_*`` folders.
    Raises ConfigError when it is neither.
    """
    require(model.is_dir(), f"model: there is no folder {model}")
    if (model / BRIDGE_TRACKER).is_file():
        return model
    if (model / TRACKER).is_file() and (step := _step(model / TRACKER)) is not None:
        model = model / name_of(step)
    state = model / TRAIN_STATE
    if not (model / RUN_CONFIG).is_file() or not state.is_file():
        raise ConfigError(
            f"model: {model} is not a Megatron-Bridge checkpoint (no {RUN_CONFIG}, {TRAIN_STATE})"
        )
    shelf.mkdir(parents=True, exist_ok=True)
    link = shelf / name_of(saved_step(state))
    if not link.exists():
        temporary = shelf / f".{link.name}.{os.getpid()}"
        temporary.symlink_to(model.resolve(), target_is_directory=True)
        temporary.replace(link)
    _replace(state, shelf / BRIDGE_TRACKER)
    return shelf


def saved_step(train_state: Path) -> int:
    """The step that a ``train_state.pt`` is of."""
    import torch

    state: dict[str, Any] = torch.load(train_state, map_location="cpu", weights_only=True)
    return int(state["step"])


def name_of(step: int) -> str:
    return f"iter_{step:07d}"


def _step(tracker: Path) -> int | None:
    text = tracker.read_text().strip()
    return int(text) if text.isdigit() else None  # "release", or half written: not one of ours


def _replace(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    temporary.replace(target)
