"""What is seen of a training run from outside: metrics, and which checkpoint is whole."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.bridge import checkpoints
from recipes.bridge.common import log_metrics


class Watch:
    """Bridge's callbacks as methods; every rank has one, global rank 0 writes.

    ``keep`` is how many checkpoints stay on a node's disk; None and -1: all.
    ``loss`` and ``valid_loss`` are the last ones seen, in nats per token, None before the first.
    """

    def __init__(self, folder: Path, rank: int, interval: int, keep: int | None) -> None:
        self._folder, self._rank, self._interval = folder, rank, max(interval, 1)
        first_of_node = os.environ.get("LOCAL_RANK", "0") == "0"
        self._keep = keep if keep and keep > 0 and rank > 0 and first_of_node else None
        self._marked_at, self._marked_step = time.monotonic(), -1
        self.step = 0
        self.loss: float | None = None
        self.valid_loss: float | None = None

    def callback(self) -> Any:
        """A ``Callback`` of the installed Bridge that calls this object's methods."""
        from megatron.bridge.training.callbacks import Callback

        watch = self

        class Bound(Callback):  # type: ignore[misc]
            def on_train_start(self, context: Any) -> None:
                watch.start(context)

            def on_train_step_start(self, context: Any) -> None:
                watch.announce()

            def on_train_step_end(self, context: Any) -> None:
                watch.trained(context)

            def on_eval_end(self, context: Any) -> None:
                watch.evaluated(context)

        return Bound()

    def start(self, context: Any) -> None:
        self.step = int(context.state.train_state.step)
        self._mark()

    def announce(self) -> None:
        """Publish a checkpoint that has become whole since the last call; on other nodes, remove old ones."""
        if self._rank == 0:
            checkpoints.announce(self._folder)
        elif self._keep:
            checkpoints.prune(self._folder, self._keep)

    def trained(self, context: Any) -> None:
        # Bridge counts a step after this callback.
        self.step = int(context.state.train_state.step) + 1
        if self.step % self._interval:
            return
        self.loss = _everywhere(context.loss_dict)
        config = context.state.cfg
        seconds = max(time.monotonic() - self._marked_at, 1e-9)
        steps = self.step - self._marked_step
        per_step = config.train.global_batch_size * config.model.seq_length
        values = {"tokens_per_second": steps * per_step / seconds, "seconds_per_step": seconds / steps}
        values["total_tokens"] = float(self.step * per_step)
        if self.loss is not None:
            values["loss"] = self.loss
        if context.grad_norm is not None:
            values["grad_norm"] = float(context.grad_norm)
        values |= _hardware(config, steps, seconds)
        self._mark()
        if self._rank == 0:
            log_metrics(self.step, values)
            shown = ", ".join(f"{key} {value:.6g}" for key, value in values.items())
            print(f"step {self.step}: {shown}", flush=True)

    def evaluated(self, context: Any) -> None:
        self.valid_loss = _everywhere(context.total_loss_dict)
        if self._rank == 0 and self.valid_loss is not None:
            log_metrics(self.step, {"valid_loss": self.valid_loss})
        self._marked_at, self._marked_step = time.monotonic(), self.step

    def _mark(self) -> None:
        self._marked_at, self._marked_step = time.monotonic(), self.step


def _everywhere(losses: Mapping[str, Any] | None) -> float | None:
    """The loss on every rank: only the last pipeline stage has it. A collective call."""
    import torch
    from torch import distributed

    mine = -math.inf
    for value in (losses or {}).values():
        numbers = value.float().flatten() if hasattr(value, "float") else torch.tensor([float(value)])
        # 0.4.0 and later report a sum and the count of tokens that it is over.
        mine = float(numbers[0] / numbers[1]) if numbers.numel() == 2 else float(numbers.mean())
        break
    if distributed.is_initialized():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        shared = torch.tensor([mine], device=device)
        distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        mine = float(shared.item())
    return mine if math.isfinite(mine) else None


def _hardware(config: Any, steps: int, seconds: float) -> dict[str, float]:
    """Peak memory in GiB and model TFLOP/s of one GPU; empty without GPUs."""
    import torch

    if not torch.cuda.is_available():
        return {}
    from megatron.bridge.training.utils.flop_utils import num_floating_point_operations
    from torch import distributed

    flops = num_floating_point_operations(config, config.train.global_batch_size) * steps
    return {
        "gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        "model_tflops_per_gpu": flops / seconds / distributed.get_world_size() / 1e12,
    }
