"""Where this rank stands: device, tensor- and data-parallel groups, and the wish to stop.

On CPU ranks talk over gloo, on GPUs over NCCL; nothing else in the recipe asks which.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from recipes.tiny.settings import require

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ParallelSettings:
    """``tensor`` ranks share each layer; the rest of the world is data-parallel."""

    tensor: int = 1


@dataclass(frozen=True)
class Parallel:
    """This rank's place. Groups are torch's process groups."""

    rank: int
    world: int
    tensor: int
    data: int
    data_rank: int
    tensor_rank: int
    device: torch.device
    data_group: Any
    tensor_group: Any

    @property
    def leads(self) -> bool:
        return self.rank == 0


def world_size() -> int:
    """As torchrun says; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check(settings: ParallelSettings) -> None:
    """Raises ConfigError unless the world divides into tensor-parallel groups."""
    tensor, world = settings.tensor, world_size()
    require(tensor >= 1, f"parallel.tensor must be at least 1, not {tensor}")
    require(world % tensor == 0, f"parallel.tensor {tensor} does not divide the {world} ranks of this run")


@contextmanager
def connect(settings: ParallelSettings) -> Iterator[Parallel]:
    """Join the process group and Megatron's groups; left in order at the end."""
    import torch
    import torch.distributed as dist

    quiet_megatron()
    from megatron.core import parallel_state

    local = int(os.environ.get("LOCAL_RANK", "0"))
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= ranks_here
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        _without_cuda()
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=_own_store(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=settings.tensor)
    try:
        yield Parallel(
            rank=dist.get_rank(),
            world=dist.get_world_size(),
            tensor=settings.tensor,
            data=parallel_state.get_data_parallel_world_size(),
            data_rank=parallel_state.get_data_parallel_rank(),
            tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
            device=device,
            data_group=parallel_state.get_data_parallel_group(),
            tensor_group=parallel_state.get_tensor_model_parallel_group(),
        )
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """A process group of this rank only, before :func:`connect`.

    Megatron builds its data indices on the global rank 0 and reads them elsewhere, which needs a filesystem
    that all nodes share. Here each rank is rank 0 for a moment, and builds its own.
    """
    import torch.distributed as dist

    dist.init_process_group("gloo", store=_own_store(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _own_store() -> Any:
    """What a process group of one rank meets itself in."""
    import torch.distributed as dist

    return dist.HashStore()  # type: ignore[attr-defined]


def quiet_megatron() -> None:
    """Megatron-Core warns of what is on purpose here (no Transformer Engine, no Apex), and of its future."""
    for message in (
        "Transformer Engine and Apex are not installed",
        "Apex is not installed",
        "full scope is deprecated",
        "Please use DTensor instead",
        "`load_state_dict` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)


def _without_cuda() -> None:
    """Two no-ops for Megatron-Core 0.16.1, which asks for the CUDA device even where tensors are on CPU:
    dist_checkpointing (filesystem_async.py:230, state_dict_saver.py:252) and rotary positions
    (rotary_pos_embedding.py:162)."""
    import torch

    def current_device() -> torch.device:
        return torch.device("cpu")

    def synchronize(device: object = None) -> None:
        pass

    warnings.filterwarnings("ignore", message="When using async grad allreduce")  # advice for CUDA
    torch.cuda.current_device = current_device  # type: ignore[assignment]
    torch.cuda.synchronize = synchronize


class StopRequest:
    """Becomes true at SIGTERM. Made before anything slow, so that no signal is missed."""

    def __init__(self) -> None:
        self.wanted = False
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
