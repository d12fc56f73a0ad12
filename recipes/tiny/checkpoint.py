"""Distributed checkpoints in Megatron's own layout, loadable at any tensor and data parallelism.

    checkpoints/iter_0000100/    Megatron's shards, model.json, tokenizer/
    checkpoints/latest_checkpointed_iteration.txt    "100": written last, by rank 0

A folder is complete exactly when the tracker names it. Every rank writes in its own node's folder.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.tiny import model as models
from recipes.tiny.output import write_json, write_text
from recipes.tiny.settings import ConfigError, build, require

if TYPE_CHECKING:
    from recipes.tiny.parallel import Parallel

TRACKER = "latest_checkpointed_iteration.txt"
MODEL_FILE = "model.json"
TOKENIZER = "tokenizer"


@dataclass
class State:
    """How far training has come. ``elapsed`` is in seconds over all attempts; losses in nats per token."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    elapsed: float = 0.0
    last_loss: float | None = None
    valid_loss: float | None = None


@dataclass(frozen=True)
class Description:
    """What a consumer must know to build the model: its shape, and the size of its vocabulary unpadded."""

    model: models.ModelSettings
    vocab_size: int


def iteration_dir(folder: Path, step: int) -> Path:
    return folder / f"iter_{step:07d}"


def newest(folder: Path) -> int | None:
    """The step that the tracker names, None when there is none."""
    try:
        return int((folder / TRACKER).read_text())
    except FileNotFoundError:
        return None


def commit(folder: Path, step: int) -> None:
    """Name ``step`` as the newest complete checkpoint."""
    write_text(folder / TRACKER, f"{step}\n")


def find(path: Path, what: str) -> Path:
    """The checkpoint at ``path``: itself, or the newest of a folder of checkpoints.

    Raises ConfigError, calling the setting ``what``, when there is none.
    """
    step = newest(path)
    folder = path if step is None else iteration_dir(path, step)
    require(
        (folder / MODEL_FILE).is_file(), f"{what}: there is no checkpoint with a {MODEL_FILE} in {folder}"
    )
    return folder


def describe(folder: Path) -> Description:
    """What ``model.json`` of a checkpoint says. Raises ConfigError when it cannot be read."""
    try:
        values = json.loads((folder / MODEL_FILE).read_text())
        return build(Description, {key: values[key] for key in ("model", "vocab_size")})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / MODEL_FILE} does not describe a model: {error}") from None


def metadata(state: State, description: Description, extra: dict[str, float]) -> dict[str, Any]:
    """The model artifact's typed metadata."""
    return {
        "step": state.step,
        "final_loss": state.last_loss,
        "valid_loss": state.valid_loss,
        "total_tokens": state.tokens,
        "parameters": models.parameters(description.model, description.vocab_size),
        "elapsed_sec": round(state.elapsed, 3),
        "tokenizer_uri": TOKENIZER,
        "extra": extra,
    }


def save(
    folder: Path,
    gpt: Any,
    optimizer: Any,
    state: State,
    parallel: Parallel,
    description: Description,
    tokenizer: Path | None,
) -> Path:
    """Save and commit; all ranks call it at the same step. Returns the checkpoint's folder."""
    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

    target = iteration_dir(folder, state.step)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        shutil.rmtree(target, ignore_errors=True)  # what a killed attempt left behind
        target.mkdir(parents=True)
    dist.barrier()
    # A save inside this process needs no queue between processes; Megatron's would start a server that
    # imports the script again, and that outlives a rank which is killed.
    filesystem_async._results_queue = queue.Queue()
    contents = _sharded(gpt, optimizer)
    # Clocks differ between ranks; what is saved once must be the same on all.
    common = [{"state": asdict(state), "rng": torch.get_rng_state()}]
    dist.broadcast_object_list(common)
    contents.update(common[0])
    # Without this the first data-parallel rank writes everything, and other nodes nothing.
    strategy = FullyParallelSaveStrategyWrapper(
        TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1), parallel.data_group
    )
    dist_checkpointing.save(contents, str(target), sharded_strategy=strategy)
    if parallel.leads:
        write_json(target / MODEL_FILE, {**asdict(description), **asdict(state)})
        if tokenizer:
            shutil.copytree(tokenizer, target / TOKENIZER)
    dist.barrier()
    if parallel.leads:
        commit(folder, state.step)
    return target


def resume(folder: Path, gpt: Any, optimizer: Any, parallel: Parallel) -> State:
    """Load the newest complete checkpoint into model and optimizer; a fresh state when there is none.

    Raises ConfigError when the nodes do not have the same one.
    """
    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    steps: list[int | None] = [None] * parallel.world
    dist.all_gather_object(steps, newest(folder))
    step = steps[0]
    listed = sorted({str(item) for item in steps})
    require(len(listed) == 1, f"the nodes' newest checkpoints differ: steps {', '.join(listed)}")
    if step is None:
        return State()
    _materialise(optimizer)
    loaded = dist_checkpointing.load(_sharded(gpt, optimizer), str(iteration_dir(folder, step)))
    gpt.load_state_dict(loaded["model"])
    moments = loaded["optimizer"]["state"]
    for entry in moments.values():  # left out by _sharded: every parameter has taken as many steps
        entry["step"] = torch.tensor(float(step))
    # The settings of this run hold, not those of the one that saved.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    torch.set_rng_state(loaded["rng"])
    return State(**loaded["state"])


def load_weights(folder: Path, gpt: Any) -> None:
    """Load a checkpoint's weights alone, as a next stage does."""
    from megatron.core import dist_checkpointing

    loaded = dist_checkpointing.load({"model": gpt.sharded_state_dict()}, str(folder))
    gpt.load_state_dict(loaded["model"])


def _sharded(gpt: Any, optimizer: Any) -> dict[str, Any]:
    """Model and optimizer as Megatron's sharded tensors."""
    from megatron.core.dist_checkpointing.optimizer import (
        get_param_id_to_sharded_param_map,
        optim_state_to_sharding_state,
    )

    weights = gpt.sharded_state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = optimizer.state_dict()
    # A scalar per parameter is no shard of anything: Megatron cannot save `step`.
    owners = get_param_id_to_sharded_param_map(weights, parameters)
    optim_state_to_sharding_state(moments, owners, exclude_keys=("step",))
    return {"model": weights, "optimizer": moments}


def _materialise(optimizer: Any) -> None:
    """Give a fresh optimizer its moments, so that there are tensors to load into; weights do not change."""
    import torch

    kept = [(group, group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.0, 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate, decay in kept:
        group["lr"], group["weight_decay"] = rate, decay
